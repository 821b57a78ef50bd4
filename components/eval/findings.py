"""From judged samples to figures, and from figures to sentences that a reader can trust.

Every sentence of the report that claims something is made here, from intervals: what the interval
does not exclude is not claimed.
"""

from collections.abc import Mapping, Sequence
from itertools import product

from components.core.describe import counted
from components.core.records import ArmResult, Comparison, CurvePoint, Evaluation, Sample
from components.eval.arms import ArmRun
from components.eval.statistics import DIGITS, mean, mean_interval, paired_difference

PAIRS = (("raft", "base"), ("raft-4bit", "base-4bit"), ("raft-4bit", "raft"))
COMPARED = ("f1", "contains")
TOLERATED = 0.02
ENOUGH = 30
"""Questions; bootstrap intervals of fewer are narrower than they claim, and of one are nothing."""
BITS = {"bfloat16": "16-bit", "float32": "32-bit"}


# ---- figures -----------------------------------------------------------------------------------


def score_arm(run: ArmRun, resamples: int, seed: int) -> ArmResult:
    """Means and intervals of one arm."""

    def interval(metric: str) -> tuple[float, float]:
        return mean_interval(values(run.samples, metric), resamples, seed)

    return ArmResult(
        name=run.name,
        n=len(run.samples),
        **{
            metric: mean(values(run.samples, metric))
            for metric in ("f1", "em", "precision", "recall", "contains", "truncated")
        },
        unanswered=mean([float(not sample.answered) for sample in run.samples]),
        f1_ci=interval("f1"),
        em_ci=interval("em"),
        contains_ci=interval("contains"),
        empty=mean([float(not sample.generation.strip()) for sample in run.samples]),
        quoted=mean([float(sample.quotes > 0) for sample in run.samples]),
        quoted_oracle=mean([float(sample.quotes_oracle > 0) for sample in run.samples]),
        quotes_verbatim=_verbatim(run.samples),
        weight_bytes=run.weight_bytes,
    )


def _verbatim(samples: Sequence[Sample]) -> float | None:
    quotes = sum(sample.quotes for sample in samples)
    if not quotes:
        return None
    return round(sum(sample.quotes_verbatim for sample in samples) / quotes, DIGITS)


def curve(runs: Sequence[ArmRun], resamples: int, seed: int) -> list[CurvePoint]:
    """Every arm at every layout, the comparison's first; nothing where that is the only one."""
    if not any(run.others for run in runs):
        return []
    return [
        CurvePoint(
            arm=run.name,
            distractors=samples[0].distractors,
            oracle=samples[0].oracle,
            n=len(samples),
            f1=mean(values(samples, "f1")),
            f1_ci=mean_interval(values(samples, "f1"), resamples, seed),
            em=mean(values(samples, "em")),
            contains=mean(values(samples, "contains")),
            truncated=mean(values(samples, "truncated")),
            unanswered=mean([float(not sample.answered) for sample in samples]),
        )
        for run in runs
        for samples in (run.samples, *run.others)
    ]


def compare_arms(runs: Sequence[ArmRun], resamples: int, seed: int) -> list[Comparison]:
    """Paired differences of those pairs whose arms both ran; further adapters against the base."""
    samples = {run.name: run.samples for run in runs}
    comparisons = []
    further = [(run.name, "base") for run in runs if ":" in run.name]
    for (arm, baseline), metric in product((*PAIRS, *further), COMPARED):
        if arm in samples and baseline in samples:
            found = paired_difference(
                values(samples[arm], metric), values(samples[baseline], metric), resamples, seed
            )
            comparisons.append(
                Comparison(
                    arm=arm,
                    baseline=baseline,
                    metric=metric,
                    difference=found.mean,
                    ci=found.ci,
                    p_value=found.p_value,
                )
            )
    return comparisons


def values(samples: Sequence[Sample], metric: str) -> list[float]:
    """One metric, question by question."""
    return [float(getattr(sample, metric)) for sample in samples]


def retention(arms: Mapping[str, ArmResult]) -> float | None:
    """Share of the tuned model's F1 that 4-bit weights keep."""
    if "raft" not in arms or "raft-4bit" not in arms or arms["raft"].f1 == 0:
        return None
    return round(arms["raft-4bit"].f1 / arms["raft"].f1, DIGITS)


def memory_ratio(arms: Mapping[str, ArmResult]) -> float | None:
    """Weight bytes in 4 bits over full ones."""
    sizes = weight_sizes(arms)
    return round(sizes[1] / sizes[0], DIGITS) if sizes else None


