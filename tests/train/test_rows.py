"""What a row is trained on: reasoning or answer, with more or fewer of its documents."""

from typing import Any

import pytest

from components.core.raft_form import REFUSAL, instruction
from components.core.records import Context, RaftRow, TrainingRecord
from components.train.config import TrainConfig
from components.train.rows import trained_on

TEXTS = ["Bram bakes.", "Ada was born in Kelden.", "Cora sings.", "Dora paints."]
REASONED = "##begin_quote##Ada was born in Kelden.##end_quote## So she was. <ANSWER>: Kelden"


def row(number: int = 0, **changes: Any) -> RaftRow:
    fields = {
        "id": f"seed_task_{number}", "question": "Where was Ada born?", "answer": "Kelden",
        "context": Context(title=[["t"] * 4], sentences=[TEXTS]), "oracle_context": TEXTS[1],
        "cot_answer": REASONED, "instruction": "as it stands in the file", "oracle_index": 1,
    }  # fmt: skip
    return RaftRow.model_validate(fields | changes)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(dataset="d", base_model="m", output="o", **settings)


def test_by_default_a_row_is_trained_on_as_it_stands() -> None:
    assert trained_on(row(), config()) == ("as it stands in the file", REASONED)


@pytest.mark.parametrize(
    ("settings", "documents"),
    [
        ({"max_distractors": 0}, [TEXTS[1]]),
        ({"max_distractors": 2}, TEXTS[:3]),
        ({"max_distractors": 9}, TEXTS),
        ({"keep_oracle": 0.0}, [TEXTS[0], *TEXTS[2:]]),
        ({"keep_oracle": 0.0, "max_distractors": 1}, TEXTS[:1]),
        ({"keep_oracle": 0.0, "max_distractors": 0}, []),
    ],
)
def test_fewer_documents(settings: dict[str, Any], documents: list[str]) -> None:
    prompt, answer = trained_on(row(), config(**settings))
    assert (prompt, answer) == (instruction(documents, "Where was Ada born?"), REASONED)


def test_a_share_of_the_rows_keeps_its_oracle_and_a_larger_share_the_same_ones() -> None:
    with_oracle = {
        share: {
            number
            for number in range(400)
            if TEXTS[1] in trained_on(row(number), config(keep_oracle=share))[0]
        }
        for share in (0.2, 0.6)
    }
    assert with_oracle[0.2] < with_oracle[0.6]
    assert abs(len(with_oracle[0.2]) - 80) < 25 and abs(len(with_oracle[0.6]) - 240) < 30


def test_the_answer_alone() -> None:
    assert trained_on(row(), config(target="answer"))[1] == "<ANSWER>: Kelden"
    absent = {
        "cot_answer": f"None of them.\n<ANSWER>: {REFUSAL}",
        "context": Context(title=[["t"]], sentences=[TEXTS[2:]]),
    }
    assert trained_on(row(**absent), config(target="answer"))[1] == f"<ANSWER>: {REFUSAL}"
    alone = config(target="answer", keep_oracle=0, max_distractors=0)
    assert trained_on(row(**absent), alone) == ("Where was Ada born?", "<ANSWER>: Kelden")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "raft"),
        ({"target": "reasoning", "keep_oracle": 0.0, "max_distractors": 0}, "raft"),
        ({"target": "answer", "keep_oracle": 1.0, "max_distractors": 0}, "raft-no-reasoning"),
        ({"target": "answer", "keep_oracle": 0.0, "max_distractors": 0}, "dsf"),
    ],
)
def test_the_record_knows_what_the_adapter_is_for(settings: dict[str, Any], kind: str) -> None:
    record = TrainingRecord.model_construct(settings=settings)
    assert record.kind == kind
