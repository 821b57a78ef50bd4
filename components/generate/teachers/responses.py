"""Keep what a teacher was paid for, so that no run pays for it twice.

A response is kept under a key made of everything that the teacher was sent: the prompt (and with
it the chunk and the template), the model, the sampling parameters. The endpoint's address is no
part of it. A changed prompt, model or parameter is another key, so nothing stale is ever used.

The folder holds pieces that are only ever appended to, one for each run that wrote there::

    crc32 of the rest, then {"key": "9f…", "reply": {"text": "…", "finish_reason": "stop", …}}

A line that was torn fails its checksum and is passed over, so only its own request is asked again.
Several processes may share a folder: each writes a piece of its own. On `gs://` pieces are
published while the run goes on, every few seconds; what a pod that is killed loses is the last one,
and on the same machine not even that.
"""

import errno
import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, Self
from uuid import uuid4

from pydantic import AfterValidator

from components.core.errors import StorageError
from components.core.progress import say
from components.core.records import Record
from components.core.redaction import redact
from components.core.storage import SCHEME, checked_line, find, put, read_checked_line, scratch
from components.generate.config import GenerateConfig
from components.generate.digests import Digests

SUFFIX = ".responses.jsonl"
FETCHED = f"fetched{SUFFIX}"
PIECE_SECONDS = 10.0
PIECE_BYTES = 8_000_000