def weight_sizes(arms: Mapping[str, ArmResult]) -> tuple[int, int] | None:
    """Weight bytes in full and in 4 bits; of the base, which carries no adapter, if it ran."""
    for full, small in (("base", "base-4bit"), ("raft", "raft-4bit")):
        if full in arms and small in arms:
            sizes = arms[full].weight_bytes, arms[small].weight_bytes
            if sizes[0] and sizes[1]:
                return sizes[0], sizes[1]
    return None


def find_warnings(arms: Sequence[ArmResult], max_new_tokens: int) -> list[str]:
    """What makes an arm's scores doubtful, in plain sentences.

    That a base model writes no answer marker is no fault of the run: it was never taught to.
    """
    found = []
    if arms and arms[0].n < ENOUGH:
        found.append(
            f"{counted(arms[0].n, 'question')}: too few for conclusions, whatever the figures and "
            f"intervals say; ask at least {ENOUGH}, better some hundreds."
        )
    for arm in arms:
        if arm.truncated > TOLERATED:
            found.append(
                f"{arm.name}: {arm.truncated:.1%} of the generations were cut off at "
                f"{max_new_tokens} tokens, so its scores may be too low; raise --max-new-tokens."
            )
        if arm.empty > TOLERATED:
            found.append(f"{arm.name}: {arm.empty:.1%} of the generations are empty.")
        if arm.unanswered > TOLERATED and arm.name.startswith("raft"):
            found.append(
                f"{arm.name}: {arm.unanswered:.1%} of the generations give no answer after the "
                "marker and were scored as a whole; train longer or on more rows."
            )
    return found


# ---- sentences ---------------------------------------------------------------------------------


