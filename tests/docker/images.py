"""The images of images/, built on an engine as `make images` builds them, without a registry.

The base image is Debian's own Python (debootstrap), which has the ABI of python:3.11-slim. What
this machine's pip is told (certificates, further indexes, folders of wheels) goes into that base
image, and so into nothing that is shipped; folders are served on loopback while images are built.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import REPOSITORY
from tests.docker.engine import NoEngineError, docker

BASE_IMAGE = "raft-tests-base"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
DEBIAN = "bookworm"  # its Python is 3.11
SECRETS = {"HF_TOKEN": "hf_builders-token-5c81", "OPENAI_API_KEY": "sk-builders-key-93ad"}
"""In the environment of whoever builds; no layer may hold one."""
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"


def build_images(address: str) -> None:
    """Build all CPU images with the Makefile.

    Raises:
        NoEngineError: debootstrap is missing.
        subprocess.CalledProcessError: a build failed; its output is on the terminal.
    """
    with _served_pip_settings() as (settings, wheels):
        _make_base_image(address, settings)
        further = "--network=host" + (f" --build-arg=TORCH_WHEELS={wheels}" if wheels else "")
        subprocess.run(
            ["make", "images", "VARIANT=cpu", f"BASE_IMAGE={BASE_IMAGE}", f"BUILD={further}"],
            cwd=REPOSITORY, env=os.environ | SECRETS | {"DOCKER_HOST": address}, check=True,
        )  # fmt: skip


def _make_base_image(address: str, pip_settings: str) -> None:
    """Debian from a cached archive, and this machine's settings in a layer above it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    archive = cache / "raft-pipelines" / f"{DEBIAN}.tar"
    if not archive.exists():
        _make_debian(archive)
    with TemporaryDirectory(prefix="raft-base-") as scratch:
        context = Path(scratch)
        (context / "pip.conf").write_text(pip_settings)
        shutil.copy(CERTIFICATES, context)
        (context / "Dockerfile").write_text(
            f"FROM {DEBIAN}\nCOPY pip.conf /etc/\nCOPY {CERTIFICATES.name} {CERTIFICATES}\n"
        )
        docker(address, "import", str(archive), DEBIAN, check=True)
        docker(address, "build", "--tag", BASE_IMAGE, scratch, check=True)


def _make_debian(archive: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise NoEngineError("no base image can be made: apt-get install debootstrap")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="raft-debian-") as root:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, root],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        half = archive.with_suffix(".half")
        subprocess.run(
            ["tar", "--directory", root, "--exclude=./var/cache/apt",
             "--exclude=./var/lib/apt/lists", "--create", "--file", str(half), "."],
            check=True,
        )  # fmt: skip
        half.replace(archive)


@contextmanager
def _served_pip_settings() -> Iterator[tuple[str, str]]:
    """This machine's pip settings with URLs for its folders, and the URL of its wheels ("": none).

    The folders are served until the block ends.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    with ExitStack() as stack:

        def served(name: str) -> list[str]:
            places = found.get(f":env:.{name}") or found.get(f"global.{name}") or "''"
            return [
                stack.enter_context(_served(Path(path))) if path.startswith("/") else place
                for place in places.strip("'").replace("\\n", " ").split()
                for path in [place.removeprefix("file://")]
            ]

        wheels = served("find-links")
        lines = [
            "[global]",
            f"cert = {CERTIFICATES}",
            *(f"find-links = {url}" for url in wheels[:1]),
            f"extra-index-url = {' '.join(served('extra-index-url'))}",
        ]
        yield "\n".join(lines) + "\n", "".join(wheels[:1])


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder, or for an index the folder that its links lead to; its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    root = folder.parent if folder.name == "simple" else folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{folder.relative_to(root)}/".replace("./", "")
    finally:
        server.shutdown()
        server.server_close()
