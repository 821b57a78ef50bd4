"""Figures about quotes and refusals, from judged samples."""

import pytest

from components.core.records import Sample
from components.eval.arms import ARMS
from components.eval.inference import ArmRun
from components.eval.scores import abstention, curve, retention, score_arm
from tests.eval.conftest import make_sample


def arm_run(*layouts: list[Sample]) -> ArmRun:
    samples, *others = layouts
    return ArmRun(ARMS["raft"], samples, others, 0, 0, 0.0, None)


def present(count: int, answer: str = "Kelden") -> list[Sample]:
    return [make_sample(answer=answer) for _ in range(count)]


def absent(count: int, answer: str = "Not in the documents.") -> list[Sample]:
    return [make_sample(answer=answer, oracle="absent", oracle_indices=[]) for _ in range(count)]


def test_precision_and_recall_of_refusals() -> None:
    answers = present(7) + present(1, "not in the documents")
    result, checked = abstention([arm_run(answers, absent(3) + absent(1, "Mossby"))], 0)
    assert checked == result.model_copy(update={"quotes_checked": True}), "no quotes"
    assert (result.absent, result.refused, result.recall, result.precision) == (4, 4, 0.75, 0.75)
    assert result.precision_ci is not None
    for low, high in (result.recall_ci, result.precision_ci):
        assert 0 <= low < 0.75 < high <= 1


@pytest.mark.parametrize(
    ("layouts", "recall"),
    [((absent(4),), 1.0), ((present(4), absent(4, "Mossby")), 0.0)],
)
def test_precision_is_not_known_without_refusals_or_without_oracles(
    layouts: tuple[list[Sample], ...], recall: float
) -> None:
    result, _ = abstention([arm_run(*layouts)], 0)
    assert (result.recall, result.precision, result.precision_ci) == (recall, None, None)


def test_with_quotes_checked_an_answer_with_a_fabricated_quote_is_a_refusal() -> None:
    fabricated = {"quotes": 2, "quotes_verbatim": 1, "f1": 1.0}
    with_oracle = [make_sample(**fabricated), *[make_sample(f1=1.0) for _ in range(3)]]
    without = [
        make_sample(oracle="absent", **fabricated),
        make_sample(oracle="absent", answer="Mossby", quotes=1, quotes_verbatim=1),
    ]
    plain, checked = abstention([arm_run(with_oracle, without)], 0)
    assert (plain.refused, plain.recall, plain.precision, plain.f1) == (0, 0.0, None, 1.0)
    assert (checked.refused, checked.recall, checked.precision, checked.f1) == (2, 0.5, 0.5, 0.75)
    assert checked.f1_ci is not None and checked.f1_ci[0] < 0.75 < checked.f1_ci[1]


def test_what_4_bits_keep_is_that_of_the_arm_that_was_taught() -> None:
    f1 = {"raft-closed": 0.2, "raft-closed-4bit": 0.05, "raft": 0.6, "raft-4bit": 0.54}
    runs = [
        ArmRun(ARMS[name], [make_sample(f1=score)], [], 0, 0, 0.0, None)
        for name, score in f1.items()
    ]
    assert retention([score_arm(run, 0) for run in runs]) == 0.9


def test_nothing_is_said_of_refusals_where_every_oracle_was_there() -> None:
    assert abstention([arm_run(present(4))], 0) == []


def test_a_generation_fabricates_that_quotes_what_no_document_holds() -> None:
    honest = make_sample(quotes=2, quotes_verbatim=2)
    partly = make_sample(quotes=2, quotes_verbatim=1)
    without = make_sample(quotes=0, quotes_verbatim=0)
    result = score_arm(arm_run([honest, partly, without, honest]), 0)
    assert result.fabricated == 0.25 and result.quotes_verbatim == round(5 / 6, 6)
    low, high = result.fabricated_ci
    assert low < 0.25 < high
    assert [point.fabricated for point in curve([arm_run([honest], [partly])], 0)] == [0, 1]
