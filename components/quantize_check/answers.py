"""What the tuned model answers to a dataset's rows in 16 and in 4 bits, when it writes alone.

Teacher forcing corrects a model at every token; here its own first tokens lead the next ones, as
when it serves. Knows nothing of limits or verdicts.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from components.core.chat import Rendered, render, render_prompt
from components.core.decoding import Completion, complete, end_tokens
from components.core.metrics import score
from components.core.progress import task
from components.core.raft_form import find_answer, instruction
from components.core.records import AnswerPair, Bits, FreeAnswer, RaftRow
from components.quantize_check.config import QuantizeCheckConfig

Split = Literal["validation", "train"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""In the order in which their rows are taken."""


class CheckedRow(NamedTuple):
    """A row as the models read it: with the teacher's answer, and as eval asks it."""

    row: RaftRow
    split: Split
    taught: Rendered
    prompt: list[int]

    @property
    def gold(self) -> str:
        """The row's answer; published rows have it in their text only."""
        return self.row.answer or find_answer(self.row.cot_answer)[0]


def read_as_model(tokenizer: Any, row: RaftRow, split: Split) -> CheckedRow:
    """A row as token ids."""
    documents, _ = row.with_oracle()
    return CheckedRow(
        row,
        split,
        render(tokenizer, row.instruction, row.cot_answer),
        render_prompt(tokenizer, instruction(documents, row.question)),
    )


def complete_rows(
    model: Any, tokenizer: Any, rows: Sequence[CheckedRow], config: QuantizeCheckConfig, bits: Bits
) -> list[Completion]:
    """The model's answers in the rows' order, in batches of similar length."""
    ends = end_tokens(config.base_model, tokenizer)
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].prompt))
    completions: dict[int, Completion] = {}
    with task(f"answering in {bits} bits", len(rows), "answers") as progress:
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            prompts = [rows[place].prompt for place in batch]
            answers = complete(
                model, tokenizer, prompts, max_new_tokens=config.max_new_tokens, ends=ends
            )
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
