"""Bootstrap intervals do what they promise."""

import random

import pytest

from components.eval import statistics
from components.eval.statistics import mean_interval, paired_difference


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    draw = random.Random(0)
    covered = 0
    for repeat in range(200):
        scores = [float(draw.random() < 0.3) for _ in range(100)]
        low, high = mean_interval(scores, 400, repeat)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 200


def test_the_seed_decides() -> None:
    scores = [random.Random(1).random() for _ in range(50)]
    scores = [draw / (place + 1) for place, draw in enumerate(scores)]
    assert mean_interval(scores, 500, 3) == mean_interval(scores, 500, 3)
    assert mean_interval(scores, 500, 3) != mean_interval(scores, 500, 4)


def test_slices_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [float(number % 3) for number in range(40)]
    whole = mean_interval(scores, 1000, 0)
    monkeypatch.setattr(statistics, "CELLS_AT_ONCE", 4000)
    assert mean_interval(scores, 1000, 0) == whole


def test_pairing_cancels_what_makes_questions_hard() -> None:
    draw = random.Random(2)
    baseline = [draw.random() for _ in range(200)]
    arm = [score + 0.05 + draw.gauss(0, 0.01) for score in baseline]
    found = paired_difference(arm, baseline, 1000, 0)
    assert found.mean == pytest.approx(0.05, abs=0.003)
    assert 0.045 < found.ci[0] < found.ci[1] < 0.055
    assert found.p_value == pytest.approx(2 / 1001, abs=1e-6)
    arm_alone, baseline_alone = mean_interval(arm, 1000, 0), mean_interval(baseline, 1000, 0)
    assert arm_alone[0] < baseline_alone[1], "unpaired intervals would overlap"


def test_no_difference_is_no_evidence() -> None:
    found = paired_difference([0.0, 1.0] * 20, [0.0, 1.0] * 20, 500, 0)
    assert found == (0.0, (0.0, 0.0), 1.0)


def test_arms_of_different_length_are_not_paired() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 0.0], 100, 0)


def test_one_question_is_enough() -> None:
    assert mean_interval([0.25], 100, 0) == (0.25, 0.25)
