"""Choose the chunks that are shown beside an oracle, and where among them it stands."""

import itertools
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from components.core.describe import counted
from components.core.errors import ConfigError
from components.core.records import Chunk
from components.generate.answers import Unusable
from components.generate.text import find_words

MOST_DRAWS = 200  # for one row, when chunk after chunk holds the answer
SPARE_HITS = 24  # of a search, beyond those wanted: for those that hold the answer
MOST_MATCHES = 100_000  # of the words of one search, in all chunks together
BLOCK_BYTES = 256_000_000  # of text in one block of the index
FIELD = "text"


class Chunks(Protocol):
    """Chunks by their place; a list of them, or a pool of a corpus on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Chunk: ...


def check_enough(pool: Chunks, distractors: int) -> None:
    """Every row shows `distractors + 1` different chunks; refuse a corpus that has fewer.

    Raises:
        ConfigError: says how many there are and what to change.
    """
    if len(pool) < distractors + 1:
        raise ConfigError(
            f"--distractors {distractors}: the corpus gives {counted(len(pool), 'chunk')} to "
            f"choose from, and a row needs {distractors + 1}",
            hint="Add documents, lower --distractors, or cut smaller with --chunk-tokens.",
        )


def show(
    oracle: Chunk,
    answer: str,
    pool: Chunks,
    distractors: int,
    oracle_probability: float,
    rng: random.Random,
    best: Sequence[int] = (),
) -> tuple[list[Chunk], int | None]:
    """The `distractors + 1` chunks of a row in the order shown, and the oracle's position.

    The oracle is kept with the given probability, else a further distractor takes its place and
    the position is None (RAFT paper, section 3: P). No chunk comes twice, and where the answer is
    a span of the oracle, no other chunk holds it. Work does not grow with the pool, which may or
    may not hold the oracle.

    Args:
        oracle: the chunk that answers the question.
        answer: the answer.
        pool: chunks to choose from.
        distractors: how many others stand beside the oracle.
        oracle_probability: the share of rows that show the oracle.
        rng: of this row.
        best: places in the pool of the chunks to take first; the others are drawn at random.

    Raises:
        Unusable: too few chunks are without the answer.
    """
    keep = rng.random() < oracle_probability
    wanted = distractors if keep else distractors + 1
    # One more than wanted, in case the oracle itself is drawn.
    drawn = rng.sample(range(len(pool)), min(wanted + 1, len(pool)))
    position = rng.randrange(wanted + 1) if keep else None
    others = _fitting([*best, *drawn], oracle, answer, pool, wanted, rng)
    if len(others) < wanted:
        raise Unusable("too few chunks without the answer")
    if position is None:
        return others, None
    return [*others[:position], oracle, *others[position:]], position


def _fitting(
    places: Iterable[int],
    oracle: Chunk,
    answer: str,
    pool: Chunks,
    wanted: int,
    rng: random.Random,
) -> list[Chunk]:
    """The first chunks that may stand beside the oracle; after those at `places`, drawn ones."""
    needle = _plain(answer)
    is_span = bool(needle) and find_words(needle, _plain(oracle.text)) >= 0
    found: dict[str, Chunk] = {}
    for place in _and_more(places, len(pool), rng):
        if len(found) == wanted:
            break
        chunk = pool[place]
        if chunk.id == oracle.id or chunk.id in found:
            continue
        if not (is_span and _holds(chunk.text, needle)):
            found[chunk.id] = chunk
    return list(found.values())


def _and_more(places: Iterable[int], size: int, rng: random.Random) -> Iterator[int]:
    yield from places
    yield from rng.sample(range(size), min(size, MOST_DRAWS))


def _holds(text: str, needle: str) -> bool:
    folded = text.casefold()
    if needle.partition(" ")[0] not in folded:
        return False
    return find_words(needle, " ".join(folded.split())) >= 0


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class Search:
    """The chunks whose words fit a question best: BM25 (Robertson and Zaragoza 2009).

    The index lies on disk, in blocks that count words for themselves. Of a question's words the
    rarest are looked up, as many as stand in `MOST_MATCHES` chunks together: so a search takes no
    longer in a larger corpus.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        import tantivy

        self._tantivy = tantivy
        language = tantivy.Filter.stopword("english"), tantivy.Filter.stemmer("english")
        analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for each in (tantivy.Filter.remove_long(64), tantivy.Filter.lowercase(), *language):
            analyzer = analyzer.filter(each)
        self._analyzer = analyzer.build()
        schema = tantivy.SchemaBuilder()
        schema.add_text_field(FIELD, tokenizer_name=FIELD, index_option="freq")
        self._schema = schema.build()
        self._folder = tempfile.TemporaryDirectory(prefix="raft-search-")
        self._blocks: list[tuple[int, Any]] = []  # the first chunk's number, and its searcher
        numbered = enumerate(texts)
        for first, text in numbered:
            self._blocks.append((first, self._block(first, text, numbered)))

    def _block(self, first: int, text: str, following: Iterator[tuple[int, str]]) -> Any:
        """Index `text` and those that follow, until the block is full.

        One thread and memory enough for the block make one segment, in which chunks that score
        the same come in the corpus's order, in every run.
        """
        folder = Path(self._folder.name) / str(first)
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
        """Numbers of the best chunks that share a word with the question, best first."""
        query = self._tantivy.Query.boolean_query(
            [(self._tantivy.Occur.Should, word) for word in self._rarest(question)]
        )
        found = [
            (-score, first + hit.doc)
            for first, searcher in self._blocks
            for score, hit in searcher.search(query, wanted + SPARE_HITS, count=False).hits
        ]
        return [number for _, number in sorted(found)[: wanted + SPARE_HITS]]

    def _rarest(self, question: str) -> list[Any]:
        """Queries for the words of a question that stand in few chunks; at least for one word."""
        matches = {
            word: sum(searcher.doc_freq(FIELD, word) for _, searcher in self._blocks)
            for word in self._analyzer.analyze(question)
        }
        rarest = sorted(filter(matches.get, matches), key=lambda word: (matches[word], word))
        total = itertools.accumulate(matches[word] for word in rarest)
        return [
            self._tantivy.Query.term_query(self._schema, FIELD, word, index_option="freq")
            for place, (word, so_far) in enumerate(zip(rarest, total, strict=True))
            if so_far <= MOST_MATCHES or not place
        ]
