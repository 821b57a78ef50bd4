import random

import pytest

from components.core.corpus import bm25
from components.core.corpus.bm25 import Search


def test_a_search_finds_what_fits_the_question() -> None:
    texts = [f"The mayor of town {number} is Ada Voss." for number in range(30)]
    texts[7] = "Sailing ships carry copper over the northern sea."
    texts[19] = "Copper ships are rare."
    search = Search(texts)
    assert search.best("Which ships carry copper?", 2) == [7, 19]
    assert search.best("zzz qqq", 2) == search.best("", 2) == []


def test_a_search_over_blocks_gives_the_same_chunks_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [
        f"Ship {n} carries {('copper', 'salt', 'wool')[n % 3]} over the sea." for n in range(60)
    ]
    whole = Search(texts)
    assert whole.best("Which ship carries salt?", 27)[:20] == list(range(1, 60, 3))
    monkeypatch.setattr(bm25, "BLOCK_BYTES", 2_000_000)
    filled = [text + " hay" * 350_000 if n in (20, 40) else text for n, text in enumerate(texts)]
    blocks = Search(filled)
    assert [first for first, _ in blocks._blocks] == [0, 41]
    best = blocks.best("Which ship carries salt?", 27)
    assert best == Search(filled).best("Which ship carries salt?", 27)
    assert set(best[:19]) == set(range(1, 60, 3)) - {40}, "40 is long, so its salt counts less"


def test_a_search_looks_up_rare_words_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"The mayor of Town{n} is tall." for n in range(50)]
    search = Search(texts)
    assert set(search.best("Is the mayor of Town7 tall?", 27)) > {7, 8}
    monkeypatch.setattr(bm25, "MAX_MATCHES", 10)
    assert search.best("Is the mayor of Town7 tall?", 27) == [7]
    assert len(search.best("A mayor", 27)) == 27, "one word is always looked up"


def test_words_that_come_once_each_still_make_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardest text for the index's memory, in which order would else depend on chance."""
    monkeypatch.setattr(bm25, "BLOCK_BYTES", 2_000_000)
    rng = random.Random(0)
    texts = (" ".join(f"{rng.getrandbits(28):07x}" for _ in range(1000)) for _ in range(500))
    assert [searcher.num_segments for _, searcher in Search(texts)._blocks] == [1, 1]
