"""Find the chunks whose words fit a question best: BM25 (Robertson and Zaragoza 2009).

The index is on disk, in blocks that count words for themselves. Of a question's words the rarest
are looked up, as many as occur in `MAX_MATCHES` chunks together: so a search takes no longer in a
larger corpus.
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.core.storage import scratch

MAX_MATCHES = 100_000  # of the words of one search, in all chunks together
BLOCK_BYTES = 256_000_000  # of text in one block of the index
FIELD = "text"


class Search:
    """An index of chunks, numbered in their order."""

    def __init__(self, texts: Iterable[str]) -> None:
        import tantivy

        self._tantivy = tantivy
        analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for step in (
            tantivy.Filter.remove_long(64), tantivy.Filter.lowercase(),
            tantivy.Filter.stopword("english"), tantivy.Filter.stemmer("english"),
        ):  # fmt: skip
            analyzer = analyzer.filter(step)
        self._analyzer = analyzer.build()
        schema = tantivy.SchemaBuilder()
        schema.add_text_field(FIELD, tokenizer_name=FIELD, index_option="freq")
        self._schema = schema.build()
        self._blocks: list[tuple[int, Any]] = []  # the first chunk's number, and its searcher
        numbered = enumerate(texts)
        # The searchers hold their files open, so nothing is left on disk once they are made; what a
        # killed process leaves goes when the next index is made.
        with scratch("search", FIELD) as folder:
            for first, text in numbered:
                self._blocks.append((first, self._block(folder / str(first), text, numbered)))

    def _block(self, folder: Path, text: str, following: Iterator[tuple[int, str]]) -> Any:
        """Index `text` and those that follow, until the block is full.

        One thread and memory enough for the block make one segment, in which chunks that score
        the same come in the corpus's order, in every run.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        index = self._tantivy.Index(self._schema, path=str(folder))
        index.register_tokenizer(FIELD, self._analyzer)
        writer = index.writer(heap_size=15 * BLOCK_BYTES, num_threads=1)
        size = len(text)
        writer.add_document(self._tantivy.Document(**{FIELD: text}))
        while size < BLOCK_BYTES and (more := next(following, None)):
            size += len(more[1])
            writer.add_document(self._tantivy.Document(**{FIELD: more[1]}))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return index.searcher()

    def best(self, question: str, wanted: int) -> list[int]:
        """Numbers of at most so many chunks that share a word with the question, best first."""
        return [number for number, _ in self.scored(question, wanted)]

    def scored(self, question: str, wanted: int) -> list[tuple[int, float]]:
        """The same, with their scores."""
        query = self._tantivy.Query.boolean_query(
            [(self._tantivy.Occur.Should, word) for word in self._rarest(question)]
        )
        hits = [
            (-score, first + hit.doc)
            for first, searcher in self._blocks
            for score, hit in searcher.search(query, wanted, count=False).hits
        ]
        return [(number, -score) for score, number in sorted(hits)[:wanted]]

    def _rarest(self, question: str) -> list[Any]:
        """Queries for the words of a question that occur in few chunks; at least for one word."""
        matches = {
            word: sum(searcher.doc_freq(FIELD, word) for _, searcher in self._blocks)
            for word in self._analyzer.analyze(question)
        }
        rarest = sorted(filter(matches.get, matches), key=lambda word: (matches[word], word))
        totals = itertools.accumulate(matches[word] for word in rarest)
        return [
            self._tantivy.Query.term_query(self._schema, FIELD, word, index_option="freq")
            for place, (word, total) in enumerate(zip(rarest, totals, strict=True))
            if total <= MAX_MATCHES or not place
        ]
