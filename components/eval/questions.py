"""Questions in a neutral form: read, sampled, and shown with some of their documents.

A data set's own format is read by its module in `tasks/`; the rows that `generate` wrote are read
here, whatever the data set. Knows nothing of models or prompts.
"""

import random
import zlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from pydantic import ValidationError

from components.core.errors import DataError, first_line
from components.core.raft_form import find_answer
from components.core.records import Oracle, RaftRow, Record, explain
from components.core.rows import fault_at, read_entries

TASKS = Path(__file__).parent / "tasks"
DATASETS = tuple(sorted(path.parent.name for path in TASKS.glob("*/*.yaml")))
VALIDATION = "validation.jsonl"


class EvalExample(Record):
    """One question, whatever data set it comes from.

    answers: any of them is right. documents: of a question as it is asked, those shown. golden:
    the places among them of the documents that hold the answer (the oracle documents).
    """

    id: str
    question: str
    answers: list[str]
    documents: list[str]
    golden: list[int]


class ContextLayout(NamedTuple):
    """How documents are shown: how many distractors (-1: all), and where the oracle ones are."""

    distractors: int
    oracle: Oracle


class DataSet(Protocol):
    """A module of `tasks/`.

    FORMAT: where the format is described, in a sentence. HUB: name, configuration and split on the
    hub, or None.
    """

    FORMAT: str
    HUB: tuple[str, str, str] | None

    def read(self, row: object) -> EvalExample:
        """An example from a row; raises pydantic's ValidationError."""


def load_dataset_module(name: str) -> DataSet:
    """The reader of a data set, by its folder's name."""
    return cast(DataSet, import_module(f"components.eval.tasks.{name}.{name}"))


def choose_examples(
    source: str, dataset: str, *, max_questions: int | None = None, seed: int = 0
) -> list[EvalExample]:
    """Read questions and take those to ask, in the source's order.

    Args:
        source: a file, a dataset folder of generate, or the data set's name on the hub ("").
        dataset: whose format the file has.
        max_questions: when there are more, this many are drawn by `seed`.
        seed: of the draw.

    Raises:
        DataError: as `read_examples`, or the hub cannot be reached.
    """
    path, module = Path(source), load_dataset_module(dataset)
    if module.HUB and source in ("", module.HUB[0]) and not (source and path.exists()):
        examples = [module.read(row) for row in _hub_rows(*module.HUB)]
    elif not path.exists():
        hub = f", or {module.HUB[0]}" if module.HUB else ""
        raise DataError(
            "no such file or folder",
            path=path,
            hint=f"Check --questions: a file, a folder of raft generate{hub}. {module.FORMAT}",
        )
    elif path.is_dir() and not (path / VALIDATION).is_file():
        raise DataError(
            f"no {VALIDATION} in it",
            path=path,
            hint="Check --questions: a folder must be one that raft generate wrote.",
        )
    else:
        # In a folder: the rows that generate did not give to training.
        examples = read_examples(path / VALIDATION if path.is_dir() else path, dataset)
    if max_questions and len(examples) > max_questions:
        drawn = sorted(random.Random(seed).sample(range(len(examples)), max_questions))
        examples = [examples[index] for index in drawn]
    return examples


def read_examples(path: Path, dataset: str) -> list[EvalExample]:
    """Every question of a file.

    Raises:
        DataError: the file cannot be read or has no questions, or a row is malformed, lacks
            documents or an oracle document, or repeats an id; names the row (of a list) or the
            line (of JSON Lines).
    """
    module = load_dataset_module(dataset)
    kind, rows = read_entries(path, hint=module.FORMAT)
    examples: list[EvalExample] = []
    places: dict[str, int] = {}
    for number, row in rows:
        from_generate = isinstance(row, dict) and "cot_answer" in row
        try:
            example = _read_raft_row(row) if from_generate else module.read(row)
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=module.FORMAT) from error
        problem = _problem(example)
        if example.id in places:
            problem = f"the id {example.id!r} is already in {kind} {places[example.id]}"
        if problem:
            raise fault_at(path, kind, number, problem, hint=module.FORMAT)
        places[example.id] = number
        examples.append(example)
    if not examples:
        raise DataError(
            "contains no questions",
            path=path,
            hint="From raft generate: it kept back no rows, so generate again with a larger "
            f"--validation-fraction or another --seed. {module.FORMAT}",
        )
    return examples


def arrange(example: EvalExample, layout: ContextLayout) -> EvalExample:
    """The example with the documents that a layout shows: oracle ones and the first distractors.

    The oracle `present` keeps the order; `first` and `last` move the oracle documents to that end;
    `absent` removes them.
    """
    room = len(example.documents) if layout.distractors < 0 else layout.distractors
    documents: list[tuple[str, bool]] = []
    for index, text in enumerate(example.documents):
        golden = index in example.golden
        room -= not golden
        if golden or room >= 0:
            documents.append((text, golden))
    arranged = {
        "present": documents,
        "absent": [item for item in documents if not item[1]],
        "first": sorted(documents, key=lambda item: not item[1]),
        "last": sorted(documents, key=lambda item: item[1]),
    }[layout.oracle]
    return example.model_copy(
        update={
            "documents": [text for text, _ in arranged],
            "golden": [index for index, (_, golden) in enumerate(arranged) if golden],
        }
    )


# ---- reading -----------------------------------------------------------------------------------


def _problem(example: EvalExample) -> str:
    if not example.id.strip():
        return "the id is empty"
    if not example.question.strip():
        return "the question is empty"
    if not example.answers or not all(answer.strip() for answer in example.answers):
        return "an answer is empty or missing"
    if not example.documents:
        return "no documents"
    golden = [text for index, text in enumerate(example.documents) if index in example.golden]
    return "" if any(text.strip() for text in golden) else "no oracle document with text"


def _read_raft_row(row: object) -> EvalExample:
    """A row of generate: its chunks are the documents.

    A row whose oracle was removed for training gets it back, at a place that its id decides.
    """
    raft = RaftRow.model_validate(row)
    documents = list(raft.context.sentences[0]) if raft.context.sentences else []
    place = raft.oracle_index
    if place is None and raft.oracle_context in documents:  # published rows have no index
        place = documents.index(raft.oracle_context)
    if place is None:
        place = zlib.crc32(raft.id.encode()) % (len(documents) + 1)
        documents.insert(place, raft.oracle_context)
    return EvalExample(
        id=raft.id,
        question=raft.question,
        answers=[raft.answer or find_answer(raft.cot_answer)[0]],
        documents=documents,
        golden=[place],
    )


def _hub_rows(name: str, configuration: str, split: str) -> Iterable[object]:
    from datasets import load_dataset

    try:
        rows: Iterable[object] = load_dataset(name, configuration, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(
            f"the hub's data set cannot be read ({first_line(error)})",
            path=name,
            hint="Give --questions a file.",
        ) from error
    return rows