def verdict(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    arms = {arm.name: arm for arm in evaluation.arms}
    gain = tuning_effect(evaluation, "f1")
    few = ", too few for conclusions" * (evaluation.questions < ENOUGH)
    asked = f"on {counted(evaluation.questions, 'question')}{few}"
    if gain is None:
        best = max(evaluation.arms, key=lambda arm: arm.f1)
        return f"{label(best.name, evaluation)} reaches F1 {best.f1:.3f} {asked}."
    base, tuned = arms[gain.baseline].f1, arms[gain.arm].f1
    if few:
        sentence = f"F1 is {tuned:.3f} with RAFT and {base:.3f} without, {asked}"
    elif excludes_zero(gain):
        verb = "raises" if gain.difference > 0 else "lowers"
        factor = f" ({tuned / base:.1f} times)" if gain.difference > 0 and base > 0 else ""
        sentence = f"RAFT {verb} F1 from {base:.3f} to {tuned:.3f}{factor} {asked}"
    else:
        sentence = (
            f"RAFT and its base cannot be told apart {asked}: F1 {tuned:.3f} against {base:.3f}"
        )
    if evaluation.retention is not None:
        verb = "keep" if evaluation.retention <= 1 else "reach"
        sentence += f"; 4-bit weights {verb} {evaluation.retention:.0%} of RAFT's F1"
    return sentence + "."


def form_or_substance(evaluation: Evaluation) -> list[str]:
    """Which part of the F1 gain is form and brevity, in sentences.

    F1 punishes every word beside the answer; containment does not. What F1 gains while containment
    stays is the gain of stating the answer, short and in its place.
    """
    f1, found = tuning_effect(evaluation, "f1"), tuning_effect(evaluation, "contains")
    if f1 is None or found is None:
        return ["Needs a tuned arm and its base side by side."]
    sentences = [
        f"F1 differs by {with_interval(f1, evaluation)}. The share of generations that contain the "
        "gold answer, in whatever place and among however many other words, differs by "
        f"{with_interval(found, evaluation)}."
    ]
    if evaluation.questions < ENOUGH:
        return [*sentences, "These questions are too few for conclusions."]
    if not excludes_zero(f1):
        sentences.append("There is no F1 difference beyond chance that would need explaining.")
    elif f1.difference < 0:
        sentences.append(
            "The answer is in the text less often, so the loss is not only one of form."
            if excludes_zero(found) and found.difference < 0
            else "That the answer is in the text less often is not shown, so the loss may be one "
            "of form: more words around the answer, or no marker before it."
        )
    elif not excludes_zero(found) and found.ci[1] < f1.difference / 2:
        sentences.append(
            "The model does not find the answer more often beyond chance, and even the interval's "
            "upper end explains less than half of the gain; most of it is form and brevity: what "
            "was already said somewhere is now said in a few words after the marker."
        )
    elif not excludes_zero(found):
        sentences.append(
            "These questions are too few to tell how much of the gain is substance (the answer is "
            "found more often) and how much is form and brevity."
        )
    elif found.difference < 0:
        sentences.append(
            "The model even has the answer in its text less often; all of the gain is form and "
            "brevity, and some substance was lost."
        )
    elif found.difference >= f1.difference:
        sentences.append(
            "The model finds the answer more often, by at least as much as F1 gained: this gain is "
            "substance, not form."
        )
    else:
        sentences.append(
            f"As a rule of thumb, {found.difference / f1.difference:.0%} of the gain is substance "
            "(the answer is found more often) and the rest form and brevity (it is said in fewer "
            "words, after the marker)."
        )
    return sentences


def layout(evaluation: Evaluation) -> str:
    """How the documents were shown, in words."""
    count = "all" if evaluation.distractors < 0 else f"{evaluation.distractors}"
    others = f"{count} distractor{'s' if evaluation.distractors != 1 else ''}"
    places = {
        "present": f"{others} beside the oracle paragraphs",
        "absent": f"{others}, oracle paragraphs left out",
        "first": f"{others} after the oracle paragraphs",
        "last": f"{others} before the oracle paragraphs",
    }
    return "no documents" if evaluation.task == "hotpotqa_closed" else places[evaluation.oracle]


def reasoning(evaluation: Evaluation) -> list[str]:
    """Whether the tuned model reasons from the documents, which is RAFT's point."""
    sentences = []
    for arm in evaluation.arms:
        if arm.name.startswith("raft") and arm.quotes_verbatim is not None:
            sentences.append(
                f"{label(arm.name, evaluation)} quotes in {arm.quoted:.0%} of its answers; "
                f"{arm.quotes_verbatim:.0%} of the quotes stand word for word in a document shown, "
                f"and {arm.quoted_oracle:.0%} of the answers quote an oracle paragraph."
            )
    return sentences


def robustness(evaluation: Evaluation) -> list[str]:
    """What more distractors, or no oracle, do to an arm, in sentences; the figure has all arms."""
    sentences = []
    full = [arm for arm in evaluation.arms if not arm.name.endswith("-4bit")]
    for arm in full or evaluation.arms:
        for place in ("present", "first", "last"):
            points = [
                point
                for point in evaluation.curve
                if (point.arm, point.oracle) == (arm.name, place)
            ]
            # All of a question's paragraphs (-1) are more than any number of them.
            points.sort(key=lambda point: (point.distractors < 0, point.distractors))
            if len(points) > 1:
                few, many = points[0], points[-1]
                apart = few.f1_ci[0] > many.f1_ci[1] or many.f1_ci[0] > few.f1_ci[1]
                sentences.append(
                    f"{label(arm.name, evaluation)}, oracle {place}: F1 {few.f1:.3f} with "
                    f"{_count(few.distractors)}, {many.f1:.3f} with {_count(many.distractors)}"
                    + ("." if apart else " (the intervals overlap).")
                )
        absent = [
            point for point in evaluation.curve if (point.arm, point.oracle) == (arm.name, "absent")
        ]
        if absent:
            best = max(absent, key=lambda point: point.f1)
            sentence = f"Without the oracle {label(arm.name, evaluation)} reaches F1 {best.f1:.3f}"
            # A base model does not mark its answers, so whether it gives one is not known.
            if arm.name.startswith("raft"):
                sentence += f"; it answers {1 - best.unanswered:.0%} of the questions all the same"
            sentences.append(sentence + ".")
    return sentences


def _count(distractors: int) -> str:
    words = {-1: "all distractors", 0: "no distractor"}
    return words.get(distractors, counted(distractors, "distractor"))


def tuning_effect(evaluation: Evaluation, metric: str) -> Comparison | None:
    """Tuned against base in full precision, else in 4 bits, else nothing."""
    found = {
        (item.arm, item.baseline): item for item in evaluation.comparisons if item.metric == metric
    }
    return found.get(PAIRS[0]) or found.get(PAIRS[1])


def excludes_zero(comparison: Comparison) -> bool:
    """Whether the interval lies on one side of zero."""
    low, high = comparison.ci
    return low > 0 or high < 0


def with_interval(comparison: Comparison, evaluation: Evaluation) -> str:
    """`+0.470 (95% interval +0.401 to +0.538)`, with a true minus sign; one question has none."""
    if evaluation.questions < 2:
        return signed(comparison.difference)
    low, high = comparison.ci
    return f"{signed(comparison.difference)} (95% interval {signed(low)} to {signed(high)})"


def signed(number: float) -> str:
    """Three digits with sign, with a true minus sign."""
    return f"{number:+.3f}".replace("-", "\N{MINUS SIGN}")


def label(arm: str, evaluation: Evaluation) -> str:
    """An arm in words: `RAFT, 4-bit`."""
    if ":" in arm:
        return f"RAFT {arm.partition(':')[2]}, {BITS[evaluation.dtype]}"
    who, _, small = arm.partition("-")
    return f"{'RAFT' if who == 'raft' else 'Base'}, {'4-bit' if small else BITS[evaluation.dtype]}"
