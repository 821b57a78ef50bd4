"""From figures to sentences that a reader can trust.

Every sentence of the report that claims something is made here, from intervals: what an interval
does not exclude is not claimed. What an arm is comes from the registry, never from its name.
"""

from collections.abc import Sequence

from components.core.describe import counted
from components.core.records import ArmResult, Comparison, Evaluation, QuantizationReport
from components.eval.arms import PROMPTS

TOLERATED = 0.02
ENOUGH = 30
"""Questions; bootstrap intervals of fewer are narrower than they claim, and of one are nothing."""
FULL_BITS = {"bfloat16": "16-bit", "float32": "32-bit"}


def label(arm: str, evaluation: Evaluation) -> str:
    """An arm in words: `RAFT, 4-bit`."""
    result = evaluation.arm(arm)
    return f"{result.label}, {'4-bit' if result.bits == 4 else FULL_BITS[evaluation.dtype]}"


def find_warnings(arms: Sequence[ArmResult], max_new_tokens: int) -> list[str]:
    """What makes an arm's scores doubtful.

    That a base model writes no answer marker is not a fault: it was not trained to.
    """
    warnings = []
    if arms and arms[0].n < ENOUGH:
        warnings.append(
            f"{counted(arms[0].n, 'question')}: too few for conclusions, whatever the figures and "
            f"intervals; ask at least {ENOUGH}, better some hundreds."
        )
    for arm in arms:
        if arm.truncated > TOLERATED:
            warnings.append(
                f"{arm.name}: {arm.truncated:.1%} of the generations were cut off at "
                f"{max_new_tokens} tokens; {_why_cut_off(arm, arms)}."
            )
        if arm.empty > TOLERATED:
            warnings.append(f"{arm.name}: {arm.empty:.1%} of the generations are empty.")
        if arm.unanswered > TOLERATED and arm.tuned and PROMPTS[arm.prompt].marker:
            blame = _broken_by_4_bits(arm, arms, "unanswered")
            warnings.append(
                f"{arm.name}: {arm.unanswered:.1%} of the generations give no answer after the "
                f"marker and were scored as a whole; {blame or 'train longer or on more rows'}."
            )
    return warnings


def _why_cut_off(arm: ArmResult, arms: Sequence[ArmResult]) -> str:
    if arm.looping <= arm.truncated / 2:
        return "its scores may be too low: raise --max-new-tokens"
    blame = _broken_by_4_bits(arm, arms, "looping")
    if not blame and arm.tuned:
        blame = "the adapter is at fault: train longer, on more rows, or at a lower rate"
    return f"most of them repeat themselves, which no limit fixes{f'; {blame}' * bool(blame)}"


def _broken_by_4_bits(arm: ArmResult, arms: Sequence[ArmResult], metric: str) -> str:
    """Whom to blame where the same model does less than half as badly in 16 bits; "" otherwise."""
    for full in arms:
        if (full.label, full.bits, arm.bits) == (arm.label, 16, 4):
            least = getattr(arm, metric) / 2
            if getattr(full, metric) < least:
                return f"{full.name} does not, so 4-bit weights are at fault"
    return ""


def about_quantization(
    evaluation: Evaluation, quantization: QuantizationReport | None
) -> tuple[str, bool]:
    """quantize-check's verdict, and whether it holds here: a pass beside a collapse does not."""
    if quantization is None:
        return "", True
    collapsed = [
        f"{arm.name}: {arm.truncated:.1%} cut off"
        for arm in evaluation.arms
        if arm.tuned and arm.bits == 4 and arm.truncated > quantization.max_incomplete
    ]
    retention = evaluation.retention
    if retention is not None and retention < quantization.min_f1_kept:
        collapsed.append(f"{retention:.1%} of F1 kept")
    if quantization.outcome != "pass" or not collapsed:
        return f"{quantization.verdict}.", True
    return (
        f"On {counted(quantization.rows, 'row')} of the dataset quantize-check found no fault in "
        f"4-bit weights, but it does not hold for these questions ({'; '.join(collapsed)})."
    ), False


