"""Find the chunks of a folder of documents that fit a question: for evaluations and `raft ask`."""

from contextlib import closing
from pathlib import Path

from components.core.corpus.bm25 import Search
from components.core.corpus.documents import digest, unreadable_document, unreadable_documents
from components.core.corpus.isolated_reader import CutDocument, read_all
from components.core.corpus.options import CorpusOptions
from components.core.errors import DataError
from components.core.progress import say
from components.core.records import Chunk


class Retriever:
    """The chunks of a corpus, cut as `generate` cuts them and without duplicates, and their index.

    Args:
        options: which documents are read, and how they are cut.

    Raises:
        DataError: the corpus holds no text, or documents cannot be read and are to stop the run.
        ConfigError: no such tokenizer.
    """

    def __init__(self, options: CorpusOptions) -> None:
        chunks: dict[bytes, Chunk] = {}
        errors: list[DataError] = []
        with closing(read_all(options)) as parts:
            for path, part in parts:
                if isinstance(part, CutDocument):
                    for chunk in part.chunks:
                        chunks.setdefault(digest(chunk.text), chunk)
                elif part is not None:
                    errors.append(unreadable_document(path, part))
        if errors and options.on_bad_document == "stop":
            raise unreadable_documents(Path(options.documents), errors[:10], len(errors))
        for error in errors:
            say(f"  skipped: {error}")
        self.chunks = [*chunks.values()]
        if not self.chunks:
            raise DataError("no text in these documents", path=options.documents)
        self._search = Search(chunk.text for chunk in self.chunks)

    def best(self, question: str, count: int, min_score: float = 0.0) -> list[Chunk]:
        """At most so many chunks that share a word with the question, best first.

        Args:
            question: what is asked.
            count: the maximum.
            min_score: share of the best chunk's score that a chunk needs, but for the best two.
        """
        hits = self._search.scored(question, count)
        return [
            self.chunks[number]
            for place, (number, score) in enumerate(hits)
            if place < 2 or score >= min_score * hits[0][1]
        ]
