"""The images of images/, built on an engine as `make images` builds them, without a registry.

The base image is Debian's own Python (debootstrap), which has the ABI of python:3.11-slim. What
this machine's pip is told (certificates, further indexes, folders of wheels) goes into that base
image, and so into nothing that is shipped; folders are served on loopback while images are built.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import REPOSITORY

BASE_IMAGE = "raft-tests-base:bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
DEBIAN = "bookworm"  # its Python is 3.11
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"


def build_images(address: str, targets: Sequence[str] = ("images",)) -> None:
    """Build CPU images with the Makefile; `BASE_IMAGE` in the environment spares the base image.

    Raises:
        subprocess.CalledProcessError: a build failed; its output is on the terminal.
    """
    with ExitStack() as stack:
        given = os.environ.get("BASE_IMAGE")
        words = ["--network=host"]
        if given is None:
            settings, wheels = stack.enter_context(_served_pip_settings())
            if wheels:
                words.append(f"--build-arg=TORCH_WHEELS={wheels}")
            _make_base_image(address, settings)
        subprocess.run(
            ["make", *targets, "VARIANT=cpu", f"BASE_IMAGE={given or BASE_IMAGE}",
             f"BUILD={shlex.join(words)}"],
            cwd=REPOSITORY, env=os.environ | {"DOCKER_HOST": address}, check=True,
        )  # fmt: skip


def _make_base_image(address: str, pip_settings: str) -> None:
    with TemporaryDirectory(prefix="raft-base-") as scratch:
        root = Path(os.environ.get("RAFT_TESTS_ROOTFS", f"{scratch}/root"))
        if not root.exists():
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        (root / "etc" / "pip.conf").write_text(pip_settings)
        tar = subprocess.Popen(
            ["tar", "--directory", str(root), "--exclude=./var/cache/apt", "--create", "."],
            stdout=subprocess.PIPE,
        )
        subprocess.run(
            ["docker", "--host", address, "import", "-", BASE_IMAGE], stdin=tar.stdout,
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        if tar.wait():
            raise subprocess.CalledProcessError(tar.returncode, "tar")


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
