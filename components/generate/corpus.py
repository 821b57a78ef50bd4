"""The chunks of a corpus: on disk, mapped into memory, read by number.

Nothing here grows with the corpus but 30 bytes a chunk and the digests that find duplicates, so
millions of chunks need no more memory than thousands.
"""

import mmap
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from components.core.errors import DataError, printable
from components.core.progress import say, task
from components.core.records import Chunk
from components.core.storage import temporary_file
from components.generate.config import GenerateConfig
from components.generate.confined import read_all
from components.generate.digests import Digests
from components.generate.documents import (
    Bad,
    bad_document,
    bad_documents,
    find_documents,
    suffix_of,
)
from components.generate.leaks import LeakGuard
from components.generate.text import digest, forging

HEADINGS = re.compile(r"(\s*#{1,6} .*(\n|$))+")

NAMED = 100  # bad documents that the log and the report name
NAMED_CHARACTERS = 300
LISTED = 10  # of them, that the error of a stopped run names


class Corpus:
    """Chunks by number. `owners` holds the number of each one's document."""

    def __init__(self) -> None:
        self._file = temporary_file("raft-corpus-")
        self._map: mmap.mmap | None = None
        self._ends = array("Q", [0])
        self.owners = array("I")

    def add(self, chunk: Chunk, owner: int) -> None:
        """Append a chunk."""
        self._ends.append(self._ends[-1] + self._file.write(chunk.model_dump_json().encode()))
        self.owners.append(owner)
        self._map = None

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, number: int) -> Chunk:
        if self._map is None:
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return Chunk.model_validate_json(self._map[self._ends[number] : self._ends[number + 1]])


@dataclass(frozen=True)
class Pool:
    """Some of a corpus's chunks, by their place among them."""

    corpus: Corpus
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Chunk:
        return self.corpus[self.numbers[place]]


@dataclass
class Reading:
    """What was read, and what was left out and why."""

    corpus: Corpus = field(default_factory=Corpus)
    documents: int = 0
    documents_duplicate: int = 0
    documents_bad: Counter[str] = field(default_factory=Counter)
    bad_documents: list[str] = field(default_factory=list)
    chunks_duplicate: int = 0
    chunks_left_out: Counter[str] = field(default_factory=Counter)
    faults: list[DataError] = field(default_factory=list)
    """Of the first bad documents, where these stop the run."""
    suffixes_bad: Counter[str] = field(default_factory=Counter)


def read_corpus(config: GenerateConfig, guard: LeakGuard | None) -> Reading:
    """Read, cut and sift the documents, one after the other.

    Raises:
        DataError: documents are bad, and are to stop the run: it ends when all are read, so that
            all can be mended at once.
        ConfigError: no such tokenizer.
    """
    files = sum(1 for _ in find_documents(Path(config.documents)))
    reading = Reading()
    texts, pieces = _Distinct(), _Distinct()
    with task("reading documents", files, "files") as progress, closing(read_all(config)) as found:
        for path, cut in found:
            if isinstance(cut, Bad):
                _note(reading, config, path, str(cut), bad_document(path, cut))
            elif isinstance(cut, DataError):
                _note(reading, config, path, "malformed rows", cut)
            elif cut is not None:
                if texts.again(cut.words):
                    reading.documents_duplicate += 1
                    continue
                for chunk in cut.chunks:
                    if pieces.again(digest(chunk.text)):
                        reading.chunks_duplicate += 1
                    elif reason := _unfit(chunk, guard):
                        reading.chunks_left_out[reason] += 1
                    else:
                        reading.corpus.add(chunk, reading.documents)
                reading.documents += 1
                continue
            bad = reading.documents_bad.total()
            progress.advance(chunks=len(reading.corpus), **({"bad": bad} if bad else {}))
    if reading.faults:
        raise bad_documents(Path(config.documents), reading.faults, reading.suffixes_bad)
    if (more := reading.documents_bad.total() - NAMED) > 0:
        say(f"  left out: {more:,} more")
    return reading


def _note(
    reading: Reading, config: GenerateConfig, path: Path, reason: str, error: DataError
) -> None:
    reading.documents_bad[reason] += 1
    if config.on_bad_document == "stop":
        reading.suffixes_bad[suffix_of(path)] += 1
        if len(reading.faults) < LISTED:
            reading.faults.append(error)
    elif len(reading.bad_documents) < NAMED:
        source = Path(config.documents)
        name = path.relative_to(source).as_posix() if source.is_dir() else path.name
        reading.bad_documents.append(f"{printable(name)[-NAMED_CHARACTERS:]}: {reason}")
        say(f"  left out: {error}")


def _unfit(chunk: Chunk, guard: LeakGuard | None) -> str:
    if HEADINGS.fullmatch(chunk.text):
        return "only a heading"
    if guard is not None and guard.knows_context(chunk.text):
        return "gives away an evaluation question"
    return forging(chunk.text)


class _Distinct:
    """Tells digests that came before."""

    def __init__(self) -> None:
        self._seen = Digests()

    def again(self, digest: str) -> bool:
        return not self._seen.add(bytes.fromhex(digest))
