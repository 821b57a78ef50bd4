"""One process at a time in an output folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.core.config import SCHEME
from components.core.errors import StorageError, printable

LOCK = ".raft.lock"  # in a folder that is being written; no part of the artifact


@contextmanager
def locked(output: str) -> Iterator[None]:
    """Hold a local output exclusively; the kernel frees the lock when the process dies.

    A folder that was made for the lock and is still empty is removed again. Where the lock file
    cannot be written, or the file system has no locks, the work runs without one.

    Raises:
        StorageError: another process holds it.
    """
    folder = Path(output)
    if output.startswith(SCHEME):  # there every write is conditional on what it replaces
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
            os.close(lock)
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _lock(folder: Path) -> int | None:
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:
            return None  # the stage itself reports what it cannot write
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                os.ftruncate(lock, 0)
                os.write(lock, f"pid {os.getpid()} on {socket.gethostname()}".encode())
                return lock
        except FileNotFoundError:
            pass
        except OSError as error:
            holder = os.pread(lock, 300, 0).decode(errors="replace")
            os.close(lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None
            raise StorageError(
                f"another raft ({printable(holder) or 'pid unknown'}) writes to --output {folder}",
                hint="Wait for it, or give another --output.",
            ) from error
        os.close(lock)  # its file was removed by the process that held it before
