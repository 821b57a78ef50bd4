import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import ConfigError
from components.core.records import Chunk
from components.generate import distractors
from components.generate.answers import Unusable
from components.generate.distractors import Search, check_enough, show

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
        shown, position = show(oracle, "", pool, distractors, probability, rng, first)
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
        shown, position = show(oracle, "kelden", pool, distractors, 1, random.Random(seed))
    except Unusable:
        without = [item for item in pool if "kelden" not in item.text.lower().split()]
        assert len(without) < distractors
        return
    assert position is not None
    for item in shown:
        assert item is oracle or "kelden" not in item.text.lower().split()


def test_an_answer_that_is_no_span_forbids_nothing() -> None:
    pool = [chunk(str(number), "yes, yes") for number in range(5)]
    shown, _ = show(chunk("o", "She was."), "yes", pool, 3, 1, random.Random(0))
    assert len(shown) == 4


def test_the_oracle_is_kept_in_its_share_of_rows_at_every_position() -> None:
    pool = chunks(50)
    positions = [show(pool[0], "", pool, 3, 0.8, random.Random(n))[1] for n in range(4000)]
    assert 0.77 < sum(position is not None for position in positions) / 4000 < 0.83
    for place in range(4):
        assert 0.17 < positions.count(place) / 4000 < 0.23


def test_too_few_chunks() -> None:
    check_enough(chunks(4), 3)
    with pytest.raises(ConfigError, match="gives 3 chunks to choose from, and a row needs 4"):
        check_enough(chunks(3), 3)


def test_a_search_finds_what_fits_the_question() -> None:
    texts = [f"The mayor of town {number} is Ada Voss." for number in range(30)]
    texts[7] = "Sailing ships carry copper over the northern sea."
    texts[19] = "Copper ships are rare."
    search = Search(texts)
    assert search.best("Which ships carry copper?", 2)[:2] == [7, 19]
    assert search.best("zzz qqq", 2) == search.best("", 2) == []


def test_a_search_over_blocks_gives_the_same_chunks_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [
        f"Ship {n} carries {('copper', 'salt', 'wool')[n % 3]} over the sea." for n in range(60)
    ]
    whole = Search(texts)
    assert whole.best("Which ship carries salt?", 3)[:20] == list(range(1, 60, 3))
    monkeypatch.setattr(distractors, "BLOCK_BYTES", 2_000_000)
    filled = [text + " hay" * 350_000 if n in (20, 40) else text for n, text in enumerate(texts)]
    blocks = Search(filled)
    assert [first for first, _ in blocks._blocks] == [0, 41]
    found = blocks.best("Which ship carries salt?", 3)
    assert found == Search(filled).best("Which ship carries salt?", 3)
    assert set(found[:19]) == set(range(1, 60, 3)) - {40}, "40 is long, so its salt counts less"


def test_a_search_looks_up_rare_words_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"The mayor of Town{n} is tall." for n in range(50)]
    search = Search(texts)
    assert set(search.best("Is the mayor of Town7 tall?", 3)) > {7, 8}
    monkeypatch.setattr(distractors, "MOST_MATCHES", 10)
    assert search.best("Is the mayor of Town7 tall?", 3) == [7]
    assert len(search.best("A mayor", 3)) == 27, "one word is always looked up"


def test_words_that_come_once_each_still_make_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardest text for the index's memory, in which order would else depend on chance."""
    monkeypatch.setattr(distractors, "BLOCK_BYTES", 2_000_000)
    rng = random.Random(0)
    texts = (" ".join(f"{rng.getrandbits(28):07x}" for _ in range(1000)) for _ in range(500))
    assert [searcher.num_segments for _, searcher in Search(texts)._blocks] == [1, 1]
