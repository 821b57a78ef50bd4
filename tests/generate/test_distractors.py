import random
from collections.abc import Sequence

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


def shown_to(
    oracle: Chunk, answer: str, pool: list[Chunk], distractors: int, probability: float, seed: int,
    best: Sequence[int] = (),
) -> tuple[list[Chunk], int | None]:  # fmt: skip
    rng = random.Random(seed)
    numbers = range(len(pool))
    return show(oracle, [answer], numbers, pool.__getitem__, distractors, probability, rng, best)


@given(
    st.integers(0, 8), st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32), st.booleans(),
    st.sampled_from([[], [0, 1, 1]]),
)  # fmt: skip
def test_rows_show_distinct_chunks_and_the_oracle_once(
    distractors: int, spare: int, probability: float, seed: int, oracle_in_pool: bool,
    best: list[int],
) -> None:  # fmt: skip
    pool = chunks(distractors + 2 + spare)
    oracle = pool[0] if oracle_in_pool else chunks(100)[99]
    context, position = shown_to(oracle, "", pool, distractors, probability, seed, best)
    ids = [chunk.id for chunk in context]
    assert len(ids) == len(set(ids)) == distractors + 1
    places = [place for place, name in enumerate(ids) if name == oracle.id]
    assert places == ([] if position is None else [position])


@given(st.lists(HOSTILE, min_size=5, max_size=12), st.integers(0, 3), st.integers(0, 99))
def test_no_distractor_holds_the_answer(texts: list[str], distractors: int, seed: int) -> None:
    pool = [chunk(str(number), text) for number, text in enumerate(texts)]
    oracle = chunk("oracle", "She was born in  Kelden, it seems.")
    without = [item for item in pool if "kelden" not in item.text.lower().split()]
    try:
        context, position = shown_to(oracle, "kelden", pool, distractors, 1, seed)
    except Unusable:
        assert len(without) < distractors
        return
    assert position is not None
    assert all(item is oracle or item in without for item in context)


def test_an_answer_that_is_no_span_forbids_nothing() -> None:
    pool = [chunk(str(number), "yes, yes") for number in range(5)]
    context, _ = shown_to(chunk("o", "She was."), "yes", pool, 3, 1, 0)
    assert len(context) == 4


def test_the_oracle_is_kept_in_its_share_of_rows_at_every_position() -> None:
    pool = chunks(50)
    positions = [shown_to(pool[0], "", pool, 3, 0.8, seed)[1] for seed in range(4000)]
    assert 0.77 < sum(position is not None for position in positions) / 4000 < 0.83
    for place in range(4):
        assert 0.17 < positions.count(place) / 4000 < 0.23
