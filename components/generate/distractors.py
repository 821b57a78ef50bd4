"""Choose the chunks that a row shows next to its oracle, and the oracle's position."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

from components.core.describe import counted
from components.core.errors import ConfigError
from components.core.records import Chunk
from components.generate.answers import Unusable
from components.generate.text import find_words

MOST_DRAWS = 200  # for one row, when chunk after chunk holds the answer


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
        distractors: how many others are shown next to the oracle.
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
    needle = _plain(answer)
    is_span = bool(needle) and find_words(needle, _plain(oracle.text)) >= 0
    others: dict[str, Chunk] = {}
    for place in chain(best, drawn, _further(len(pool), rng)):
        if len(others) == wanted:
            break
        chunk = pool[place]
        if chunk.id != oracle.id and not (is_span and _holds(chunk.text, needle)):
            others.setdefault(chunk.id, chunk)
    if len(others) < wanted:
        raise Unusable("too few chunks without the answer")
    chunks = list(others.values())
    if position is not None:
        chunks.insert(position, oracle)
    return chunks, position


def _further(size: int, rng: random.Random) -> Iterator[int]:
    yield from rng.sample(range(size), min(size, MOST_DRAWS))


def _holds(text: str, needle: str) -> bool:
    folded = text.casefold()
    if needle.partition(" ")[0] not in folded:
        return False
    return find_words(needle, " ".join(folded.split())) >= 0


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