@dataclass(frozen=True)
class Request:
    """One call to a teacher. `schema` is the JSON schema that the reply must keep to, if any."""

    prompt: str
    model: str
    max_tokens: int
    seed: int
    temperature: float = 0.0
    schema: str = ""
    purpose: Literal["questions", "answer"] = "answer"

    def schema_object(self) -> Any:
        """The schema, parsed."""
        return json.loads(self.schema)

    def key(self) -> str:
        """The sha256 of all of it."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Reply(Record):
    """What came back, without the key should the server repeat it.

    `tokens_cached` of `tokens_in` were served by the server's prefix cache.
    """

    text: Annotated[str, AfterValidator(redact)]
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0


class _Line(Record):
    key: str
    reply: Reply


class Responses:
    """The responses kept at a location, local or `gs://`; use as a context manager.

    Attributes:
        torn: lines that were there and could not be read.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.remote = location.startswith(SCHEME)
        self.torn = 0
        # Where each response lies: the place of its key, in the three arrays.
        self._index = Digests()
        self._files: list[BinaryIO] = []
        self._file_of, self._start, self._length = array("I"), array("Q"), array("I")
        self._piece: BinaryIO | None = None
        self._published = 0  # bytes of the piece
        self._published_at = 0.0
        self._parts = 0
        self._uploads: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._held = ExitStack()
        try:
            if self.remote:
                self._folder = self._held.enter_context(scratch("responses", self.location))
                # One at a time: pieces are small, and their order does not matter.
                self._pool = self._held.enter_context(ThreadPoolExecutor(1))
                with (self._folder / FETCHED).open("wb") as fetched:
                    for _, text in find(self.location, lambda name: name.endswith(SUFFIX)):
                        fetched.write(text.encode() + b"\n" * (not text.endswith("\n")))
            else:
                self._folder = Path(self.location)
                self._folder.mkdir(parents=True, exist_ok=True)
            pieces = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.name != FETCHED)
            for path in pieces:
                new = self._read(path)
                if self.remote and new and path.name != FETCHED:
                    # A run that was killed on this machine has kept them, and not published them.
                    target = f"{self.location.rstrip('/')}/{uuid4().hex}{SUFFIX}"
                    put(b"".join(new).decode(), target)
        except OSError as error:
            self._held.close()
            raise self._cannot_write(error) from None
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._held:
            try:
                self._publish()
                for upload in self._uploads:
                    upload.result()
            except StorageError as failed:
                if self.remote:
                    failed.hint += (
                        f" What was paid is kept in {self._folder}: give the same command again."
                    )
                raise
            finally:
                for file in self._files:
                    file.close()

    def __len__(self) -> int:
        return len(self._index)

    def get(self, request: Request) -> Reply | None:
        """The reply to a request that was paid for before."""
        key = request.key()
        number = self._index.place(bytes.fromhex(key))
        if number < 0:
            return None
        file = self._files[self._file_of[number]]
        try:
            line = os.pread(file.fileno(), self._length[number], self._start[number])
            found = _parse(line)
            return found.reply if found.key == key else None
        except (OSError, ValueError):  # damaged since it was indexed: it is asked for again
            return None

    def put(self, request: Request, reply: Reply) -> None:
        """Keep a reply, at once: a process killed after this call has it.

        Raises:
            StorageError: the folder cannot be written.
        """
        line = checked_line(_Line(key=request.key(), reply=reply).model_dump_json().encode())
        try:
            if self._piece is None:
                path = self._folder / f"{uuid4().hex}{SUFFIX}"
                self._piece = path.open("xb+", buffering=0)
                self._files.append(self._piece)
                self._published_at = time.monotonic()
            start = self._piece.tell()
            if self._piece.write(line) < len(line):  # a disk takes what it has room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._cannot_write(error) from None
        self._remember(request.key(), self._files.index(self._piece), start, len(line))
        waiting = start + len(line) - self._published
        if time.monotonic() - self._published_at > PIECE_SECONDS or waiting > PIECE_BYTES:
            self._publish()

    def _publish(self) -> None:
        """Make what was written since the last time last: on the disk, or as an object of its own.

        Raises:
            StorageError: an earlier object could not be written.
        """
        if self._piece is None:
            return
        try:
            os.fsync(self._piece.fileno())
        except OSError as error:
            raise self._cannot_write(error) from None
        self._published_at = time.monotonic()
        if not self.remote:
            return
        for upload in [upload for upload in self._uploads if upload.done()]:
            upload.result()
            self._uploads.remove(upload)
        end = self._piece.tell()
        text = os.pread(self._piece.fileno(), end - self._published, self._published).decode()
        if text:
            name = Path(self._piece.name).name.removesuffix(SUFFIX)
            target = f"{self.location.rstrip('/')}/{name}-{self._parts}{SUFFIX}"
            self._uploads.append(self._pool.submit(put, text, target))
            self._parts, self._published = self._parts + 1, end

    def _read(self, path: Path) -> list[bytes]:
        """Index a piece; the lines with replies that were not known."""
        file = path.open("rb")
        self._files.append(file)
        start = 0
        new = []
        for line in file:
            try:
                if self._remember(_parse(line).key, len(self._files) - 1, start, len(line)):
                    new.append(line)
            except ValueError:
                self.torn += 1
            start += len(line)
        return new

    def _remember(self, key: str, file: int, start: int, length: int) -> bool:
        if not self._index.add(bytes.fromhex(key)):
            return False
        self._file_of.append(file)
        self._start.append(start)
        self._length.append(length)
        return True

    def _cannot_write(self, error: OSError) -> StorageError:
        return StorageError(
            f"--responses {self.location}: cannot be read or written ({error.strerror or error})",
            hint="Give a folder that this user may write, on a disk with room, or a gs:// prefix.",
        )


@contextmanager
def opened(config: GenerateConfig) -> Iterator[Responses]:
    """The responses of a run, with a word about those at hand."""
    with Responses(config.responses) as responses:
        if len(responses):
            say(f"  {len(responses)} responses at hand in {responses.location}")
        if responses.torn:
            say(f"  {responses.torn} responses there are torn, and will be asked for again")
        yield responses


def _parse(line: bytes) -> _Line:
    """One line of a piece.

    Raises:
        ValueError: it was torn or damaged, or is not a response.
    """
    return _Line.model_validate_json(read_checked_line(line))
