"""Generations on disk as they come, so that a killed run loses only the batch under way.

One line a batch, appended and flushed: a checksum, then JSON. At the next start a line torn by a
kill is cut off, and a damaged one is skipped, so its batch is generated again. A batch is kept
whole or not at all: the rest is then generated in the same batches, and the same batches give the
same texts, to the byte (padding can change the last bit of a float). A line, shortened::

    9c1d4e07 {"model": "6fd0…", "weight_bytes": 1234, "seconds": 8.1, "generations": [
        {"key": "0a31…", "text": "… <ANSWER>: Kelden", "tokens_in": 512, "tokens_out": 48,
         "truncated": false}]}

Knows nothing of models or questions.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from components.core import progress, storage
from components.core.errors import StorageError
from components.core.records import Record
from components.core.redaction import redact
from components.core.storage.places import read_file

SECONDS_BETWEEN_COPIES = 60.0


class Generation(Record):
    """The new text of one prompt; tokens_out counts the end-of-sequence token too."""

    key: str
    text: Annotated[str, AfterValidator(redact)]
    tokens_in: int
    tokens_out: int
    truncated: bool


class Batch(Record):
    """What one model generated in one batch.

    model: what its generations' keys were made with. seconds: of loading (in the first batch after
    it) and generating. weight_bytes: of the model, null where the engine does not report it.
    """

    model: str
    weight_bytes: int | None
    seconds: float
    generations: list[Generation]


def key_of(*parts: object) -> str:
    """What a generation depends on, as one text."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class Generations:
    """The batches of a file, and those that are added to it.

    Args:
        path: the file.
        copies: a folder or `gs://` prefix that outlives this machine, or "". The file is fetched
            from there when it is not here, and copied there about once a minute and at the end.
        fresh: whether to discard what either holds.

    Raises:
        StorageError: `copies` cannot be read.
    """

    def __init__(self, path: Path, copies: str = "", *, fresh: bool = False) -> None:
        self.path = path
        self.copy = f"{copies.rstrip('/')}/{path.name}" if copies else ""
        self.copied = time.monotonic()
        self.by_key: dict[str, Generation] = {}
        self.seconds: dict[str, float] = {}
        self.weight_bytes: dict[str, int | None] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
            if copies:
                storage.remove_files(copies, path.name.__eq__)
        if copies and not path.exists() and (content := read_file(copies, path.name)):
            storage.put(content.decode(errors="replace"), path)
        self.file = path.open("a+b")
        self._read()

    def _read(self) -> None:
        self.file.seek(0)
        damaged = 0
        for line in self.file:
            try:
                self._remember(Batch.model_validate_json(storage.read_checked_line(line)))
            except ValueError:
                damaged += line.endswith(b"\n")
                if not line.endswith(b"\n"):  # the last one
                    self.file.truncate(self.file.tell() - len(line))
        if self.by_key:
            progress.say(f"  resuming from {len(self.by_key)} generations of an earlier run")
        if damaged:
            progress.say(f"  {damaged} batches of {self.path} are damaged and generated again")

    def _remember(self, batch: Batch) -> None:
        self.by_key |= {generation.key: generation for generation in batch.generations}
        self.seconds[batch.model] = self.seconds.get(batch.model, 0.0) + batch.seconds
        self.weight_bytes[batch.model] = batch.weight_bytes

    def add(self, batch: Batch) -> None:
        """Keep a batch: when this returns, it is on the disk."""
        self.file.write(storage.checked_line(batch.model_dump_json().encode()))
        self.file.flush()
        os.fsync(self.file.fileno())
        self._remember(batch)
        if time.monotonic() - self.copied > SECONDS_BETWEEN_COPIES:
            self._copy()

    def _copy(self) -> None:
        """What cannot be copied now is copied with the next: no reason to stop generating."""
        self.copied = time.monotonic()
        if self.copy and self.by_key:
            try:
                storage.put(self.path.read_text(encoding="utf-8", errors="replace"), self.copy)
            except StorageError as error:
                progress.say(f"  finished generations are not copied: {error}")

    def close(self) -> None:
        """Stop adding, for whatever reason; the copy is brought up to date."""
        if not self.file.closed:
            self.file.close()
            self._copy()
