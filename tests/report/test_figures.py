"""The post's and the paper's tables and figures, of trials with known figures."""

import re
from typing import Any

from components.core.records import ArmResult, CurvePoint, Evaluation, TrainingRecord
from components.report import figures
from components.report.comparison import named, table
from components.report.trial import Trial
from tests.eval.test_findings import arm, evaluation
from tests.report.test_summary import trained


def trial(arms: list[ArmResult], curve: tuple[int, ...] = (), **settings: Any) -> Trial:
    found: Evaluation = evaluation((0, 0, 0), (0, 0, 0), arms=arms, comparisons=[])
    points = [
        CurvePoint(
            arm=one.name, distractors=count, oracle="present", n=200, f1=one.f1 - count / 100,
            f1_ci=(0.1, 0.9), em=0.1, contains=0.1, truncated=0, unanswered=0,
        )
        for one in arms
        for count in curve
    ]  # fmt: skip
    training: TrainingRecord = trained(8)
    training = training.model_copy(update={"settings": {**training.settings, **settings}})
    return Trial(found.model_copy(update={"curve": points}), training, "place")


ANSWER = {"target": "answer"}
METHODS = [
    trial([arm("raft", 0.9)], keep_oracle=0.2),
    trial([arm("base-closed", 0.1), arm("base-rag", 0.3), arm("raft", 0.8)]),
    trial([arm("raft-no-reasoning", 0.6), arm("raft-no-reasoning-4bit", 0.5)], **ANSWER),
    trial([arm("dsf", 0.2), arm("dsf-rag", 0.4)], keep_oracle=0, max_distractors=0, **ANSWER),
]


def test_the_papers_table() -> None:
    found = figures.methods(METHODS)
    assert found is not None and found.headings == ("method", "hotpotqa, base (F1)")
    assert {label: score[:5] for label, score in found.rows} == {
        "Base (no documents)": "0.100", "Base (plain retrieval)": "0.300", "RAFT": "0.800",
        "RAFT without reasoning": "0.600", "DSF (no documents)": "0.200",
        "DSF (documents)": "0.400",
    }  # fmt: skip
    assert figures.methods(METHODS[:1]) is None


def test_the_posts_table_of_ranks_and_layers() -> None:
    trials = [
        trial([arm("base", 0.1), arm("raft", score)], rank=rank, target_modules=modules)
        for rank, modules, score in (
            (16, ["q_proj", "v_proj"], 0.4), (16, ["all-linear"], 0.5), (64, ["all-linear"], 0.6),
        )
    ]  # fmt: skip
    (found,) = figures.ranks_and_layers(trials)
    assert found.headings == ("F1, base", "all-linear", "q_proj, v_proj")
    assert [[cell[:5] for cell in row] for row in found.rows] == [
        ["rank ", "0.500", "0.400"], ["rank ", "0.600", "–"],
    ]  # fmt: skip
    assert not figures.ranks_and_layers(trials[1:])
    assert not figures.ranks_and_layers(METHODS)


def test_the_curve_of_shares() -> None:
    trials = [trial([arm("raft", share / 2)], keep_oracle=share) for share in (1.0, 0.0, 0.4)]
    svg = figures.by_oracle_share([*trials, METHODS[3]])
    assert svg.count("<circle") == 3 and svg.count('class="line"') == 1
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert heights == sorted(heights, reverse=True), "in the order of P, and higher with it"
    assert figures.by_oracle_share(trials[:2]) == ""


def test_the_curves_of_distractors() -> None:
    trials = [trial([arm("raft", 0.5)], (2, 0, 1), max_distractors=count) for count in (2, 0)]
    svg = figures.by_distractors([*trials, METHODS[1]])
    assert svg.count('class="line"') == 2 and svg.count("<circle") == 6
    assert svg.index("trained with 0 distractors") < svg.index("trained with 2 distractors")
    assert figures.by_distractors(trials[:1]) == ""


def test_containment_and_truncation_are_in_the_table() -> None:
    found = table(METHODS)
    cells = dict(zip(found.headings, found.rows[1], strict=True))
    assert (cells["contains answer, raft"], cells["cut off, raft"]) == ("0.700", "0.0%")
    assert cells["contains answer, dsf"] == "–"
    assert not any("contains answer, base" in heading for heading in found.headings)


def test_trials_are_named_by_what_they_differ_in() -> None:
    names = [named(one, METHODS) for one in METHODS]
    assert names[0] == "base, target reasoning, keep oracle 0.2, max distractors -1"
    assert names[3] == "base, target answer, keep oracle 0, max distractors 0"
