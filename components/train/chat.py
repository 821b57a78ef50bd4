"""RAFT rows as chat examples: what the model reads, and what it is trained to write."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.errors import DataError
from components.core.raft_form import ANSWER_MARKER
from components.core.records import RaftRow, read_jsonl
from components.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[dict[str, str]]]


class Examples(NamedTuple):
    """What every setting is fitted on: chat examples, and the ids of rows that were too long."""

    train: list[Example]
    validation: list[Example]
    too_long: list[str]


def read_examples(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> Examples:
    """Both splits of the dataset.

    Raises:
        DataError: as `read_split`.
    """
    folder = Path(config.dataset)
    found = [
        examples(read_split(folder / f"{split}.jsonl"), tokenizer, config.max_tokens)
        for split in ("train", "validation")
    ]
    (train, train_long), (validation, validation_long) = found
    return Examples(train, validation, train_long + validation_long)


def read_split(path: Path) -> list[RaftRow]:
    """The rows of a split.

    Raises:
        DataError: the file is missing, or a line is malformed or has no answer marker; names it.
    """
    if not path.is_file():
        raise DataError(
            "no such file", path=path, hint="--dataset takes the folder that raft generate wrote."
        )
    rows = []
    for number, row in enumerate(read_jsonl(path, RaftRow), start=1):
        if ANSWER_MARKER not in row.cot_answer:
            raise DataError(
                f"cot_answer has no {ANSWER_MARKER} marker",
                path=path,
                line=number,
                hint="A row must end in its answer; see the README for the form.",
            )
        rows.append(row)
    return rows


def examples(
    rows: Iterable[RaftRow], tokenizer: "PreTrainedTokenizerBase", max_tokens: int
) -> tuple[list[Example], list[str]]:
    """Conversational prompt and completion of each row that fits, and the ids of those that don't.

    A row is never cut: losing the end of it would lose the answer.
    """
    kept, too_long = [], []
    for row in rows:
        example: Example = {
            "prompt": [{"role": "user", "content": row.instruction}],
            "completion": [{"role": "assistant", "content": row.cot_answer}],
        }
        if count_tokens(tokenizer, example) > max_tokens:
            too_long.append(row.id)
        else:
            kept.append(example)
    return kept, too_long


def count_tokens(tokenizer: "PreTrainedTokenizerBase", example: Example) -> int:
    """Tokens of the whole conversation as the chat template writes it."""
    encoded: Any = tokenizer.apply_chat_template(
        example["prompt"] + example["completion"], return_dict=True
    )
    return len(encoded["input_ids"])
