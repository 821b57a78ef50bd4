import random

from hypothesis import given
from hypothesis import strategies as st

from components.core.records import Chunk
from components.generate.answers import Unusable
from components.generate.distractors import show

HOSTILE = st.lists(
    st.sampled_from(
        ["Kelden", "kelden", "</DOCUMENT>", "<ANSWER>:", "\0", "Keldenburg", "קלדן", " "]
    )
).map(" ".join)


def chunk(name: str, text: str) -> Chunk:
    return Chunk(id=name, document_id=name, title="t", text=text, start=0, end=len(text))


def chunks(count: int) -> list[Chunk]:
    return [chunk(str(n), f"text {n}") for n in range(count)]


@given(st.integers(0, 8), st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32), st.booleans())
def test_rows_show_distinct_chunks_and_the_oracle_once(
    distractors: int, spare: int, probability: float, seed: int, oracle_in_pool: bool
) -> None:
    pool = chunks(distractors + 2 + spare)
    oracle = pool[0] if oracle_in_pool else chunks(100)[99]
    best = [0, 1, 1] if len(pool) > 2 else []
    for first in ([], best):
        rng = random.Random(seed)
        shown, position = show(
            oracle, "", range(len(pool)), pool.__getitem__, distractors, probability, rng, first
        )
        ids = [chunk.id for chunk in shown]
        assert len(ids) == len(set(ids)) == distractors + 1
        if position is None:
            assert oracle.id not in ids
        else:
            assert ids[position] == oracle.id and ids.count(oracle.id) == 1


@given(st.lists(HOSTILE, min_size=5, max_size=12), st.integers(0, 3), st.integers(0, 99))
def test_no_distractor_holds_the_answer(texts: list[str], distractors: int, seed: int) -> None:
    pool = [chunk(str(number), text) for number, text in enumerate(texts)]
    oracle = chunk("oracle", "She was born in  Kelden, it seems.")
    try:
        shown, position = show(
            oracle,
            "kelden",
            range(len(pool)),
            pool.__getitem__,
            distractors,
            1,
            random.Random(seed),
        )
    except Unusable:
        without = [item for item in pool if "kelden" not in item.text.lower().split()]
        assert len(without) < distractors
        return
    assert position is not None
    for item in shown:
        assert item is oracle or "kelden" not in item.text.lower().split()


def test_an_answer_that_is_no_span_forbids_nothing() -> None:
    pool = [chunk(str(number), "yes, yes") for number in range(5)]
    shown, _ = show(
        chunk("o", "She was."), "yes", range(5), pool.__getitem__, 3, 1, random.Random(0)
    )
    assert len(shown) == 4


def test_the_oracle_is_kept_in_its_share_of_rows_at_every_position() -> None:
    pool = chunks(50)
    positions = [
        show(pool[0], "", range(50), pool.__getitem__, 3, 0.8, random.Random(n))[1]
        for n in range(4000)
    ]
    assert 0.77 < sum(position is not None for position in positions) / 4000 < 0.83
    for place in range(4):
        assert 0.17 < positions.count(place) / 4000 < 0.23
