"""One process at a time in a folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.core.config import SCHEME
from components.core.errors import StorageError, printable
from components.core.storage.artifacts import LOCK


@contextmanager
def locked(output: str) -> Iterator[None]:
    """Have a local output to oneself; the kernel frees it when the process dies.

    A folder that is made for the lock, and stays empty, is removed again. Where the lock cannot be
    written, or the file system knows none, it is gone on without.

    Raises:
        StorageError: another process has it.
    """
    folder = Path(output)
    if output.startswith(SCHEME):  # there every write names what it replaces
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
            with suppress(OSError):  # something lies there
                path.rmdir()


def _lock(folder: Path) -> int | None:
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:
            return None  # a stage says by itself what it cannot write
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
            ) from None
        os.close(lock)  # of the one before, who has just removed it
