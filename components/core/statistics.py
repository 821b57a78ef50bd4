"""Intervals over questions: of means, of differences between arms, of retention, of shares.

The same seed draws the same questions, so intervals of several metrics and arms rest on the same
resamples. Knows nothing of models or files.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
DIGITS = 6
NORMAL_95 = 1.6449
"""Standard deviations below which 95 % of a normal distribution lie."""


class Difference(NamedTuple):
    """Mean of `arm - baseline`, its 95 % interval and a two-sided bootstrap p-value."""

    mean: float
    ci: tuple[float, float]
    p_value: float


def mean(values: Sequence[float]) -> float:
    """The mean of `values`, rounded as everything in `results.json` is."""
    return round(sum(values) / len(values), DIGITS)


def mean_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of one score a question, at least one."""
    return _interval(_resampled_means(values, seed))


def paired_difference(
    arm: Sequence[float], baseline: Sequence[float], seed: int, *, tail: float = 2.5
) -> Difference:
    """Mean difference of two arms that answered the same questions in the same order.

    Questions are drawn with both their scores, so what makes a question hard cancels out. The
    p-value is twice the share of resamples on the far side of zero (ties included, and the sample
    itself counted once, so it is never 0).

    Args:
        arm, baseline: scores, question by question.
        seed: of the resamples.
        tail: percent beyond each bound of the interval.

    Raises:
        ValueError: the arms have different numbers of scores.
    """
    differences = [one - other for one, other in zip(arm, baseline, strict=True)]
    means = _resampled_means(differences, seed)
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = round(min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1)), DIGITS)
    return Difference(mean(differences), _interval(means, tail), p_value)


def share_kept(
    arm: Sequence[float], baseline: Sequence[float], seed: int
) -> tuple[float, tuple[float, float]] | None:
    """The mean of `arm` over that of `baseline`, and bounds with 95 % confidence each.

    Questions are paired. None where the baseline has so little that some resamples hold none of it.
    """
    resampled = _resampled_means(baseline, seed)
    if not resampled.all():
        return None
    share = round(sum(arm) / sum(baseline), DIGITS)
    return share, _interval(_resampled_means(arm, seed) / resampled, tail=5)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """Bounds of a share, each with 95 % confidence (Wilson 1927).

    A bootstrap of 0 of n would claim that it never happens.
    """
    square = NORMAL_95**2
    centre = (count + square / 2) / (n + square)
    spread = NORMAL_95 / (n + square) * (count * (n - count) / n + square / 4) ** 0.5
    return round(max(0.0, centre - spread), DIGITS), round(min(1.0, centre + spread), DIGITS)


def _resampled_means(values: Sequence[float], seed: int) -> "NDArray[np.floating[Any]]":
    """Shape (RESAMPLES,): the questions are drawn anew for each, with replacement."""
    import numpy as np

    scores = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed)
    # One at a time: all of them at once would take gigabytes at 100,000 questions.
    drawn = (scores[draw.integers(0, len(scores), len(scores))] for _ in range(RESAMPLES))
    return np.array([one.mean() for one in drawn])


def _interval(means: "NDArray[np.floating[Any]]", tail: float = 2.5) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(means, [tail, 100 - tail])
    return round(float(low), DIGITS), round(float(high), DIGITS)
