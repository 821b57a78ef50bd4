"""Choose the chunks that are shown beside an oracle, and where among them it stands."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from components.errors import ConfigError
from components.generate.answers import Unusable
from components.generate.text import find_words
from components.records import Chunk

MOST_DRAWS = 200  # for one row, when chunk after chunk holds the answer
SPARE_HITS = 24  # of a search, beyond those wanted: for those that hold the answer


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
            f"--distractors {distractors}: the corpus gives {len(pool)} chunks to choose from, "
            f"and a row needs {distractors + 1}",
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

    Its index lies in memory, and a search looks at every chunk that shares a word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        import bm25s

        self._tokenize = bm25s.tokenize
        self._index: Any = bm25s.BM25()
        tokens = self._tokenize(list(texts), stopwords="en", show_progress=False)
        self._size = len(tokens.ids)
        self._index.index(tokens, show_progress=False)

    def best(self, question: str, wanted: int) -> list[int]:
        """Numbers of the best chunks that share a word with the question, best first."""
        tokens = self._tokenize([question], stopwords="en", show_progress=False)
        if not tokens.vocab:
            return []
        numbers, scores = self._index.retrieve(
            tokens, k=min(self._size, wanted + SPARE_HITS), show_progress=False
        )
        return [int(n) for n, score in zip(numbers[0], scores[0], strict=True) if score > 0]
