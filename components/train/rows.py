"""The rows of a dataset as token ids and labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.chat import render
from components.core.errors import DataError
from components.core.progress import say
from components.core.raft_form import ANSWER_MARKER
from components.core.records import RaftRow, read_jsonl
from components.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROOM = "Raise --max-tokens, or generate with smaller chunks or fewer distractors."


class Rows(NamedTuple):
    """What is trained on: `input_ids` and `labels` of each row, and the ids of rows too long.

    A row is never truncated: that would cut off the answer.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    too_long: list[str]


def read_rows(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> Rows:
    """Both splits of the dataset.

    Raises:
        DataError: as `read_split`.
    """
    import numpy

    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    too_long = []
    for name, rows in splits.items():
        for row in read_split(Path(config.dataset) / f"{name}.jsonl"):
            rendered = render(tokenizer, row.instruction, row.cot_answer)
            if len(rendered.ids) > config.max_tokens:
                too_long.append(row.id)
                continue
            # Arrays: a list of Python integers would take nine times the memory.
            columns = {"input_ids": rendered.ids, "labels": rendered.labels}
            rows.append({key: numpy.array(ids, numpy.int32) for key, ids in columns.items()})
    return Rows(**splits, too_long=too_long)


def check_lengths(config: TrainConfig, rows: Rows) -> None:
    """Log the rows that are too long.

    Raises:
        DataError: they are more than `--max-too-long` allows, or all.
    """
    skipped, total = len(rows.too_long), len(rows.train) + len(rows.validation) + len(rows.too_long)
    if skipped:
        names = ", ".join(rows.too_long[:5]) + (" …" if skipped > 5 else "")
        message = f"{skipped} rows are over --max-tokens {config.max_tokens} and skipped: {names}"
        say(f"  {message}")
        if total > skipped > config.max_too_long * total:
            raise DataError(
                f"{message} ({skipped / total:.0%} of {total}, more than --max-too-long "
                f"{config.max_too_long})",
                path=config.dataset,
                hint=f"{_ROOM} Or raise --max-too-long to train on the remaining rows.",
            )
    if not rows.train:
        raise DataError(
            f"none of the {total} rows has at most --max-tokens {config.max_tokens}",
            path=Path(config.dataset) / "train.jsonl",
            hint=_ROOM,
        )


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
                hint="A row must end in its answer; see the docs/artifacts.md for the format.",
            )
        rows.append(row)
    return rows
