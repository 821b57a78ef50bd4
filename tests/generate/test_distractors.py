import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import ConfigError
from components.generate.distractors import check_enough, show
from components.records import Chunk


def chunks(count: int) -> list[Chunk]:
    return [
        Chunk(id=str(n), document_id=str(n), title="t", text=f"text {n}", start=0, end=6)
        for n in range(count)
    ]


@given(st.integers(0, 8), st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32), st.booleans())
def test_rows_show_distinct_chunks_and_the_oracle_once(
    distractors: int, spare: int, probability: float, seed: int, oracle_in_pool: bool
) -> None:
    pool = chunks(distractors + 2 + spare)
    oracle = pool[0] if oracle_in_pool else chunks(100)[99]
    shown, position = show(oracle, pool, distractors, probability, random.Random(seed))
    ids = [chunk.id for chunk in shown]
    assert len(ids) == len(set(ids)) == distractors + 1
    if position is None:
        assert oracle.id not in ids
    else:
        assert ids[position] == oracle.id and ids.count(oracle.id) == 1


def test_the_oracle_is_kept_in_its_share_of_rows_at_every_position() -> None:
    pool = chunks(50)
    positions = [show(pool[0], pool, 3, 0.8, random.Random(n))[1] for n in range(4000)]
    assert 0.77 < sum(position is not None for position in positions) / 4000 < 0.83
    for place in range(4):
        assert 0.17 < positions.count(place) / 4000 < 0.23


def test_too_few_chunks() -> None:
    check_enough(chunks(4), 3)
    with pytest.raises(ConfigError, match="gives 3 chunks to choose from, and a row needs 4"):
        check_enough(chunks(3), 3)
