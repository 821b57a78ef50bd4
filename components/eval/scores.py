"""From judged samples to figures: means, intervals, and differences between arms."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from components.core.records import ArmResult, Comparison, CurvePoint, Sample
from components.eval.inference import ArmRun
from components.eval.statistics import DIGITS, mean, mean_interval, paired_difference

COMPARED = ("f1", "contains")
DERIVED: dict[str, Callable[[Sample], bool]] = {
    "unanswered": lambda sample: not sample.answered,
    "empty": lambda sample: not sample.generation.strip(),
    "quoted": lambda sample: sample.quotes > 0,
    "quoted_oracle": lambda sample: sample.quotes_oracle > 0,
}
"""Metrics that are not fields of a sample."""


def score_arm(run: ArmRun, resamples: int, seed: int) -> ArmResult:
    """Means and intervals of one arm."""
    quotes = sum(sample.quotes for sample in run.samples)
    verbatim = sum(sample.quotes_verbatim for sample in run.samples)
    return ArmResult(
        name=run.arm.name,
        label=run.arm.label,
        tuned=run.arm.adapter is not None,
        bits=run.arm.bits,
        prompt=run.arm.prompt,
        n=len(run.samples),
        **_means(run.samples, "f1", "em", "precision", "recall", "contains", "truncated", *DERIVED),
        **_intervals(run.samples, resamples, seed, "f1", "em", "contains"),
        quotes_verbatim=round(verbatim / quotes, DIGITS) if quotes else None,
        weight_bytes=run.weight_bytes,
    )


def curve(runs: Sequence[ArmRun], resamples: int, seed: int) -> list[CurvePoint]:
    """Every arm at every layout, the comparison's first; nothing where that is the only one."""
    if not any(run.others for run in runs):
        return []
    return [
        CurvePoint(
            arm=run.arm.name,
            distractors=samples[0].distractors,
            oracle=samples[0].oracle,
            n=len(samples),
            **_means(samples, "f1", "em", "contains", "truncated", "unanswered"),
            **_intervals(samples, resamples, seed, "f1"),
        )
        for run in runs
        for samples in (run.samples, *run.others)
    ]


def compare_arms(runs: Sequence[ArmRun], resamples: int, seed: int) -> list[Comparison]:
    """Paired differences of each arm to those of its baselines that were asked too."""
    samples = {run.arm.name: run.samples for run in runs}
    pairs = [
        (run.arm.name, baseline)
        for run in runs
        for baseline in run.arm.baselines
        if baseline in samples
    ]
    comparisons = []
    for arm, baseline in pairs:
        for metric in COMPARED:
            difference, ci, p_value = paired_difference(
                _values(samples[arm], metric), _values(samples[baseline], metric), resamples, seed
            )
            comparisons.append(
                Comparison(
                    arm=arm,
                    baseline=baseline,
                    metric=metric,
                    difference=difference,
                    ci=ci,
                    p_value=p_value,
                )
            )
    return comparisons


def retention(arms: Sequence[ArmResult]) -> float | None:
    """Share of the tuned model's F1 that 4-bit weights keep."""
    for full, quantized in _quantized(arms):
        if full.tuned and full.f1:
            return round(quantized.f1 / full.f1, DIGITS)
    return None


def memory_ratio(arms: Sequence[ArmResult]) -> float | None:
    """Weight bytes in 4 bits over full ones."""
    sizes = weight_sizes(arms)
    return round(sizes[1] / sizes[0], DIGITS) if sizes else None


def weight_sizes(arms: Sequence[ArmResult]) -> tuple[int, int] | None:
    """Weight bytes in full and in 4 bits; of the base, which carries no adapter, if it ran."""
    for full, quantized in sorted(_quantized(arms), key=lambda pair: pair[0].tuned):
        if full.weight_bytes and quantized.weight_bytes:
            return full.weight_bytes, quantized.weight_bytes
    return None


def _quantized(arms: Sequence[ArmResult]) -> list[tuple[ArmResult, ArmResult]]:
    """The arms that ran in full and in 4 bits: they share a label."""
    full = {arm.label: arm for arm in arms if arm.bits == 16}
    return [(full[arm.label], arm) for arm in arms if arm.bits == 4 and arm.label in full]


def _values(samples: Sequence[Sample], metric: str) -> list[float]:
    """One metric, question by question."""
    measure = DERIVED.get(metric) or attrgetter(metric)
    return [float(measure(sample)) for sample in samples]


def _means(samples: Sequence[Sample], *metrics: str) -> dict[str, Any]:
    return {metric: mean(_values(samples, metric)) for metric in metrics}


def _intervals(
    samples: Sequence[Sample], resamples: int, seed: int, *metrics: str
) -> dict[str, Any]:
    return {
        f"{metric}_ci": mean_interval(_values(samples, metric), resamples, seed)
        for metric in metrics
    }
