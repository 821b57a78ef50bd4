"""Percentile bootstrap over questions: intervals of means, and paired differences of two arms.

The same seed draws the same questions, so intervals of several metrics and arms rest on the same
resamples. Knows nothing of models or files.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COVERAGE = 95.0
CELLS_AT_ONCE = 4_000_000
DIGITS = 6


class Difference(NamedTuple):
    """Mean of `arm - baseline`, its 95 % interval and a two-sided bootstrap p-value."""

    mean: float
    ci: tuple[float, float]
    p_value: float


def mean(values: Sequence[float]) -> float:
    """The mean of `values`, rounded as everything in `results.json` is."""
    return round(sum(values) / len(values), DIGITS)


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean.

    Args:
        values: one score a question, at least one.
        resamples: how many times the questions are drawn anew, with replacement.
        seed: of the draws.
    """
    return _interval(_resampled_means(values, resamples, seed))


def paired_difference(
    arm: Sequence[float], baseline: Sequence[float], resamples: int, seed: int
) -> Difference:
    """Mean difference of two arms that answered the same questions in the same order.

    Questions are drawn with both their scores, so what makes a question hard cancels out. The
    p-value is twice the share of resamples on the far side of zero (ties included, and the sample
    itself counted once, so it is never 0).

    Raises:
        ValueError: the arms have different numbers of scores.
    """
    differences = [one - other for one, other in zip(arm, baseline, strict=True)]
    means = _resampled_means(differences, resamples, seed)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Difference(
        mean(differences),
        _interval(means),
        round(min(1.0, 2 * (tail + 1) / (resamples + 1)), DIGITS),
    )


def _resampled_means(
    values: Sequence[float], resamples: int, seed: int
) -> "NDArray[np.floating[Any]]":
    """Shape (resamples,); drawn in slices, so a million resamples do not fill the memory."""
    import numpy as np

    scores = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed)
    rows = max(1, CELLS_AT_ONCE // len(scores))
    return np.concatenate(
        [
            scores[draw.integers(0, len(scores), (min(rows, resamples - start), len(scores)))].mean(
                1
            )
            for start in range(0, resamples, rows)
        ]
    )


def _interval(means: "NDArray[np.floating[Any]]") -> tuple[float, float]:
    import numpy as np

    edge = (100 - COVERAGE) / 2
    low, high = np.percentile(means, [edge, 100 - edge])
    return round(float(low), DIGITS), round(float(high), DIGITS)
