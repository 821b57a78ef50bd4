"""Sentences claim what the intervals allow, and nothing else."""

import pytest

from components.core.records import ArmResult, Comparison, Evaluation
from components.eval import findings, report, scores
from components.eval.arms import ARMS
from components.eval.inference import ArmRun
from tests.core.test_kubeflow import REPORT as QUANTIZATION
from tests.eval.conftest import make_sample


def arm(name: str, f1: float = 0.5, **changes: object) -> ArmResult:
    entry = ARMS[name]
    fields = {
        "name": name,
        "label": entry.label,
        "tuned": entry.adapter is not None,
        "bits": entry.bits,
        "prompt": entry.prompt,
        "adapter": entry.adapter or "",
        "f1": f1,
        "em": f1,
        "precision": f1,
        "recall": f1,
        "n": 200,
        "contains": 0.7,
        "truncated": 0.0,
        "unanswered": 0.0,
        "f1_ci": (f1 - 0.05, f1 + 0.05),
        "em_ci": (f1 - 0.05, f1 + 0.05),
        "contains_ci": (0.65, 0.75),
        "weight_bytes": 1000,
        **changes,
    }
    return ArmResult.model_validate(fields)


def evaluation(
    f1: tuple[float, float, float], contains: tuple[float, float, float], **changes: object
) -> Evaluation:
    """RAFT against its base: difference, low, high of both metrics."""
    fields = {
        "task": "hotpotqa",
        "base_model": "base",
        "dtype": "bfloat16",
        "questions": 200,
        "max_new_tokens": 800,
        "seed": 0,
        "arms": [arm("base", 0.2), arm("raft", 0.2 + f1[0])],
        "comparisons": [
            Comparison(
                arm="raft",
                baseline="base",
                metric=metric,
                difference=effect[0],
                ci=effect[1:],
                p_value=0.5,
            )
            for metric, effect in (("f1", f1), ("contains", contains))
        ],
        "retention": None,
        "memory_ratio": None,
        "warnings": [],
        **changes,
    }
    return Evaluation.model_validate(fields)


@pytest.mark.parametrize(
    ("f1", "contains", "sentence"),
    [
        ((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), "most of it is form and brevity"),
        ((0.4, 0.3, 0.5), (0.1, -0.1, 0.3), "too few to show"),
        ((0.4, 0.3, 0.5), (-0.2, -0.3, -0.1), "most of it is form and brevity"),
        ((0.4, 0.3, 0.5), (0.1, 0.05, 0.15), "25% of the gain is substance"),
        ((0.1, 0.05, 0.2), (0.2, 0.1, 0.3), "100% of the gain is substance"),
        ((0.0, -0.1, 0.1), (0.2, 0.1, 0.3), "no F1 difference beyond chance"),
        ((-0.1, -0.2, -0.05), (0.0, -0.1, 0.1), "the loss may be one of form"),
        ((-0.1, -0.2, -0.05), (-0.2, -0.3, -0.1), "not only one of form"),
    ],
)
def test_form_or_substance(
    f1: tuple[float, float, float], contains: tuple[float, float, float], sentence: str
) -> None:
    text = " ".join(findings.form_or_substance(evaluation(f1, contains)))
    assert sentence in text
    assert findings.signed(f1[0]) in text


