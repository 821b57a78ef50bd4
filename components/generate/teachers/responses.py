"""Store paid responses, so that no run pays for one twice.

A response is stored under a key made of all that the teacher was sent: the prompt (and with it the
chunk and the template), the model, the sampling parameters. The endpoint's address is no part of
it. A changed prompt, model or parameter is another key, so nothing stale is ever used.

The folder holds pieces that are only ever appended to, one for each run that wrote there::

    crc32 of the rest, then {"key": "9f…", "completion": {"text": "…", "finish_reason": "stop", …}}

A damaged line fails its checksum and is skipped, so only its own request is made again. Several
processes may share a folder. On `gs://`, pieces are published every few seconds; a pod that is
killed loses the last one, and a process on the same machine not even that.
"""

import errno
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from components.core.chat_protocol import Completion, Request
from components.core.describe import counted
from components.core.errors import StorageError
from components.core.progress import say
from components.core.records import Record
from components.core.storage import SCHEME, checked_line, find, put, read_checked_line, scratch

SUFFIX = ".responses.jsonl"
FETCHED = f"fetched{SUFFIX}"
PIECE_SECONDS = 10.0
PIECE_BYTES = 8_000_000


class Stored(Record):
    """A line of a piece."""

    key: str
    completion: Completion


def key_of(request: Request) -> str:
    """The sha256 of all of a request."""
    text = json.dumps(asdict(request), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Responses:
    """The responses at a location; see `open_responses`.

    Attributes:
        damaged: lines that cannot be read.
    """

    def __init__(self, location: str, folder: Path, uploader: ThreadPoolExecutor | None) -> None:
        """Index the pieces in a folder; what is added is published by the uploader, if any."""
        self.location = location
        self.damaged = 0
        self._folder = folder
        self._uploader = uploader
        self._uploads: list[Future[None]] = []
        self._files: list[BinaryIO] = []
        self._piece: BinaryIO | None = None
        self._published = 0  # bytes of the piece
        self._published_at = 0.0
        self._parts = 0
        # Which line of which file holds a response: on disk, as there may be millions.
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.execute(
            "CREATE TABLE lines (key PRIMARY KEY, file, start, length) WITHOUT ROWID"
        )
        for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.name != FETCHED):
            self._read(path)

    def __len__(self) -> int:
        count: int = self._index.execute("SELECT count(*) FROM lines").fetchone()[0]
        return count

    def get(self, request: Request) -> Completion | None:
        """The completion of a request that was paid for before."""
        key = key_of(request)
        query = "SELECT file, start, length FROM lines WHERE key = ?"
        for number, start, length in self._index.execute(query, (bytes.fromhex(key),)):
            with suppress(OSError, ValueError):  # damaged since it was indexed
                stored = _parse(os.pread(self._files[number].fileno(), length, start))
                return stored.completion if stored.key == key else None
        return None

    def put(self, request: Request, completion: Completion) -> None:
        """Store a completion, at once: a process killed after this call has it.

        Raises:
            StorageError: the folder cannot be written.
        """
        key = key_of(request)
        line = checked_line(Stored(key=key, completion=completion).model_dump_json().encode())
        with _explained(self.location):
            if self._piece is None:
                path = self._folder / f"{uuid4().hex}{SUFFIX}"
                self._piece = path.open("xb+", buffering=0)
                self._files.append(self._piece)
                self._published_at = time.monotonic()
            start = self._piece.tell()
            if self._piece.write(line) < len(line):  # a disk takes what it has room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._remember(key, self._files.index(self._piece), start, len(line))
            unpublished = start + len(line) - self._published
            if time.monotonic() - self._published_at > PIECE_SECONDS or unpublished > PIECE_BYTES:
                self._publish()

    def close(self) -> None:
        """Publish the rest.

        Raises:
            StorageError: it cannot be published; the hint says where it is.
        """
        try:
            with _explained(self.location):
                self._publish()
            for upload in self._uploads:
                upload.result()
        except StorageError as error:
            if self._uploader:
                error.hint += (
                    f" Paid responses are kept in {self._folder}: run the same command again."
                )
            raise
        finally:
            self._index.close()
            for file in self._files:
                file.close()

    def _publish(self) -> None:
        """Make durable what was written since the last time: on the disk, or as an object."""
        if self._piece is None:
            return
        os.fsync(self._piece.fileno())
        self._published_at = time.monotonic()
        if self._uploader is None:
            return
        for upload in [upload for upload in self._uploads if upload.done()]:
            upload.result()
            self._uploads.remove(upload)
        end = self._piece.tell()
        if text := os.pread(self._piece.fileno(), end - self._published, self._published).decode():
            name = Path(self._piece.name).name.removesuffix(SUFFIX)
            uri = self._uri(f"{name}-{self._parts}")
            self._uploads.append(self._uploader.submit(put, text, uri))
            self._parts, self._published = self._parts + 1, end

    def _read(self, path: Path) -> None:
        """Index a piece; publish what a run that was killed on this machine has not."""
        file = path.open("rb")
        self._files.append(file)
        killed = self._uploader is not None and path.name != FETCHED
        start, unpublished = 0, []
        for line in file:
            try:
                new = self._remember(_parse(line).key, len(self._files) - 1, start, len(line))
                if new and killed:
                    unpublished.append(line)
            except ValueError:
                self.damaged += 1
            start += len(line)
        if unpublished:
            put(b"".join(unpublished).decode(), self._uri(uuid4().hex))

    def _uri(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}{SUFFIX}"

    def _remember(self, key: str, file: int, start: int, length: int) -> bool:
        insert = "INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?)"
        return self._index.execute(insert, (bytes.fromhex(key), file, start, length)).rowcount > 0


@contextmanager
def open_responses(location: str) -> Iterator[Responses]:
    """The responses at a location, local or `gs://`, for the length of a block.

    Raises:
        StorageError: they cannot be read or written there.
    """
    with ExitStack() as stack:
        folder, uploader = Path(location), None
        with _explained(location):
            if location.startswith(SCHEME):
                folder = stack.enter_context(scratch("responses", location))
                # One at a time: pieces are small, and their order does not matter.
                uploader = stack.enter_context(ThreadPoolExecutor(1))
                with (folder / FETCHED).open("wb") as file:
                    for _, text in find(location, lambda name: name.endswith(SUFFIX)):
                        file.write(text.encode() + b"\n" * (not text.endswith("\n")))
            folder.mkdir(parents=True, exist_ok=True)
            responses = stack.enter_context(closing(Responses(location, folder, uploader)))
        if count := len(responses):
            say(f"  {count} responses stored in {location}")
        if responses.damaged:
            damaged = counted(responses.damaged, "response")
            say(f"  {damaged} there cannot be read, and will be asked for again")
        yield responses


@contextmanager
def _explained(location: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"--responses {location}: cannot be read or written ({reason})",
            hint="Give a folder that this user may write, on a disk with room, or a gs:// prefix.",
        ) from error


def _parse(line: bytes) -> Stored:
    """One line of a piece.

    Raises:
        ValueError: it is damaged, or is not a response.
    """
    return Stored.model_validate_json(read_checked_line(line))
