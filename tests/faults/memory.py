"""A memory limit that the kernel keeps: a cgroup, of version 1 or 2, made and removed again."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass
class Limit:
    """A memory cgroup. A process joins it by writing its id to `cgroup.procs` in `folder`."""

    folder: Path
    version: int

    def allow(self, size: int) -> None:
        """At most so many bytes, without swapping."""
        if self.version == 1:
            self._write("memory.limit_in_bytes", size)
            with suppress(OSError):  # a kernel that does not account for swap
                self._write("memory.memsw.limit_in_bytes", size)
        else:
            self._write("memory.max", size)
            with suppress(OSError):
                self._write("memory.swap.max", 0)

    def most(self) -> int:
        """The most bytes that were held."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.folder / name).read_text())

    def kills(self) -> int:
        """How many processes the kernel has killed in it."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        lines = (self.folder / name).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))


@contextmanager
def limit() -> Iterator[Limit | None]:
    """A new cgroup without a limit yet; None where this machine lets us make none."""
    made = _make()
    try:
        yield made
    finally:
        if made is not None:
            for _ in range(50):  # what has just been killed is still leaving
                with suppress(OSError):
                    made.folder.rmdir()
                    break
                time.sleep(0.1)


def _make() -> Limit | None:
    name = f"raft-test-{os.getpid()}-{time.monotonic_ns()}"
    for version, parent in ((1, ROOT / "memory"), (2, ROOT)):
        folder = parent / name
        with suppress(OSError):
            folder.mkdir()
            needed = ("memory.limit_in_bytes", "memory.max")[version - 1]
            if os.access(folder / needed, os.W_OK):
                return Limit(folder, version)
            folder.rmdir()
    return None
