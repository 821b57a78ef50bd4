"""Bootstrap intervals do what they promise."""

import math
import random

import pytest

from components.core.statistics import (
    mean_interval,
    paired_difference,
    share_interval,
    share_kept,
)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    draw = random.Random(0)
    covered = 0
    for repeat in range(200):
        scores = [float(draw.random() < 0.3) for _ in range(100)]
        low, high = mean_interval(scores, repeat)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 200


def test_the_seed_decides() -> None:
    scores = [random.Random(1).random() for _ in range(50)]
    scores = [draw / (place + 1) for place, draw in enumerate(scores)]
    assert mean_interval(scores, 3) == mean_interval(scores, 3)
    assert mean_interval(scores, 3) != mean_interval(scores, 4)


def test_pairing_cancels_what_makes_questions_hard() -> None:
    draw = random.Random(2)
    baseline = [draw.random() for _ in range(200)]
    arm = [score + 0.05 + draw.gauss(0, 0.01) for score in baseline]
    difference = paired_difference(arm, baseline, 0)
    assert difference.mean == pytest.approx(0.05, abs=0.003)
    assert 0.045 < difference.ci[0] < difference.ci[1] < 0.055
    assert difference.p_value == pytest.approx(2 / 2001, abs=1e-6)
    arm_alone, baseline_alone = mean_interval(arm, 0), mean_interval(baseline, 0)
    assert arm_alone[0] < baseline_alone[1], "unpaired intervals would overlap"


def test_no_difference_is_no_evidence() -> None:
    difference = paired_difference([0.0, 1.0] * 20, [0.0, 1.0] * 20, 0)
    assert difference == (0.0, (0.0, 0.0), 1.0)


def test_arms_of_different_length_are_not_paired() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 0.0], 0)


def test_one_question_is_enough() -> None:
    assert mean_interval([0.25], 0) == (0.25, 0.25)


def test_what_one_arm_keeps_of_another_is_paired() -> None:
    """Half of every question's score is half in every resample, whatever the questions."""
    baseline = [random.Random(0).random() + 0.1 for _ in range(40)]
    share = share_kept([score / 2 for score in baseline], baseline, seed=0)
    assert share == (0.5, (0.5, 0.5))
    assert share_kept([0.0, 1.0], [0.0, 1.0], seed=0) is None, "some resamples have nothing to keep"


@pytest.mark.parametrize(("count", "n"), [(1, 10), (32, 64), (63, 64), (5, 1000)])
def test_the_interval_of_a_share_ends_where_the_count_becomes_unlikely(count: int, n: int) -> None:
    for bound, sign in zip(share_interval(count, n), (1, -1), strict=True):
        deviations = sign * (count / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert deviations == pytest.approx(1.645, abs=2e-3)


def test_what_never_happened_may_happen() -> None:
    low, high = share_interval(0, 64)
    assert low == 0 and 0.04 < high < 0.05
    assert share_interval(64, 64) == pytest.approx((1 - high, 1))
