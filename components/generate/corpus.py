"""The chunks of a corpus: on disk, mapped into memory, read by number.

In memory a chunk takes 12 bytes, and its digest, which finds duplicates, some 80.
"""

import mmap
import re
import tempfile
from array import array
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from components.core.corpus.documents import (
    digest,
    find_documents,
    unreadable_document,
    unreadable_documents,
)
from components.core.corpus.formats import Unreadable
from components.core.corpus.isolated_reader import CutDocument, read_all
from components.core.errors import DataError, printable
from components.core.progress import say, task
from components.core.raft_form import injected_markers
from components.core.records import Chunk
from components.core.storage import writing
from components.generate.config import GenerateConfig
from components.generate.leaks import LeakGuard

HEADINGS = re.compile(r"(\s*#{1,6} .*(\n|$))+")

NAMED = 100  # bad documents that the log and the report name
LISTED = 10  # of them, that the error of a stopped run names


class Corpus:
    """Chunks by number. `owners` holds the number of each one's document."""

    def __init__(self) -> None:
        self._place = Path(tempfile.gettempdir())
        with writing(self._place):
            self._file = tempfile.TemporaryFile(prefix="raft-corpus-")  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self._ends = array("Q", [0])
        self.owners = array("I")

    def add(self, chunk: Chunk, owner: int) -> None:
        """Append a chunk."""
        with writing(self._place):
            self._ends.append(self._ends[-1] + self._file.write(chunk.model_dump_json().encode()))
        self.owners.append(owner)
        self._map = None

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, number: int) -> Chunk:
        if self._map is None:
            with writing(self._place):
                self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return Chunk.model_validate_json(self._map[self._ends[number] : self._ends[number + 1]])


@dataclass
class Reading:
    """What was read, and what was skipped and why."""

    corpus: Corpus = field(default_factory=Corpus)
    documents: int = 0
    documents_duplicate: int = 0
    documents_bad: Counter[str] = field(default_factory=Counter)
    bad_documents: list[str] = field(default_factory=list)
    chunks_duplicate: int = 0
    chunks_left_out: Counter[str] = field(default_factory=Counter)
    errors: list[DataError] = field(default_factory=list)
    """Of the first bad documents, if these stop the run."""
    _digests: set[bytes] = field(default_factory=set, init=False)
    _gold: dict[bytes, int] = field(default_factory=dict, init=False)
    """The number of a gold question's oracle, by paragraph."""
    _of_owner: dict[int, list[int]] = field(default_factory=dict, init=False)
    """The numbers of the gold questions' oracles, by owner."""

    def add(self, document: CutDocument, guard: LeakGuard | None) -> None:
        """Add a document's chunks, unless it or they are duplicates or unfit."""
        if self._seen(b"document" + document.digest):
            self.documents_duplicate += 1
            return
        for chunk in document.chunks:
            if self._seen(digest(chunk.text)):
                self.chunks_duplicate += 1
            elif reason := unfit(chunk, guard):
                self.chunks_left_out[reason] += 1
            else:
                self.corpus.add(chunk, self.documents)
        self.documents += 1

    def add_gold(self, chunk: Chunk, guard: LeakGuard | None) -> None:
        """Add the oracle of a gold question, which the documents may hold as well.

        Questions that share a paragraph have one owner: a split by owners keeps them together.
        """
        if reason := unfit(chunk, guard):
            self.chunks_left_out[reason] += 1
            return
        owner = self.documents + len(self.corpus)
        paragraphs = {digest(text) for text in chunk.text.split("\n\n")}
        known = {self._gold[one] for one in paragraphs if one in self._gold}
        numbers = [len(self.corpus)]
        for other in {self.corpus.owners[number] for number in known}:
            numbers += self._of_owner.pop(other)
        self._of_owner[owner] = numbers
        self._gold |= dict.fromkeys(paragraphs, numbers[0])
        self.corpus.add(chunk, owner)
        for number in numbers:
            self.corpus.owners[number] = owner

    def skip(self, path: Path, error: Unreadable, config: GenerateConfig) -> None:
        """Count a document that cannot be read, and log it or keep its error for the end."""
        self.documents_bad[error.reason] += 1
        if config.on_bad_document == "stop":
            if len(self.errors) < LISTED:
                self.errors.append(unreadable_document(path, error))
        elif len(self.bad_documents) < NAMED:
            source = Path(config.documents)
            name = path.relative_to(source).as_posix() if source.is_dir() else path.name
            self.bad_documents.append(f"{printable(name)}: {error.reason}")
            say(f"  skipped: {unreadable_document(path, error)}")

    def _seen(self, digest: bytes) -> bool:
        if digest in self._digests:
            return True
        self._digests.add(digest)
        return False


def read_corpus(config: GenerateConfig, guard: LeakGuard | None) -> Reading:
    """Read, cut and sift the documents, one after the other.

    Raises:
        DataError: documents are bad, and are to stop the run: it ends when all are read, so that
            all can be corrected at once.
        ConfigError: no such tokenizer.
    """
    source = Path(config.documents)
    files = sum(1 for _ in find_documents(source))
    reading = Reading()
    with task("reading documents", files, "files") as progress, closing(read_all(config)) as parts:
        for path, part in parts:
            if isinstance(part, CutDocument):
                reading.add(part, guard)
                continue
            if part is not None:
                reading.skip(path, part, config)
            bad = reading.documents_bad.total()
            progress.advance(chunks=len(reading.corpus), bad=bad)
    if reading.errors:
        raise unreadable_documents(source, reading.errors, reading.documents_bad.total())
    return reading


def unfit(chunk: Chunk, guard: LeakGuard | None) -> str:
    if HEADINGS.fullmatch(chunk.text):
        return "only a heading"
    if guard is not None and guard.knows_context(chunk.text):
        return "gives away an evaluation question"
    return injected_markers(chunk.text)
