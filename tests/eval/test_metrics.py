"""The official metric on recorded pairs."""

import json
from pathlib import Path

import pytest

from components.core.metrics import contains, normalize, score
from tests.conftest import DATA, MORE_DATA

GOLDEN = {DATA / "metric_golden.jsonl": 90, MORE_DATA / "hotpotqa" / "metric_golden.jsonl": 1173}


@pytest.mark.parametrize("golden", [path for path in GOLDEN if path.exists()])
def test_identical_to_the_official_script_on_all_recorded_pairs(golden: Path) -> None:
    rows = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == GOLDEN[golden]
    for row in rows:
        scores = score(str(row["prediction"]), str(row["answer"]))._asdict()
        assert scores == {name: row[name] for name in scores}, row


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("U.S.A.", "usa"),
        ("an apple\ta day", "apple day"),
        ("Café “quoted”", "café “quoted”"),
        ("The", ""),
        ("ﬁrst oﬃce, ﬆand", "first office stand"),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "em"),
    [
        ("Yes.", "yes", 1.0, 1.0),
        ("yes, she was", "yes", 0.0, 0.0),
        ("no", "no, she was not", 0.0, 0.0),
        ("Kelden", "in Kelden", 2 / 3, 0.0),
        ("", "Kelden", 0.0, 0.0),
        ("x x b b", "b c", 1 / 3, 0.0),
    ],
)
def test_score(answer: str, gold: str, f1: float, em: float) -> None:
    scores = score(answer, gold)
    assert (scores.f1, scores.em) == (pytest.approx(f1), em)


@pytest.mark.parametrize(
    ("generation", "gold", "contained"),
    [
        ("She was born in the Kelden valley.", "Kelden Valley", True),
        ("She was born in Keldenburg.", "Kelden", False),
        ("##begin_quote##Kelden##end_quote##", "Kelden", True),
        ("<ANSWER>:Kelden", "Kelden", True),
        ("Ada, not Bram, Voss", "Ada Voss", False),
        ("anything", "The", False),
        ("The!", "a", True),
    ],
)
def test_contains(generation: str, gold: str, contained: bool) -> None:
    assert contains(generation, gold) is contained
