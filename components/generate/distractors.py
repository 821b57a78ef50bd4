"""Choose the chunks that a row shows next to its oracle, and the oracle's position."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from components.core.records import Chunk
from components.generate.answers import Unusable
from components.generate.text import find_words

MOST_DRAWS = 200  # for one row, when chunk after chunk holds the answer


def show(
    oracle: Chunk,
    answers: Sequence[str],
    pool: Sequence[int],
    chunk_of: Callable[[int], Chunk],
    distractors: int,
    oracle_probability: float,
    rng: random.Random,
    best: Iterable[int] = (),
) -> tuple[list[Chunk], int | None]:
    """The `distractors + 1` chunks of a row in the order shown, and the oracle's position.

    The oracle is kept with the given probability, else a further distractor takes its place and
    the position is None (RAFT paper, section 3: P). No chunk comes twice, and what answers the
    question in the oracle is in no other chunk; none is a part of a gold question's oracle. Work
    does not grow with the pool, which may or may not hold the oracle.

    Args:
        oracle: the chunk that answers the question.
        answers: texts that answer the question where they stand; those that the oracle does not
            contain forbid nothing.
        pool: numbers of the chunks to choose from.
        chunk_of: a chunk by its number.
        distractors: how many others are shown next to the oracle.
        oracle_probability: the share of rows that show the oracle.
        rng: of this row.
        best: numbers of the chunks to take first; the others are drawn at random.

    Raises:
        Unusable: too few chunks are without the answer.
    """
    keep = rng.random() < oracle_probability
    wanted = distractors if keep else distractors + 1
    # One more than wanted, in case the oracle itself is drawn.
    drawn = rng.sample(pool, min(wanted + 1, len(pool)))
    position = rng.randrange(wanted + 1) if keep else None
    folded = (" ".join(answer.casefold().split()) for answer in answers)
    needles = [needle for needle in folded if _holds(oracle.text, needle)]
    others: dict[str, Chunk] = {}
    for number in chain(best, drawn, _further(pool, rng)):
        if len(others) == wanted:
            break
        chunk = chunk_of(number)
        inside = chunk.id == oracle.id or (oracle.gold is not None and chunk.text in oracle.text)
        if not inside and not any(_holds(chunk.text, needle) for needle in needles):
            others.setdefault(chunk.id, chunk)
    if len(others) < wanted:
        raise Unusable("too few chunks without the answer")
    chunks = list(others.values())
    if position is not None:
        chunks.insert(position, oracle)
    return chunks, position


def _further(pool: Sequence[int], rng: random.Random) -> Iterator[int]:
    yield from rng.sample(pool, min(len(pool), MOST_DRAWS))


def _holds(text: str, needle: str) -> bool:
    folded = text.casefold()
    if needle.partition(" ")[0] not in folded:
        return False
    return find_words(needle, " ".join(folded.split())) >= 0
