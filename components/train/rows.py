"""The rows of a dataset as token ids and labels."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from components.core.chat import render
from components.core.errors import DataError, first_line
from components.core.json_entries import fault_at, read_entries
from components.core.progress import say
from components.core.raft_form import ANSWER_MARKER, find_answer, instruction, is_refusal
from components.core.records import RaftRow, explain
from components.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "A row must end in its answer; docs/artifacts.md shows the format of RAFT rows."
NO_ANSWER = f"cot_answer has no {ANSWER_MARKER} marker with an answer after it"
NOT_ROWS = ("validation.jsonl", "dropped.jsonl")
NAMED = 3  # unfit rows, in the log
REVIEW = "Review this dataset, and save the file again: raft rows DATASET"
_ROOM = "Raise --max-tokens, or generate with smaller chunks or fewer distractors."


class Rows(NamedTuple):
    """What is trained on: `input_ids` and `labels` of each row.

    too_long: ids of rows that are not trained on; a row is never truncated: that would cut off the
    answer. unfit: the errors of rows that cannot be. excluded: how many `--exclude` left out.
    documents: the maximum in the prompt of one row.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    too_long: list[str]
    unfit: list[DataError]
    excluded: int = 0
    documents: int = 0


def read_rows(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> Rows:
    """Both splits of the dataset; equal ids get a number.

    Raises:
        DataError: as `files_of`, `read_split`, or `--exclude` is of another dataset.
    """
    import numpy

    excluded, seen = read_excluded(config.exclude), set[str]()
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    too_long: list[str] = []
    unfit: list[DataError] = []
    ids = Counter[str]()
    documents = 0
    for name, path in files_of(Path(config.dataset)).items():
        rows = splits[name]
        included = _not_excluded(read_split(path, unfit), excluded, config.exclude, seen)
        for row in included:
            ids[row.id] += 1
            prompt, answer = trained_on(row, config)
            rendered = render(tokenizer, prompt, answer)
            if len(rendered.ids) > config.max_tokens:
                too_long.append(row.id + f" ({ids[row.id]})" * (ids[row.id] > 1))
                continue
            documents = max(documents, prompt.count("<DOCUMENT>"))
            # Arrays: a list of Python integers would take nine times the memory.
            columns = {"input_ids": rendered.ids, "labels": rendered.labels}
            rows.append({key: numpy.array(ids, numpy.int32) for key, ids in columns.items()})
    for name in excluded.keys() - seen:
        problem = f"no row {name!r} in the dataset"
        raise DataError(problem, path=config.exclude, line=excluded[name][0], hint=REVIEW)
    return Rows(**splits, too_long=too_long, unfit=unfit, excluded=len(seen), documents=documents)


def read_excluded(path: str) -> dict[str, tuple[int, str]]:
    """The rows that a file leaves out: by id the line, and the question where it is given.

    With the questions it cannot be taken for the file of another dataset, whose ids are the same.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(first_line(error), path=path, hint="Check --exclude.") from None
    parts = [(number, *line.partition("\t")[::2]) for number, line in enumerate(lines, start=1)]
    return {name.strip(): (number, question) for number, name, question in parts if name.strip()}


def _not_excluded(
    rows: Iterable[RaftRow], named: dict[str, tuple[int, str]], path: str, seen: set[str]
) -> Iterator[RaftRow]:
    """The rows that `named` does not leave out; `seen` takes the ids of the others.

    Raises:
        DataError: the file gives a row's id another question.
    """
    for row in rows:
        number, question = named.get(row.id, (0, ""))
        if question and question.strip() != " ".join(row.question.split()):
            problem = f"row {row.id!r} has another question in this dataset"
            raise DataError(problem, path=path, line=number, hint=REVIEW)
        if number:
            seen.add(row.id)
        else:
            yield row


def trained_on(row: RaftRow, config: TrainConfig) -> tuple[str, str]:
    """The prompt and the answer that a row is trained on.

    Which rows keep their oracle depends on their ids and the seed: a smaller share is a part of a
    larger one.
    """
    prompt, answer = row.instruction, row.cot_answer
    if config.keep_oracle < 1 or config.max_distractors >= 0:
        keeps_oracle = random.Random(f"{config.seed} {row.id}").random() < config.keep_oracle
        room = config.max_distractors if config.max_distractors >= 0 else len(row.documents)
        documents = []
        for text in row.documents:
            is_oracle = text == row.oracle_context
            room -= not is_oracle
            if keeps_oracle if is_oracle else room >= 0:
                documents.append(text)
        prompt = instruction(documents, row.question)
    if config.target == "answer":
        own = find_answer(row.cot_answer)[0]
        # Without documents nothing can be declined for want of the oracle.
        declined = is_refusal(own) and prompt == row.question
        answer = f"{ANSWER_MARKER} {(row.answer or own) if declined else own}"
    return prompt, answer


def files_of(dataset: Path) -> dict[str, Path]:
    """The files of a dataset by split: those of generate, or one file with all that is trained on.

    Raises:
        DataError: there is none.
    """
    if dataset.is_file():
        return {"train": dataset}
    files = {name: dataset / f"{name}.jsonl" for name in ("train", "validation")}
    if files["train"].is_file():
        return {name: path for name, path in files.items() if path.is_file()}
    others = [path for path in dataset.glob("*.jsonl") if path.name not in NOT_ROWS]
    if len(others) == 1:
        return {"train": others[0]}
    raise DataError(
        "no such file",
        path=files["train"],
        hint="--dataset takes the folder that raft generate wrote, or one file of RAFT rows.",
    )


def check_rows(config: TrainConfig, rows: Rows) -> None:
    """Log the rows that are unfit or too long.

    Raises:
        DataError: unfit ones are more than the others, or those too long are more than
            `--max-too-long` allows, or all.
    """
    if rows.unfit:
        named = "; ".join(map(str, rows.unfit[:NAMED])) + "; …" * (len(rows.unfit) > NAMED)
        fit = len(rows.train) + len(rows.validation) + len(rows.too_long)
        message = (
            f"{len(rows.unfit)} of {fit + len(rows.unfit)} rows are unfit and skipped: {named}"
        )
        if len(rows.unfit) > fit:
            raise DataError(message, path=config.dataset, hint=FORMAT)
        say(f"  {message}")
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
    if rows.excluded:
        say(f"  {rows.excluded} rows are skipped by {config.exclude}")
    if not rows.train:
        raise DataError(
            f"none of the {total} rows has at most --max-tokens {config.max_tokens}",
            path=Path(config.dataset) / "train.jsonl",
            hint=_ROOM,
        )


def read_split(path: Path, unfit: list[DataError]) -> list[RaftRow]:
    """The rows of a file; `unfit` takes the errors of those that are malformed or answer nothing.

    Raises:
        DataError: the file cannot be read, or is a list that is not JSON.
    """
    kind, entries = read_entries(path, hint=FORMAT, bad=unfit)
    rows = []
    for number, entry in entries:
        try:
            row = RaftRow.model_validate(entry)
            problem = "" if find_answer(row.cot_answer)[1] else NO_ANSWER
        except ValidationError as error:
            problem = explain(error)
        if problem:
            unfit.append(fault_at(path, kind, number, problem, hint=FORMAT))
        else:
            rows.append(row)
    return rows
