"""From judged samples to figures: means, intervals, and differences between arms."""

from collections.abc import Callable, Sequence
from itertools import product
from operator import attrgetter
from typing import Any

from components.core.decoding import repeats_itself
from components.core.raft_form import REFUSAL, is_refusal
from components.core.records import Abstention, ArmResult, Comparison, CurvePoint, Sample
from components.core.statistics import DIGITS, mean, mean_interval, paired_difference
from components.eval.arms import TAUGHT
from components.eval.inference import ArmRun

COMPARED = ("f1", "contains")
Figures = Callable[[Sequence[tuple[Sequence[str], str]]], dict[str, float]]
"""A data set's official figures, from the right answers and the generation of each question."""

DERIVED: dict[str, Callable[[Sample], bool]] = {
    "unanswered": lambda sample: not sample.answered,
    "empty": lambda sample: not sample.generation.strip(),
    "looping": lambda sample: sample.truncated and repeats_itself(sample.generation),
    "quoted": lambda sample: sample.quotes > 0,
    "quoted_oracle": lambda sample: sample.quotes_oracle > 0,
    "fabricated": lambda sample: sample.quotes > sample.quotes_verbatim,
}
"""Metrics that are not fields of a sample."""


def score_arm(run: ArmRun, seed: int, figures: Figures | None = None) -> ArmResult:
    """Means and intervals of one arm, and its data set's own figures."""
    quotes = sum(sample.quotes for sample in run.samples)
    verbatim = sum(sample.quotes_verbatim for sample in run.samples)
    further = run.samples[0].official if run.samples else {}
    return ArmResult(
        name=run.arm.name,
        label=run.arm.label,
        tuned=run.arm.adapter is not None,
        adapter=run.arm.adapter or "",
        bits=run.arm.bits,
        prompt=run.arm.prompt,
        n=len(run.samples),
        **_means(run.samples, "f1", "em", "precision", "recall", "contains", "truncated", *DERIVED),
        **_intervals(run.samples, seed, "f1", "em", "contains", "fabricated"),
        quotes_verbatim=round(verbatim / quotes, DIGITS) if quotes else None,
        weight_bytes=run.weight_bytes,
        official={
            **{name: mean([item.official[name] for item in run.samples]) for name in further},
            **(figures([(item.gold, item.generation) for item in run.samples]) if figures else {}),
        },
    )


def curve(runs: Sequence[ArmRun], seed: int) -> list[CurvePoint]:
    """Every arm at every layout, the comparison's first; nothing where that is the only one."""
    return [
        CurvePoint(
            arm=run.arm.name,
            distractors=samples[0].distractors,
            oracle=samples[0].oracle,
            n=len(samples),
            **_means(samples, "f1", "em", "contains", "truncated", "unanswered", "fabricated"),
            **_intervals(samples, seed, "f1", "fabricated"),
        )
        for run in runs
        if run.others
        for samples in (run.samples, *run.others)
    ]


def abstention(runs: Sequence[ArmRun], seed: int) -> list[Abstention]:
    """How every arm refuses, where questions were asked without their oracle.

    As it was generated, then with quotes checked.
    """
    results = []
    for run, quotes_checked in product(runs, (False, True)):
        layouts = [list(layout) for layout in (run.samples, *run.others)]
        if quotes_checked:
            layouts = [[withhold_unsupported(item) for item in layout] for layout in layouts]
        samples = [sample for layout in layouts for sample in layout]
        with_oracle = (layout for layout in layouts if layout[0].oracle != "absent")
        present = [item.f1 for item in next(with_oracle, [])]
        absent = [is_refusal(item.answer) for item in samples if item.oracle == "absent"]
        refused = [item.oracle == "absent" for item in samples if is_refusal(item.answer)]
        if not absent:
            continue
        precise = refused and len(samples) > len(absent)
        results.append(
            Abstention(
                arm=run.arm.name,
                absent=len(absent),
                refused=len(refused),
                recall=mean(absent),
                recall_ci=mean_interval(absent, seed),
                precision=mean(refused) if precise else None,
                precision_ci=mean_interval(refused, seed) if precise else None,
                quotes_checked=quotes_checked,
                f1=mean(present) if present else None,
                f1_ci=mean_interval(present, seed) if present else None,
            )
        )
    return results


def withhold_unsupported(sample: Sample) -> Sample:
    """A sample whose answer is taken as a refusal if it has a fabricated quote."""
    if not (sample.answered and DERIVED["fabricated"](sample)):
        return sample
    refusal = {"answer": REFUSAL, "quotes": 0, "quotes_verbatim": 0, "quotes_oracle": 0}
    no_score = {"f1": 0.0, "em": 0.0, "precision": 0.0, "recall": 0.0, "contains": False}
    return sample.model_copy(update=refusal | no_score)


def compare_arms(runs: Sequence[ArmRun], seed: int) -> list[Comparison]:
    """Paired differences of each arm to those of its baselines that were asked too."""
    samples = {run.arm.name: run.samples for run in runs}
    comparisons = []
    for run in runs:
        for baseline, metric in product(run.arm.baselines, COMPARED):
            if baseline in samples:
                difference, ci, p_value = paired_difference(
                    _values(run.samples, metric), _values(samples[baseline], metric), seed
                )
                comparisons.append(
                    Comparison(
                        arm=run.arm.name,
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
    # RAFT's own, asked as it was trained, comes before others.
    pairs = _quantized(arms)
    pairs.sort(key=lambda pair: (pair[0].adapter != "raft", pair[0].prompt not in TAUGHT))
    for full, quantized in pairs:
        if full.tuned and full.f1:
            return round(quantized.f1 / full.f1, DIGITS)
    return None


def memory_ratio(arms: Sequence[ArmResult]) -> float | None:
    """Weight bytes in 4 bits over full ones; of the base, which carries no adapter, if it ran."""
    for full, quantized in sorted(_quantized(arms), key=lambda pair: pair[0].tuned):
        if full.weight_bytes and quantized.weight_bytes:
            return round(quantized.weight_bytes / full.weight_bytes, DIGITS)
    return None


def _quantized(arms: Sequence[ArmResult]) -> list[tuple[ArmResult, ArmResult]]:
    """The arms that ran in full and in 4 bits: they share a label."""
    full = {arm.label: arm for arm in arms if arm.bits == 16}
    return [(full[arm.label], arm) for arm in arms if arm.bits == 4 and arm.label in full]


def _values(samples: Sequence[Sample], metric: str) -> list[float]:
    measure = DERIVED.get(metric) or attrgetter(metric)
    return [float(measure(sample)) for sample in samples]


def _means(samples: Sequence[Sample], *metrics: str) -> dict[str, Any]:
    return {metric: mean(_values(samples, metric)) for metric in metrics}


def _intervals(samples: Sequence[Sample], seed: int, *metrics: str) -> dict[str, Any]:
    return {f"{metric}_ci": mean_interval(_values(samples, metric), seed) for metric in metrics}
