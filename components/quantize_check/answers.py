"""What the tuned model answers to a dataset's rows in 16 and in 4 bits, when it writes alone.

Teacher forcing corrects a model at every token; here its own first tokens lead the next ones, as
when it serves. Knows nothing of limits or verdicts.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from components.core.chat import Rendered, render, render_prompt
from components.core.decoding import Completion, complete
from components.core.metrics import score
from components.core.progress import task
from components.core.raft_form import find_answer, instruction
from components.core.records import AnswerPair, FreeAnswer, RaftRow


class CheckedRow(NamedTuple):
    """A row as the models read it: with the teacher's answer, and as eval asks it."""

    row: RaftRow
    split: Literal["validation", "train"]
    taught: Rendered
    prompt: list[int]

    @property
    def gold(self) -> str:
        """The row's answer; published rows have it in their text only."""
        return self.row.answer or find_answer(self.row.cot_answer)[0]


def read_as_model(
    tokenizer: Any, row: RaftRow, split: Literal["validation", "train"]
) -> CheckedRow:
    """A row as token ids."""
    documents, _ = row.with_oracle()
    return CheckedRow(
        row,
        split,
        render(tokenizer, row.instruction, row.cot_answer),
        render_prompt(tokenizer, instruction(documents, row.question)),
    )


def complete_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[CheckedRow],
    *,
    label: str,
    max_new_tokens: int,
    batch_size: int,
    ends: Sequence[int],
) -> list[Completion]:
    """The model's answers in the rows' order, in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].prompt))
    completions: dict[int, Completion] = {}
    with task(label, len(rows), "answers") as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            prompts = [rows[place].prompt for place in batch]
            answers = complete(model, tokenizer, prompts, max_new_tokens=max_new_tokens, ends=ends)
            completions |= zip(batch, answers, strict=True)
            progress.advance(len(batch))
    return [completions[place] for place in range(len(rows))]


def pair(row: CheckedRow, full: Completion, small: Completion) -> AnswerPair:
    """A row's two answers, each held against the row's own."""
    return AnswerPair(
        row_id=row.row.id,
        split=row.split,
        gold=row.gold,
        full=_judge(full, row.gold),
        small=_judge(small, row.gold),
    )


def _judge(completion: Completion, gold: str) -> FreeAnswer:
    answer, marked = find_answer(completion.text)
    return FreeAnswer(
        text=completion.text,
        answer=answer,
        f1=score(answer, gold).f1,
        truncated=completion.truncated,
        complete=marked and not completion.truncated,
    )
