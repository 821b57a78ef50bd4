"""Store paid responses, so that no run pays for one twice.

A response is stored under a key made of all that the teacher was sent: the prompt (and with it the
chunk and the template), the model, the sampling parameters. The endpoint's address is no part of
it. A changed prompt, model or parameter is another key, so nothing stale is ever used. Below
`state`, a folder holds the responses of one model with one seed, for all runs.

The folder holds pieces that are only ever appended to, by one run::

    crc32 of the rest, then {"key": "9f…", "completion": {"text": "…", "finish_reason": "stop", …}}

A damaged line fails its checksum and is skipped, so only its own request is made again. Several
processes may share a folder. On `gs://`, pieces are published every few seconds; a pod that is
killed loses the last one, and a process on the same machine not even that.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from components.core.chat_protocol import Completion, Request
from components.core.describe import counted
from components.core.errors import StorageError
from components.core.progress import say
from components.core.records import Record
from components.core.storage import (
    SCHEME,
    checked_line,
    find,
    put,
    read_checked_line,
    remove_files,
    scratch,
)

SUFFIX = ".responses.jsonl"
PIECE_SECONDS = 10.0


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
        self._piece: BinaryIO | None = None
        self._published_at = time.monotonic()
        self._places: dict[bytes, tuple[Path, int, int]] = {}  # a piece, start, length
        for path in folder.glob(f"*{SUFFIX}"):
            self._read(path)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, request: Request) -> Completion | None:
        """The completion of a request that was paid for before."""
        if (place := self._places.get(bytes.fromhex(key_of(request)))) is None:
            return None
        path, start, length = place
        with _explained(self.location), path.open("rb") as piece:
            piece.seek(start)
            return _parse(piece.read(length)).completion

    def put(self, request: Request, completion: Completion) -> None:
        """Store a completion, at once: a process killed after this call has it.

        Raises:
            StorageError: the folder cannot be written.
        """
        key = key_of(request)
        line = checked_line(Stored(key=key, completion=completion).model_dump_json().encode())
        with _explained(self.location):
            if self._piece is None:
                self._piece = (self._folder / f"{uuid4().hex}{SUFFIX}").open("xb", buffering=0)
            start = self._piece.tell()
            if self._piece.write(line) < len(line):  # a disk takes what it has room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._places[bytes.fromhex(key)] = Path(self._piece.name), start, len(line)
            if time.monotonic() - self._published_at > PIECE_SECONDS:
                self._publish()

    def close(self) -> None:
        """Publish the rest.

        Raises:
            StorageError: it cannot be published; the hint names where it is.
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
            if self._piece is not None:
                self._piece.close()

    def _publish(self) -> None:
        """Make the piece durable: on the disk, or as an object, after which another begins."""
        self._published_at = time.monotonic()
        if self._piece is None:
            return
        os.fsync(self._piece.fileno())
        if self._uploader is not None:
            for upload in self._uploads:
                if upload.done():
                    upload.result()
            self._piece.close()
            path = Path(self._piece.name)
            self._uploads.append(self._uploader.submit(_publish, path, self.location))
            self._piece = None

    def _read(self, path: Path) -> None:
        """Index a piece."""
        start = 0
        with path.open("rb") as piece:
            for line in piece:
                try:
                    key = bytes.fromhex(_parse(line).key)
                    self._places[key] = path, start, len(line)
                except ValueError:
                    self.damaged += 1
                start += len(line)


@contextmanager
def open_responses(location: str, *, fresh: bool = False) -> Iterator[Responses]:
    """The responses at a location, local or `gs://`, for the length of a block.

    With `fresh`, those that are there are discarded.

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
                if fresh:
                    for place in (location, str(folder)):
                        remove_files(place, _is_piece)
                unpublished = set(folder.glob(f"*{SUFFIX}"))  # by a run that was killed here
                for uri, text in find(location, _is_piece):
                    path = folder / uri.rpartition("/")[2]
                    path.write_bytes(text.encode())
                    unpublished.discard(path)
                for path in unpublished:
                    _publish(path, location)
            folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                remove_files(str(folder), _is_piece)
            responses = stack.enter_context(closing(Responses(location, folder, uploader)))
        if count := len(responses):
            say(f"  {count} responses stored in {location}")
        if responses.damaged:
            damaged = counted(responses.damaged, "response")
            say(f"  {damaged} there cannot be read, and will be requested again")
        yield responses


def _is_piece(name: str) -> bool:
    return name.endswith(SUFFIX)


def _publish(path: Path, location: str) -> None:
    put(path.read_bytes().decode(errors="replace"), f"{location.rstrip('/')}/{path.name}")


@contextmanager
def _explained(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"--responses {location}: cannot be read or written ({error.strerror or error})",
            hint="Give a folder that this user may write, on a disk with room, or a gs:// prefix.",
        ) from error


def _parse(line: bytes) -> Stored:
    """One line of a piece; a ValueError where it is damaged, or no response."""
    return Stored.model_validate_json(read_checked_line(line))
