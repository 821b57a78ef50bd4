"""The page of a dataset: rows by length, and files; and its texts stay text."""

import re
from pathlib import Path

import pytest

from components.core.records import GenerationReport, read_json
from components.generate import page
from tests.generate.test_generate import make_rows


def test_the_page_shows_lengths_and_files(texts: Path, tmp_path: Path) -> None:
    made = make_rows(texts, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "9 train and 1 validation rows from 10 documents" in text
    for name in re.findall(r'<li><a href="([^"]+)"', text):
        assert (tmp_path / "out" / name).exists()
    bars = re.findall(r"– [\d,]+</text>.*?>(\d+)</text>", text)
    assert sum(map(int, bars)) == len(made) == 10


EMPTY = [f"{number} – {number + 2} 0" for number in range(12, 33, 3)]


@pytest.mark.parametrize(
    ("lengths", "bars"),
    [
        ([5], ["5 – 5 1"]),
        ([0, 9, 10, 35], ["0 – 2 1", "3 – 5 0", "6 – 8 0", "9 – 11 2", *EMPTY, "33 – 35 1"]),
        ([], []),
    ],
)
def test_every_row_is_in_one_bar(lengths: list[int], bars: list[str]) -> None:
    svg = page.histogram(lengths)
    labels = re.findall(r">(\d[\d,]* – [\d,]+)</text>.*?>(\d+)</text>", svg)
    assert [" ".join(pair) for pair in labels] == bars


def test_words_from_elsewhere_are_escaped(texts: Path, tmp_path: Path) -> None:
    make_rows(texts, tmp_path / "out")
    report = read_json(tmp_path / "out" / "report.json", GenerationReport)
    changes = {"warnings": ["<script>"], "teacher": "<b>\u202e", "dropped": {"<script>": 1}}
    text = page.render(report.model_copy(update=changes), [1])
    assert not re.search(r"<(script|b>)", text)
    assert "⟨U+202E⟩" in text
