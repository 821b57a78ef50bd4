"""The verdict on 4-bit weights: what memory and free answers prove, and what is at fault.

Every limit is held against an interval whose bounds hold with 95 % confidence each. What the rows
prove to be within the limits passes, what they prove to be beyond one fails, and the rest is
inconclusive, which is never a pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from components.core.decoding import repeats_itself
from components.core.describe import counted
from components.core.metrics import normalize
from components.core.records import AnswerPair, FreeAnswer, Outcome
from components.core.statistics import mean, paired_difference, share_interval, share_kept

MIN_F1_KEPT = 0.9
"""Where it was measured on RAFT, 4-bit weights keep 91 to 94 % of F1: this is what they cost."""
MAX_INCOMPLETE = 0.05
"""Of the answers in 4 bits. One that does not end takes 800 tokens instead of about 100: at 5 %
such answers are a third of all tokens."""
MIN_ROWS = 10
"""To fail: percentile bootstraps of fewer rows are far narrower than they claim."""
SEED = 0
"""Of the resamples: the same answers give the same verdict."""


class Judgement(NamedTuple):
    """The outcome, why, and the figures that a `QuantizationReport` has of it."""

    outcome: Outcome
    reasons: list[str]
    figures: dict[str, Any]


def judge(
    pairs: Sequence[AnswerPair],
    max_new_tokens: int,
    *,
    memory_ratio: float = 0.0,
    max_memory_ratio: float = 1.0,
) -> Judgement:
    """Hold the answers in 4 bits against those in 16, row by row, and the memory to its limit.

    Args:
        pairs: both answers to each row.
        max_new_tokens: of each answer.
        memory_ratio: bytes of the weights in 4 bits over those in 16.
        max_memory_ratio: above it the check fails, whatever the answers are.
    """
    n = len(pairs)
    full, small = [pair.full for pair in pairs], [pair.small for pair in pairs]
    same = sum(normalize(pair.full.answer) == normalize(pair.small.answer) for pair in pairs)
    done = sum(answer.complete for answer in small)
    f1_kept = share_kept([one.f1 for one in small], [one.f1 for one in full], SEED)
    figures = {
        "rows": n,
        "rows_training": sum(pair.split == "train" for pair in pairs),
        "complete_16bit": mean([answer.complete for answer in full]),
        "complete_4bit": mean([answer.complete for answer in small]),
        "complete_4bit_ci": share_interval(done, n),
        "same_answer": mean([same / n]),
        "same_answer_ci": share_interval(same, n),
        "f1_16bit": mean([answer.f1 for answer in full]),
        "f1_4bit": mean([answer.f1 for answer in small]),
        "f1_kept": f1_kept and f1_kept[0],
        "f1_kept_ci": f1_kept and f1_kept[1],
        "min_f1_kept": MIN_F1_KEPT,
        "max_incomplete": MAX_INCOMPLETE,
    }
    outcome, reasons = _decide(pairs, figures, max_new_tokens)
    if memory_ratio > max_memory_ratio:
        # A doubt about the answers does not matter any more.
        reasons = reasons if outcome == "fail" else []
        outcome, reasons = "fail", [*reasons, f"memory is above {max_memory_ratio:.1%}"]
    return Judgement(outcome, reasons, figures)


def measured(figures: dict[str, Any]) -> str:
    """The figures in words."""
    n, training = figures["rows"], figures["rows_training"]
    rows = f"of {counted(n, 'answer')}" + f" ({training} to training rows)" * bool(training)
    f1_kept = ""
    if figures["f1_kept_ci"]:
        low, high = figures["f1_kept_ci"]
        f1_kept = f", {figures['f1_kept']:.1%} kept (90 % interval {low:.1%} to {high:.1%})"
    return (
        f"{rows}, {figures['complete_4bit']:.1%} are complete in 4 bits and "
        f"{figures['complete_16bit']:.1%} in 16, {figures['same_answer']:.1%} are the same, and F1 "
        f"is {figures['f1_4bit']:.3f} and {figures['f1_16bit']:.3f}{f1_kept}"
    )


def _decide(
    pairs: Sequence[AnswerPair], figures: dict[str, Any], max_new_tokens: int
) -> tuple[Outcome, list[str]]:
    """The outcome and its reasons: all faults, or else all doubts."""
    faults, doubts = [], []
    n, f1_kept = len(pairs), figures["f1_kept_ci"]
    broken = paired_difference(
        [not pair.small.complete for pair in pairs],
        [not pair.full.complete for pair in pairs],
        SEED,
        tail=5,
    )
    if broken.ci[0] > MAX_INCOMPLETE:
        faults.append("4 bits break answers that 16 bits complete" + _loops(pairs))
    elif 1 - figures["complete_4bit_ci"][0] > MAX_INCOMPLETE:
        doubts.append(_incomplete(pairs, figures, max_new_tokens))
    if f1_kept is None:
        doubts.append("F1 in 16 bits is too low to show what 4 bits keep of it; train longer")
    elif f1_kept[1] < MIN_F1_KEPT:
        faults.append(f"4 bits keep less than {MIN_F1_KEPT:.0%} of F1")
    elif f1_kept[0] < MIN_F1_KEPT:
        doubts.append(f"the rows do not show that 4 bits keep {MIN_F1_KEPT:.0%} of F1")
    if figures["rows_training"] == n:
        doubts.append("rows of the training alone cannot pass")
    if faults and n >= MIN_ROWS:
        return "fail", faults
    if faults:
        doubts = [f"{counted(n, 'row')} are too few to fail, but {' and '.join(faults)}"]
    return ("inconclusive" if doubts else "pass"), doubts


def _loops(pairs: Sequence[AnswerPair]) -> str:
    looping = _count_loops([pair.small for pair in pairs])
    return f" ({looping} of {len(pairs)} end in a loop, which no token limit fixes)" * bool(looping)


def _incomplete(pairs: Sequence[AnswerPair], figures: dict[str, Any], max_new_tokens: int) -> str:
    """Why answers in 4 bits may be incomplete too often, where 16 bits do not differ clearly."""
    share = 1 - figures["complete_16bit"]
    if share <= MAX_INCOMPLETE:
        most = 1 - figures["complete_4bit_ci"][0]
        return f"up to {most:.1%} of the answers in 4 bits may be incomplete"
    full = [pair.full for pair in pairs]
    truncated = sum(answer.truncated for answer in full)
    advice = "train longer or on more rows"
    if truncated > len(full) * share / 2 and _count_loops(full) < truncated / 2:
        advice = f"raise --max-new-tokens above {max_new_tokens}"
    return f"in 16 bits {share:.1%} of the answers are incomplete too: {advice}"


def _count_loops(answers: Sequence[FreeAnswer]) -> int:
    return sum(answer.truncated and repeats_itself(answer.text) for answer in answers)
