"""Choose the chunks that are shown beside an oracle, and where among them it stands."""

import random
from collections.abc import Sequence

from components.errors import ConfigError
from components.records import Chunk


def check_enough(pool: Sequence[Chunk], distractors: int) -> None:
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
    pool: Sequence[Chunk],
    distractors: int,
    oracle_probability: float,
    rng: random.Random,
) -> tuple[list[Chunk], int | None]:
    """The `distractors + 1` chunks of a row in the order shown, and the oracle's position.

    The oracle is kept with the given probability, else a further distractor takes its place and
    the position is None (RAFT paper, section 3: P). Work does not grow with the pool, which may
    or may not hold the oracle.
    """
    keep = rng.random() < oracle_probability
    wanted = distractors if keep else distractors + 1
    # One more than wanted, in case the oracle itself is drawn.
    drawn = rng.sample(range(len(pool)), min(wanted + 1, len(pool)))
    others = [pool[index] for index in drawn if pool[index].id != oracle.id][:wanted]
    if not keep:
        return others, None
    position = rng.randrange(len(others) + 1)
    return [*others[:position], oracle, *others[position:]], position