@pytest.mark.parametrize(
    ("f1", "sentence"),
    [
        ((0.4, 0.3, 0.5), "RAFT raises F1 from 0.200 to 0.600 (3.0 times) on 200 questions."),
        ((-0.1, -0.2, -0.05), "RAFT lowers F1 from 0.200 to 0.100 on 200 questions."),
        (
            (0.0, -0.1, 0.1),
            "RAFT and its base cannot be distinguished on 200 questions: F1 0.200 against 0.200.",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(
    f1: tuple[float, float, float], sentence: str
) -> None:
    assert findings.verdict(evaluation(f1, f1)) == sentence


def compared(arm: str, baseline: str, low: float, high: float) -> Comparison:
    middle = (low + high) / 2
    return Comparison(
        arm=arm, baseline=baseline, metric="f1", difference=middle, ci=(low, high), p_value=0.5
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.05, 0.15, ""),
        (-0.01, 0.15, "; RAFT is not shown to beat Base (two examples), 16-bit, with F1 0.500: "),
        (-0.2, -0.1, "; RAFT does worse than Base (two examples), 16-bit, with F1 0.500: "),
    ],
)
def test_a_prompt_that_does_as_well_stands_in_the_headline(
    low: float, high: float, words: str
) -> None:
    figures = evaluation((0.4, 0.3, 0.5), (0, 0, 0))
    rest = [
        compared("raft", "base-rag", -0.5, 0.5),
        compared("raft", "base-examples", low, high),
        compared("base-examples", "base", 0.2, 0.4),
        compared("raft-no-reasoning", "base", 0.1, 0.2),
        compared("dsf", "base-closed", 0.7, 0.8),
    ]
    names = ("base-rag", "base-examples", "base-closed", "raft-no-reasoning", "dsf")
    pairs = [
        item.model_copy(update={"metric": metric})
        for item in reversed(rest)
        for metric in ("f1", "contains")
    ]
    figures = figures.model_copy(
        update={
            "arms": [*map(arm, names), *figures.arms],
            "comparisons": [*pairs, *figures.comparisons],
        }
    )
    sentence = findings.verdict(figures)
    assert sentence.startswith("RAFT raises F1 from 0.200 to 0.600")
    assert (words in sentence) if words else sentence.endswith("200 questions.")
    page = report.render(figures, [], None)
    assert "Base (two examples), 16-bit − Base, 16-bit" in page
    assert "RAFT, 16-bit − Base (two examples), 16-bit" in page


def test_one_arm_alone_has_a_verdict_too() -> None:
    alone = evaluation((0, 0, 0), (0, 0, 0), arms=[arm("raft-4bit", 0.6)], comparisons=[])
    assert findings.verdict(alone) == "RAFT, 4-bit reaches F1 0.600 on 200 questions."
    assert findings.form_or_substance(alone) == ["Needs a tuned arm and its base side by side."]


def test_four_bits_are_held_against_full_precision() -> None:
    quantized = arm("raft-4bit", 0.6, weight_bytes=300)
    arms = [arm("raft", 0.8), quantized]
    assert scores.retention(arms) == 0.75
    assert scores.memory_ratio(arms) == 0.3
    assert scores.retention([arm("raft", 0.0), quantized]) is None
    assert scores.retention([arm("base")]) is None
    assert scores.memory_ratio([arm("raft")]) is None


def test_the_base_models_weights_are_measured_where_both_ran() -> None:
    sizes = {"base": 1000, "raft": 1100, "base-4bit": 300, "raft-4bit": 400}
    arms = [arm(name, weight_bytes=size) for name, size in reversed(sizes.items())]
    assert scores.memory_ratio(arms) == 0.3


def test_warnings_begin_above_two_percent() -> None:
    arms = [
        arm("base", truncated=0.9, unanswered=1.0),
        arm("raft", truncated=0.02, unanswered=0.02, empty=0.02),
        arm("raft-4bit", truncated=0.021, unanswered=0.5, empty=0.03),
    ]
    base, cut, empty, silent = findings.find_warnings(arms, 800)
    assert base.startswith("base: 90.0% of the generations were cut off at 800 tokens")
    assert empty == "raft-4bit: 3.0% of the generations are empty."
    assert cut.startswith("raft-4bit: 2.1% of the generations were cut off at 800 tokens")
    assert "raise --max-new-tokens" in cut
    assert silent.startswith("raft-4bit: 50.0% of the generations give no answer")


BAD = {"truncated": 0.8, "looping": 0.7, "unanswered": 0.8}


@pytest.mark.parametrize(
    ("full", "small", "named", "unnamed"),
    [
        ({}, BAD, "raft does not, so 4-bit weights are at fault", "max-new-tokens"),
        (BAD, BAD, "the adapter is at fault: train longer", "4-bit weights are at fault"),
        ({}, BAD | {"looping": 0.3}, "raise --max-new-tokens", "adapter is at fault"),
    ],
)
def test_who_is_to_blame_for_answers_that_do_not_end(
    full: dict[str, float], small: dict[str, float], named: str, unnamed: str
) -> None:
    warnings = findings.find_warnings([arm("raft", **full), arm("raft-4bit", **small)], 800)
    (cut,) = (text for text in warnings if text.startswith("raft-4bit") and "cut off" in text)
    assert named in cut and unnamed not in cut
    (silent,) = (text for text in warnings if text.startswith("raft-4bit") and "marker" in text)
    assert ("4-bit weights are at fault" in silent) == (not full)


@pytest.mark.parametrize(
    ("retention", "cut", "collapse"),
    [(0.95, 0.05, ""), (0.14, 0.88, "88.0% cut off; 14.0% of F1 kept"), (0.95, 0.06, "6.0% cut")],
)
def test_a_pass_is_not_shown_beside_a_collapse(retention: float, cut: float, collapse: str) -> None:
    arms = [arm("base"), arm("raft"), arm("raft-4bit", truncated=cut)]
    figures = evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), arms=arms, retention=retention)
    passed = QUANTIZATION.model_copy(update={"outcome": "pass", "verdict": "PASS: fine"})
    note, holds = findings.about_quantization(figures, passed)
    assert holds == (not collapse) and ("PASS" in note) == (not collapse)
    assert collapse in note
    failed = QUANTIZATION.model_copy(update={"outcome": "fail", "verdict": "FAIL: loops"})
    assert findings.about_quantization(figures, failed) == ("FAIL: loops.", True)
    page = report.render(figures, [], passed)
    assert note in page and ("PASS" in page) == (not collapse)


def test_only_arms_that_ran_are_compared() -> None:
    def ran(name: str) -> ArmRun:
        return ArmRun(ARMS[name], [make_sample(name), make_sample(name)], [], 0, 0, 0.0, 1)

    comparisons = scores.compare_arms([ran("base"), ran("raft"), ran("raft-4bit")], 0)
    assert [(item.arm, item.baseline, item.metric) for item in comparisons] == [
        ("raft", "base", "f1"),
        ("raft", "base", "contains"),
        ("raft-4bit", "raft", "f1"),
        ("raft-4bit", "raft", "contains"),
    ]


def test_few_questions_allow_no_conclusion() -> None:
    arms = [arm("base", 0.2, n=29), arm("raft", 0.6, n=29)]
    few = evaluation((0.4, 0.3, 0.5), (0.2, 0.1, 0.3), questions=29, arms=arms)
    assert findings.verdict(few) == (
        "F1 is 0.600 with RAFT and 0.200 without, on 29 questions, too few for conclusions."
    )
    assert "substance" not in " ".join(findings.form_or_substance(few))
    (warning,) = findings.find_warnings(arms, 800)
    assert warning.startswith("29 questions: too few for conclusions")
    assert not findings.find_warnings([arm("base", n=30)], 800)


def test_a_missing_marker_is_a_fault_only_where_the_prompt_asks_for_it() -> None:
    assert not findings.find_warnings([arm("raft-rag", unanswered=0.5)], 800)
    assert findings.find_warnings([arm("raft", unanswered=0.5)], 800)
