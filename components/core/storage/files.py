"""Files on this machine: written whole or not at all, without secrets, and checked."""

import base64
import io
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from components.core.errors import StorageError, disk_is_full
from components.core.records import Record
from components.core.redaction import redact

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """Write a text file so that it is either there in full or not at all.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    raw, temporary = _temporary(path.parent, f".{path.name}.", path)
    try:
        with _Redacted(io.BufferedWriter(raw), "utf-8") as file:
            yield file
        make_readable(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_file(prefix: str) -> io.BufferedRandom:
    """A file for reading and writing that is gone when it is closed.

    Raises:
        StorageError: now or at a write, temporary files cannot be written, or their disk is full.
    """
    folder = Path(tempfile.gettempdir())
    raw, temporary = _temporary(folder, prefix, folder)
    temporary.unlink()
    return io.BufferedRandom(raw)


def _temporary(folder: Path, prefix: str, place: Path) -> tuple["_Named", Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=folder, prefix=prefix)
    except OSError as error:
        raise cannot_write(place, error) from error
    return _Named(number, "r+", place), Path(name)


class _Named(io.FileIO):
    """An open file whose write errors name a path: the system's own error has none."""

    def __init__(self, number: int, mode: str, place: Path) -> None:
        super().__init__(number, mode)
        self.place = place

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise cannot_write(self.place, error) from error


class _Redacted(io.TextIOWrapper):
    """A text file without secrets: messages of servers and exceptions end up in reports."""

    def write(self, text: str, /) -> int:
        super().write(redact(text))
        return len(text)


def cannot_write(path: Path, error: OSError) -> StorageError:
    if disk_is_full(error):
        hint = "Make room there, or give another place: --output, or for temporary files TMPDIR."
    else:
        hint = (
            "Give --output (for temporary files TMPDIR) a folder that this user may write; in "
            'docker, pass --user "$(id -u):$(id -g)" for a mounted folder of your own.'
        )
    return StorageError(f"{path}: cannot write here ({error.strerror})", hint=hint)


def make_readable(path: Path) -> None:
    """Give a file the mode that `open` would: temporary files and safetensors are private.

    The next stage may run as another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, record: Record) -> None:
    """Write one record, indented, atomically."""
    with atomic_write(path) as file:
        file.write(record.model_dump_json(indent=2, by_alias=True) + "\n")


def checked_line(body: bytes) -> bytes:
    """A line that begins with a checksum of the rest: its crc32 in hexadecimal."""
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_checked_line(line: bytes) -> bytes:
    """The body of a checked line.

    Raises:
        ValueError: it is torn or damaged.
    """
    body = line[9:-1]
    if line != checked_line(body):
        raise ValueError("torn or damaged")
    return body


def checksum(path: Path) -> str:
    """The crc32c of a file in base64, as GCS reports it."""
    with path.open("rb") as file:
        return checksum_of(iter(lambda: file.read(1 << 20), b""))


def checksum_of(blocks: Iterable[bytes]) -> str:
    import google_crc32c

    digest = google_crc32c.Checksum()
    for block in blocks:
        digest.update(block)
    return base64.b64encode(digest.digest()).decode()
