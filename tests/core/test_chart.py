"""The chart of F1: every arm's bar, whisker and figure, in SVG that holds no foreign markup."""

from xml.etree import ElementTree

import pytest

from components.core.chart import COLORS, LONGEST_NAME, f1_chart, round_up
from components.core.records import ArmResult
from tests.eval.test_findings import arm


def shapes(svg: str, kind: str) -> list[dict[str, str]]:
    return [element.attrib for element in ElementTree.fromstring(svg).iter(kind)]


def test_bars_are_as_long_as_the_scores_and_coloured_by_what_the_arms_are() -> None:
    arms = [arm("base", 0.1), arm("raft", 0.4), arm("base-4bit", 0.05), arm("raft-4bit", 0.2)]
    bars = shapes(f1_chart([("one", arms[:2]), ("two", arms[2:])]), "rect")
    widths = [float(bar["width"]) for bar in bars]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 4, 0.5, 2], abs=0.01)
    assert [bar["fill"] for bar in bars] == [COLORS[item.tuned, item.bits] for item in arms]


@pytest.mark.parametrize(("n", "whiskers"), [(1, 0), (2, 1)])
def test_one_question_has_no_whisker(n: int, whiskers: int) -> None:
    paths = shapes(f1_chart([("", [arm("raft", n=n)])]), "path")
    assert sum(path["class"] == "whisker" for path in paths) == whiskers


def test_names_of_folders_stay_text_and_short() -> None:
    hostile = arm("raft").model_copy(update={"name": "raft:<script>alert(1)</script>" * 20})
    svg = f1_chart([("<b>&", [hostile])])
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]
    assert texts[0] == "<b>&" and texts[1] == "raft:<script…"
    assert len(texts[1]) == LONGEST_NAME


@pytest.mark.parametrize(
    ("score", "end"), [(0.0, 0.1), (0.11, 0.2), (0.2, 0.2), (0.93, 1.0), (1.0, 1.0)]
)
def test_an_axis_ends_at_the_next_tenth(score: float, end: float) -> None:
    assert round_up(score) == end


def test_no_arms_make_an_empty_chart() -> None:
    nothing: list[tuple[str, list[ArmResult]]] = []
    assert not shapes(f1_chart(nothing), "rect")
