"""The official metric on recorded pairs."""

import json
from pathlib import Path

import pytest

from components.core.metrics import contains, normalize, score


def test_identical_to_the_official_script_on_all_recorded_pairs(shared_data: Path) -> None:
    golden = shared_data / "hotpotqa" / "metric_golden.jsonl"
    rows = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1173
    for row in rows:
        found = score(str(row["prediction"]), str(row["answer"]))._asdict()
        assert found == {name: row[name] for name in found}, row


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("U.S.A.", "usa"),
        ("an apple\ta day", "apple day"),
        ("Café “quoted”", "café “quoted”"),
        ("The", ""),
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
    found = score(answer, gold)
    assert (found.f1, found.em) == (pytest.approx(f1), em)


@pytest.mark.parametrize(
    ("generation", "gold", "found"),
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
def test_contains(generation: str, gold: str, found: bool) -> None:
    assert contains(generation, gold) is found
