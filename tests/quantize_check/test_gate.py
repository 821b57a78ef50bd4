"""What the answers in 16 and in 4 bits allow to say: each verdict, and who is to blame."""

import pytest

from components.core.records import AnswerPair, FreeAnswer
from components.quantize_check.gate import judge

LOOP = "The context says: " + "and so on, " * 40
GOOD = FreeAnswer(text="<ANSWER>: Kelden", answer="Kelden", f1=1, truncated=False, complete=True)
OTHER = FreeAnswer(text="<ANSWER>: Bram", answer="Bram", f1=0, truncated=False, complete=True)
LOOPING = FreeAnswer(text=LOOP, answer=LOOP, f1=0, truncated=True, complete=False)
LONG = LOOPING.model_copy(update={"text": " ".join(map(str, range(300)))})
SILENT = FreeAnswer(text="Kelden", answer="Kelden", f1=1, truncated=False, complete=False)
Kinds = list[tuple[int, FreeAnswer, FreeAnswer]]


def pairs(kinds: Kinds, training: int = 0) -> list[AnswerPair]:
    """So many rows of each kind (answers in 16 and in 4 bits), the last ones from the training."""
    answers = [(full, small) for count, full, small in kinds for _ in range(count)]
    return [
        AnswerPair(
            row_id=f"{place}",
            split="train" if place >= len(answers) - training else "validation",
            gold="Kelden",
            full=full,
            small=small,
        )
        for place, (full, small) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("kinds", "outcome", "reason"),
    [
        ([(64, GOOD, GOOD)], "pass", ""),
        ([(62, GOOD, GOOD), (1, GOOD, OTHER), (1, OTHER, GOOD)], "pass", ""),
        ([(52, GOOD, GOOD)], "pass", ""),
        # Nothing has happened yet, but it may happen to more than one in twenty.
        ([(51, GOOD, GOOD)], "inconclusive", "up to 5.0% of the answers in 4 bits may be incompl"),
        ([(63, GOOD, GOOD), (1, GOOD, SILENT)], "inconclusive", "may be incomplete"),
        ([(60, GOOD, GOOD), (4, GOOD, OTHER)], "inconclusive", "do not show that 4 bits keep 90%"),
        ([(44, GOOD, GOOD), (20, GOOD, OTHER)], "fail", "4 bits keep less than 90% of F1"),
        ([(54, GOOD, GOOD), (10, GOOD, LOOPING)], "fail", "10 of 64 end in a loop, which no token"),
        ([(10, GOOD, LOOPING)], "fail", "4 bits break answers that 16 bits complete"),
        ([(9, GOOD, LOOPING)], "inconclusive", "9 rows are too few to fail, but 4 bits break"),
        ([(54, GOOD, GOOD), (10, GOOD, SILENT)], "fail", "4 bits break answers that 16 bits"),
        # The model itself is at fault, and 4 bits change nothing.
        (
            [(44, GOOD, GOOD), (20, LOOPING, LOOPING)],
            "inconclusive",
            "too: train longer or on more",
        ),
        ([(44, GOOD, GOOD), (20, SILENT, SILENT)], "inconclusive", "too: train longer or on more"),
        ([(44, GOOD, GOOD), (20, LONG, LONG)], "inconclusive", "raise --max-new-tokens above 800"),
        ([(64, OTHER, OTHER)], "inconclusive", "F1 in 16 bits is too low to show"),
        ([(1, GOOD, GOOD)], "inconclusive", "may be incomplete"),
    ],
)
def test_the_verdict_and_its_reason(kinds: Kinds, outcome: str, reason: str) -> None:
    judgement = judge(pairs(kinds), max_new_tokens=800)
    assert judgement.outcome == outcome
    assert reason in "; ".join(judgement.reasons)
    assert bool(judgement.reasons) == (outcome != "pass")


def test_looping_in_4_bits_is_not_blamed_on_the_token_limit() -> None:
    judgement = judge(pairs([(20, GOOD, LOOPING), (44, GOOD, GOOD)]), max_new_tokens=800)
    assert "--max-new-tokens" not in "; ".join(judgement.reasons)


def test_training_rows_count_but_cannot_pass_alone() -> None:
    assert judge(pairs([(64, GOOD, GOOD)], training=63), 800).outcome == "pass"
    alone = judge(pairs([(64, GOOD, GOOD)], training=64), 800)
    assert (alone.outcome, alone.figures["rows_training"]) == ("inconclusive", 64)
    assert alone.reasons == ["rows of the training alone cannot pass"]
    assert judge(pairs([(64, GOOD, LOOPING)], training=64), 800).outcome == "fail"


def test_the_figures() -> None:
    mixed = pairs([(8, GOOD, GOOD), (1, GOOD, OTHER), (1, LOOPING, SILENT)])
    figures = judge(mixed, max_new_tokens=800).figures
    assert (figures["complete_16bit"], figures["complete_4bit"]) == (0.9, 0.9)
    assert (figures["f1_16bit"], figures["f1_4bit"], figures["f1_kept"]) == (0.9, 0.9, 1.0)
    assert figures["same_answer"] == 0.8
    assert figures["same_answer_ci"] == pytest.approx((0.541, 0.931), abs=0.001)
