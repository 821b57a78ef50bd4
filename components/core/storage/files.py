"""Files on this machine: written whole or not at all, without secrets, and checked."""

import base64
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from components.core.errors import StorageError
from components.core.records import Record
from components.core.redaction import redact


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """Write a text file so that it is either there in full or not at all.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as raw, _Redacted(raw, "utf-8") as file:
                yield file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class _Redacted(io.TextIOWrapper):
    """A text file without secrets: messages of servers and exceptions end up in reports."""

    def write(self, text: str, /) -> int:
        super().write(redact(text))
        return len(text)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Name the place that cannot be written: the system's own error may have no name.

    Raises:
        StorageError: it cannot be written, or its disk is full.
    """
    try:
        yield
    except OSError as error:
        # Errors of connections are the caller's; the client's own have no number.
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        raise StorageError(
            f"{place}: cannot write here ({error.strerror})",
            hint="Give --output (for temporary files TMPDIR) a folder with room that this user may "
            'write; in docker, pass --user "$(id -u):$(id -g)" for a mounted folder of your own.',
        ) from error


def make_readable(path: Path) -> None:
    """Give a file the mode that `open` would: safetensors are private.

    The next stage may run as another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, record: Record) -> None:
    """Write one record, indented, atomically."""
    with atomic_write(path) as file:
        file.write(record.model_dump_json(indent=2, by_alias=True) + "\n")


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write records, one a line, atomically."""
    with atomic_write(path) as file:
        file.writelines(record.model_dump_json() + "\n" for record in records)


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


def checksum(content: Path | bytes) -> str:
    """The crc32c of a file, or of bytes, in base64, as GCS reports it."""
    import google_crc32c

    digest = google_crc32c.Checksum()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()
