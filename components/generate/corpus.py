"""The chunks of a corpus: on disk, mapped into memory, read by number.

Nothing here grows with the corpus but 30 bytes a chunk and the digests that find duplicates, so
millions of chunks need no more memory than thousands.
"""

import mmap
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from components.errors import DataError
from components.generate.chunking import make_chunker
from components.generate.config import GenerateConfig
from components.generate.digests import Digests
from components.generate.documents import Bad, bad_document, find_documents, read_document
from components.generate.leaks import LeakGuard
from components.progress import say, task
from components.records import ANSWER_MARKER, QUOTE_BEGIN, QUOTE_END, Chunk
from components.storage import temporary_file

MARKS = (QUOTE_BEGIN, QUOTE_END, ANSWER_MARKER, "<DOCUMENT>", "</DOCUMENT>")
"""A chunk that holds one of these would end a quote, an answer or a document too early."""

NAMED = 100  # bad documents that the report names


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


def read_corpus(config: GenerateConfig, guard: LeakGuard | None) -> Reading:
    """Read, cut and sift the documents, one after the other.

    Raises:
        DataError: a document is bad, and bad documents are to stop the run.
        ConfigError: no such tokenizer.
    """
    source = Path(config.documents)
    root = source if source.is_dir() else source.parent
    files = find_documents(source)
    cut = make_chunker(config)
    reading = Reading()
    texts, pieces = _Distinct(), _Distinct()
    with task("reading documents", len(files), "files") as progress:
        for path in files:
            try:
                for document in read_document(path, root, config.text_field):
                    if texts.again(document.text):
                        reading.documents_duplicate += 1
                        continue
                    for chunk in cut(document):
                        if pieces.again(chunk.text):
                            reading.chunks_duplicate += 1
                        elif reason := _unfit(chunk, guard):
                            reading.chunks_left_out[reason] += 1
                        else:
                            reading.corpus.add(chunk, reading.documents)
                    reading.documents += 1
            except Bad as bad:
                _note(reading, config, path, str(bad), bad_document(path, bad))
            except DataError as error:
                _note(reading, config, path, "malformed rows", error)
            progress.advance(chunks=len(reading.corpus))
    return reading


def _note(
    reading: Reading, config: GenerateConfig, path: Path, reason: str, error: DataError
) -> None:
    if config.on_bad_document == "stop":
        raise error from None
    reading.documents_bad[reason] += 1
    if len(reading.bad_documents) < NAMED:
        source = Path(config.documents)
        name = path.relative_to(source).as_posix() if source.is_dir() else path.name
        reading.bad_documents.append(f"{name}: {reason}")
    say(f"  left out: {error}")


def _unfit(chunk: Chunk, guard: LeakGuard | None) -> str:
    if any(mark in chunk.text for mark in MARKS):
        return "holds one of RAFT's own marks"
    if guard is not None and guard.knows_context(chunk.text):
        return "gives away an evaluation question"
    return ""


class _Distinct:
    """Tells texts whose words came before, whatever their case and white space."""

    def __init__(self) -> None:
        self._seen = Digests()

    def again(self, text: str) -> bool:
        words = " ".join(text.split()).casefold().encode("utf-8", "replace")
        return not self._seen.add(blake2b(words, digest_size=8).digest())