def verdict(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    gain, metric = evaluation.tuning_effect("f1"), evaluation.metric
    few = ", too few for conclusions" * (evaluation.questions < ENOUGH)
    scope = f"on {counted(evaluation.questions, 'question')}{few}"
    if gain is None:
        best = max(evaluation.arms, key=lambda arm: arm.f1)
        return f"{label(best.name, evaluation)} reaches {metric} {best.f1:.3f} {scope}."
    tuned, name = evaluation.arm(gain.arm).f1, evaluation.arm(gain.arm).label
    base = evaluation.arm(gain.baseline).f1
    if few:
        sentence = f"{metric} is {tuned:.3f} with {name} and {base:.3f} without, {scope}"
    elif excludes_zero(gain):
        verb = "raises" if gain.difference > 0 else "lowers"
        factor = f" ({tuned / base:.1f} times)" if gain.difference > 0 and base > 0 else ""
        sentence = f"{name} {verb} {metric} from {base:.3f} to {tuned:.3f}{factor} {scope}"
    else:
        both = f"{metric} {tuned:.3f} against {base:.3f}"
        sentence = f"{name} and its base cannot be distinguished {scope}: {both}"
    if evaluation.retention is not None:
        verb = "keep" if evaluation.retention <= 1 else "reach"
        sentence += (
            f"; 4-bit weights {verb} {evaluation.retention:.0%} of the tuned model's {metric}"
        )
    return sentence + _unless_a_prompt_does(gain.arm, evaluation) + "."


def _unless_a_prompt_does(tuned: str, evaluation: Evaluation) -> str:
    """What to add to the verdict where the tuned arm does not beat examples in a prompt."""
    for item in evaluation.comparisons:
        if (item.arm, item.metric) != (tuned, "f1"):
            continue
        baseline = evaluation.arm(item.baseline)
        if not baseline.tuned and PROMPTS[baseline.prompt].examples and item.ci[0] <= 0:
            verb = "does worse than" if item.ci[1] < 0 else "is not shown to beat"
            name, other = evaluation.arm(tuned).label, label(item.baseline, evaluation)
            difference = with_interval(item, evaluation)
            score = f"{evaluation.metric} {baseline.f1:.3f}"
            return f"; {name} {verb} {other}, with {score}: {difference}"
    return ""


def form_or_substance(evaluation: Evaluation) -> list[str]:
    """Which part of the F1 gain is form and brevity, in sentences.

    F1 punishes every word next to the answer; containment does not. What F1 gains while containment
    stays is the gain of stating the answer, short and in its place.
    """
    f1, contained = evaluation.tuning_effect("f1"), evaluation.tuning_effect("contains")
    if f1 is None or contained is None:
        return ["Needs a tuned arm and its base side by side."]
    if evaluation.metric != "F1":  # an answer is right or wrong, whatever its form
        return [f"{evaluation.metric} differs by {with_interval(f1, evaluation)}."]
    if evaluation.questions < ENOUGH:
        conclusion = "These questions are too few for conclusions."
    elif not excludes_zero(f1):
        conclusion = "There is no F1 difference beyond chance that would need explaining."
    else:
        conclusion = _explain(f1, contained)
    return [
        f"F1 differs by {with_interval(f1, evaluation)}. The share of generations that contain a "
        "correct answer, anywhere and among any number of other words, differs by "
        f"{with_interval(contained, evaluation)}.",
        conclusion,
    ]


def _explain(f1: Comparison, contained: Comparison) -> str:
    low, high = contained.ci
    if f1.difference < 0:
        if high < 0:
            return "The answer is in the text less often, so the loss is not only one of form."
        return (
            "Whether the answer is in the text less often is not known, so the loss may be one of "
            "form: more words around the answer, or no marker before it."
        )
    if low > 0:
        return (
            f"As a rule of thumb, {min(1, contained.difference / f1.difference):.0%} of the gain "
            "is substance (the answer is found more often) and the rest form and brevity (it has "
            "fewer words, after the marker)."
        )
    if high < f1.difference / 2:
        return (
            "The model does not find the answer more often beyond chance, and even the interval's "
            "upper end explains less than half of the gain; most of it is form and brevity: the "
            "same answers, in a few words after the marker."
        )
    return (
        "These questions are too few to show how much of the gain is substance (the answer is "
        "found more often) and how much is form and brevity."
    )


def excludes_zero(comparison: Comparison) -> bool:
    """Whether the interval is on one side of zero."""
    low, high = comparison.ci
    return low > 0 or high < 0


def with_interval(comparison: Comparison, evaluation: Evaluation) -> str:
    """`+0.470 (95% interval +0.401 to +0.538)`; one question has no interval."""
    if evaluation.questions < 2:
        return signed(comparison.difference)
    low, high = comparison.ci
    return f"{signed(comparison.difference)} (95% interval {signed(low)} to {signed(high)})"


def signed(number: float) -> str:
    """Three digits with sign, with a true minus sign."""
    return f"{number:+.3f}".replace("-", "\N{MINUS SIGN}")
