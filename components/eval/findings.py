"""From figures to sentences that a reader can trust.

Every sentence of the report that claims something is made here, from intervals: what an interval
does not exclude is not claimed. What an arm is comes from the registry, never from its name.
"""

from collections.abc import Sequence

from components.core.describe import counted
from components.core.records import ArmResult, Comparison, CurvePoint, Evaluation
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
                f"{max_new_tokens} tokens, so its scores may be too low; raise --max-new-tokens."
            )
        if arm.empty > TOLERATED:
            warnings.append(f"{arm.name}: {arm.empty:.1%} of the generations are empty.")
        if arm.unanswered > TOLERATED and arm.tuned and PROMPTS[arm.prompt].marker:
            warnings.append(
                f"{arm.name}: {arm.unanswered:.1%} of the generations give no answer after the "
                "marker and were scored as a whole; train longer or on more rows."
            )
    return warnings


def verdict(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    gain = evaluation.tuning_effect("f1")
    few = ", too few for conclusions" * (evaluation.questions < ENOUGH)
    scope = f"on {counted(evaluation.questions, 'question')}{few}"
    if gain is None:
        best = max(evaluation.arms, key=lambda arm: arm.f1)
        return f"{label(best.name, evaluation)} reaches F1 {best.f1:.3f} {scope}."
    tuned, name = evaluation.arm(gain.arm).f1, evaluation.arm(gain.arm).label
    base = evaluation.arm(gain.baseline).f1
    if few:
        sentence = f"F1 is {tuned:.3f} with {name} and {base:.3f} without, {scope}"
    elif excludes_zero(gain):
        verb = "raises" if gain.difference > 0 else "lowers"
        factor = f" ({tuned / base:.1f} times)" if gain.difference > 0 and base > 0 else ""
        sentence = f"{name} {verb} F1 from {base:.3f} to {tuned:.3f}{factor} {scope}"
    else:
        sentence = (
            f"{name} and its base cannot be told apart {scope}: F1 {tuned:.3f} against {base:.3f}"
        )
    if evaluation.retention is not None:
        verb = "keep" if evaluation.retention <= 1 else "reach"
        sentence += f"; 4-bit weights {verb} {evaluation.retention:.0%} of the tuned model's F1"
    return sentence + "."


def form_or_substance(evaluation: Evaluation) -> list[str]:
    """Which part of the F1 gain is form and brevity, in sentences.

    F1 punishes every word next to the answer; containment does not. What F1 gains while containment
    stays is the gain of stating the answer, short and in its place.
    """
    f1, contained = evaluation.tuning_effect("f1"), evaluation.tuning_effect("contains")
    if f1 is None or contained is None:
        return ["Needs a tuned arm and its base side by side."]
    if evaluation.questions < ENOUGH:
        conclusion = "These questions are too few for conclusions."
    elif not excludes_zero(f1):
        conclusion = "There is no F1 difference beyond chance that would need explaining."
    else:
        conclusion = _explain_loss(contained) if f1.difference < 0 else _explain_gain(f1, contained)
    return [
        f"F1 differs by {with_interval(f1, evaluation)}. The share of generations that contain a "
        "correct answer, anywhere and among any number of other words, differs by "
        f"{with_interval(contained, evaluation)}.",
        conclusion,
    ]


def _explain_loss(contained: Comparison) -> str:
    if excludes_zero(contained) and contained.difference < 0:
        return "The answer is in the text less often, so the loss is not only one of form."
    return (
        "Whether the answer is in the text less often is not known, so the loss may be one of "
        "form: more words around the answer, or no marker before it."
    )


def _explain_gain(f1: Comparison, contained: Comparison) -> str:
    if not excludes_zero(contained) and contained.ci[1] < f1.difference / 2:
        return (
            "The model does not find the answer more often beyond chance, and even the interval's "
            "upper end explains less than half of the gain; most of it is form and brevity: the "
            "same answers, in a few words after the marker."
        )
    if not excludes_zero(contained):
        return (
            "These questions are too few to tell how much of the gain is substance (the answer is "
            "found more often) and how much is form and brevity."
        )
    if contained.difference < 0:
        return (
            "The model even has the answer in its text less often; all of the gain is form and "
            "brevity, and some substance was lost."
        )
    if contained.difference >= f1.difference:
        return (
            "The model finds the answer more often, by at least as much as F1 gained: this gain is "
            "substance, not form."
        )
    return (
        f"As a rule of thumb, {contained.difference / f1.difference:.0%} of the gain is substance "
        "(the answer is found more often) and the rest form and brevity (it has fewer words, after "
        "the marker)."
    )


def layout(evaluation: Evaluation) -> str:
    """How the documents were shown, in words."""
    if not any(PROMPTS[arm.prompt].documents for arm in evaluation.arms):
        return "no documents"
    count = "all" if evaluation.distractors < 0 else f"{evaluation.distractors}"
    others = f"{count} distractor{'s' if evaluation.distractors != 1 else ''}"
    return {
        "present": f"{others} and the oracle documents",
        "absent": f"{others}, no oracle documents",
        "first": f"{others} after the oracle documents",
        "last": f"{others} before the oracle documents",
    }[evaluation.oracle]


def reasoning(evaluation: Evaluation) -> list[str]:
    """Whether the tuned model reasons from the documents, which is RAFT's point."""
    return [
        f"{label(arm.name, evaluation)} quotes in {arm.quoted:.0%} of its answers; "
        f"{arm.quotes_verbatim:.0%} of the quotes are word for word in a document shown, "
        f"and {arm.quoted_oracle:.0%} of the answers quote an oracle document."
        for arm in evaluation.arms
        if arm.tuned and arm.quotes_verbatim is not None
    ]


def robustness(evaluation: Evaluation) -> list[str]:
    """What more distractors, or no oracle, do to an arm, in sentences; the curves have all arms."""
    sentences = []
    full = [arm for arm in evaluation.arms if arm.bits == 16]
    for arm in full or evaluation.arms:
        name = label(arm.name, evaluation)
        points = [point for point in evaluation.curve if point.arm == arm.name]
        # All of a question's documents (-1) are more than any number of them.
        points.sort(key=lambda point: (point.distractors < 0, point.distractors))
        for place in ("present", "first", "last"):
            along = [point for point in points if point.oracle == place]
            if len(along) > 1:
                sentences.append(f"{name}, oracle {place}: {_change(along[0], along[-1])}")
        if absent := [point for point in points if point.oracle == "absent"]:
            best = max(absent, key=lambda point: point.f1)
            # A base model does not mark its answers, so whether it gives one is not known.
            rate = f"; it answers {1 - best.unanswered:.0%} of the questions all the same"
            sentences.append(
                f"Without the oracle {name} reaches F1 {best.f1:.3f}{rate if arm.tuned else ''}."
            )
    return sentences


def _change(few: CurvePoint, many: CurvePoint) -> str:
    apart = few.f1_ci[0] > many.f1_ci[1] or many.f1_ci[0] > few.f1_ci[1]
    first, last = (
        f"{point.f1:.3f} with "
        + {-1: "all distractors", 0: "no distractor"}.get(
            point.distractors, counted(point.distractors, "distractor")
        )
        for point in (few, many)
    )
    return f"F1 {first}, {last}" + ("." if apart else " (the intervals overlap).")


def excludes_zero(comparison: Comparison) -> bool:
    """Whether the interval is on one side of zero."""
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
