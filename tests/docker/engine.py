"""A Docker engine of one's own, and an image that costs nothing to make.

The engine keeps everything in one folder and is stopped by its process; an engine that is already
there (`DOCKER_HOST`, or the default socket) is used as it is. The borrowed image is empty: its
containers see the machine's own libraries and interpreter, read-only, so what runs in them is this
checkout, isolated like a pod, without a build.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import REPOSITORY

PACKAGES = "docker.io iptables debootstrap"


class NoEngineError(Exception):
    """There is no engine, and none can be started."""


@contextmanager
def engine() -> Iterator[str]:
    """Yield the address of an engine that answers; start one where none does.

    It has no bridge: containers are offline, or on the machine's own network.

    Raises:
        NoEngineError: says what is missing.
    """
    present = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _answers(present):
        yield present
        return
    if shutil.which("dockerd") is None:
        raise NoEngineError(f"no Docker engine: apt-get install {PACKAGES}")
    if os.geteuid() != 0:
        raise NoEngineError("no Docker engine answers, and only root can start one")
    with TemporaryDirectory(prefix="raft-engine-") as folder:
        address = f"unix://{folder}/docker.sock"
        command = [
            "dockerd", f"--data-root={folder}/data", f"--exec-root={folder}/exec",
            f"--pidfile={folder}/pid", f"--host={address}", "--group=root",
            "--userland-proxy=false", "--bridge=none", "--iptables=false",
        ]  # fmt: skip
        log = Path(folder) / "log"
        with log.open("w") as file:
            daemon = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            for _ in range(120):
                if _answers(address):
                    break
                if daemon.poll() is not None:
                    raise NoEngineError(f"dockerd ended:\n{log.read_text()[-2000:]}")
                time.sleep(0.5)
            else:
                raise NoEngineError(f"dockerd does not answer:\n{log.read_text()[-2000:]}")
            yield address
        finally:
            daemon.terminate()
            daemon.wait(timeout=60)
            # The network namespace of containers on the machine's network stays mounted.
            mounts = Path("/proc/self/mounts").read_text().splitlines()
            for place in (line.split()[1] for line in reversed(mounts)):
                if place.startswith(folder):
                    subprocess.run(["umount", place], check=True)


def docker(address: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the docker command against an engine."""
    return subprocess.run(
        ["docker", "--host", address, *arguments], capture_output=True, text=True, **options
    )


def _answers(address: str) -> bool:
    return shutil.which("docker") is not None and not docker(address, "version").returncode


def borrow_image(address: str, tags: Sequence[str]) -> None:
    """Make the empty image under each of the tags; use it with `mounts` and `environment`."""
    links = {name: f"usr/{name}" for name in ("bin", "lib", "lib64", "sbin")}
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name in ("usr", "etc", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in ("/etc/passwd", "/etc/ld.so.cache"):
            if Path(name).exists():
                tar.add(name)
    first, *others = tags
    subprocess.run(
        ["docker", "--host", address, "import", "-", first],
        input=layer.getvalue(), stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    for tag in others:
        docker(address, "tag", first, tag, check=True)


def borrowed_folders() -> list[str]:
    """What a container of the borrowed image must see at the same place."""
    folders = ["/usr", sys.prefix, sys.base_prefix, str(REPOSITORY)]
    return [
        folder
        for index, folder in enumerate(folders)
        if folder not in folders[:index]
        and not any(folder.startswith(f"{other}/") for other in folders if other != folder)
    ]


def borrowed_environment() -> dict[str, str]:
    """Variables that make a container run this checkout."""
    return {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
