"""Questions in a neutral form: read, sampled, and shown with some of their documents.

A data set's own format is read by its module in `tasks/`; the rows that `generate` wrote are read
here, whatever the data set. Knows nothing of models or prompts.
"""

import random
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from pydantic import Field, ValidationError

from components.core.errors import DataError, first_line
from components.core.json_entries import fault_at, read_entries
from components.core.progress import say
from components.core.raft_form import find_answer
from components.core.records import Oracle, RaftRow, Record, explain, read_jsonl

TASKS = Path(__file__).parent / "tasks"
DATASETS = tuple(sorted(path.parent.name for path in TASKS.glob("*/*.yaml")))
TRAINING, VALIDATION = "train.jsonl", "validation.jsonl"


class EvalExample(Record):
    """One question, whatever data set it comes from.

    answers: any of them is right. documents: of a question as it is asked, those shown. golden:
    the places among them of the documents that hold the answer (the oracle documents). kind: the
    type that the data set gives the question; sources: names of the oracle documents. The report's
    tables group by both, where they are known.
    """

    id: str
    question: str
    answers: list[str]
    documents: list[str]
    golden: list[int]
    kind: str = ""
    sources: list[str] = Field(default_factory=list)


class ContextLayout(NamedTuple):
    """How documents are shown: how many distractors (-1: all), and where the oracle ones are."""

    distractors: int
    oracle: Oracle


class DataSet(Protocol):
    """A module of `tasks/`.

    FORMAT: where the format is described, in a sentence. HUB: name, configuration and split on the
    hub, or None. It may also have: KEYED, whether a file is one object of rows by their id; METRIC,
    what it calls its main figure; `score`, as `harness.score_answer`; and `figures`, the official
    script's figures of all questions together: from (answers, generation) pairs to numbers by name.
    """

    FORMAT: str
    HUB: tuple[str, str, str] | None

    def read(self, row: object) -> EvalExample:
        """An example from a row; raises pydantic's ValidationError."""


def load_dataset_module(name: str) -> DataSet:
    """The reader of a data set, by its folder's name."""
    return cast(DataSet, import_module(f"components.eval.tasks.{name}.{name}"))


def choose_examples(
    source: str,
    dataset: str,
    *,
    max_questions: int | None = None,
    seed: int = 0,
    retrieving: bool = False,
) -> list[EvalExample]:
    """Read questions and take those to ask, in the source's order.

    Args:
        source: a file, a dataset folder of generate, or the data set's name on the hub ("").
        dataset: whose format the file has.
        max_questions: when there are more, this many are drawn by `seed`.
        seed: of the draw.
        retrieving: whether their documents are looked up, so that they need none.

    Raises:
        DataError: as `read_examples`, or the hub cannot be reached.
    """
    path, hub = Path(source), load_dataset_module(dataset).HUB
    if hub and (not source or (source == hub[0] and not path.exists())):
        examples = _read_hub(dataset, *hub)
    else:
        # In a folder: the rows that generate did not give to training.
        path = path / VALIDATION if path.is_dir() else path
        examples = read_examples(path, dataset, retrieving=retrieving)
    if max_questions and len(examples) > max_questions:
        drawn = sorted(random.Random(seed).sample(range(len(examples)), max_questions))
        examples = [examples[index] for index in drawn]
    return examples


def read_examples(path: Path, dataset: str, *, retrieving: bool = False) -> list[EvalExample]:
    """Every question of a file.

    Raises:
        DataError: the file cannot be read or has no questions, or a row is malformed, lacks
            an answer or documents or an oracle document, or repeats an id; names the row (of a
            list) or the line (of JSON Lines), and the fields that it has. Bad rows in generate's
            form are skipped and counted if any is good, and equal ids get a number.
    """
    module = load_dataset_module(dataset)
    hub = f", or {module.HUB[0]}" if module.HUB else ""
    hint = f"--questions takes a file, a folder of raft generate{hub}. {module.FORMAT}"
    kind, rows = read_entries(path, hint=hint, keyed=getattr(module, "KEYED", False))
    examples: list[EvalExample] = []
    places: dict[str, int] = {}
    unfit: list[DataError] = []
    for number, row in rows:
        from_generate = isinstance(row, dict) and "cot_answer" in row
        try:
            example = _read_raft_row(row) if from_generate else module.read(row)
            problem = _problem(example, retrieving)
            if example.id in places and from_generate:
                example = example.model_copy(update={"id": f"{example.id} ({kind} {number})"})
            elif example.id in places:
                problem = f"the id {example.id!r} is already in {kind} {places[example.id]}"
        except ValidationError as error:
            problem = f"{explain(error)} ({_fields(row)})"
        if not problem:
            places[example.id] = number
            examples.append(example)
            continue
        unfit.append(fault_at(path, kind, number, problem, hint=hint))
        if not from_generate:
            raise unfit[-1]
    if unfit and not examples:
        raise unfit[0]
    if unfit:
        say(f"  {len(unfit)} rows are unfit and skipped, the first: {unfit[0]}")
    if not examples:
        raise DataError(
            "contains no questions",
            path=path,
            hint="From raft generate: it kept back no rows, so generate again with a larger "
            f"--validation-fraction or another --seed. {module.FORMAT}",
        )
    return examples


def choose_rows(dataset: str, count: int, seed: int) -> list[RaftRow]:
    """Training rows to show as examples: such that show their oracle, drawn by seed.

    Raises:
        DataError: the dataset has too few, or cannot be read.
    """
    if not count:
        return []
    path = Path(dataset) / TRAINING
    rows = [row for row in read_jsonl(path, RaftRow) if row.oracle_context in row.documents]
    if len(rows) < count:
        raise DataError(f"has fewer than {count} rows that show their oracle", path=path)
    return random.Random(seed).sample(rows, count)


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


def _fields(row: object) -> str:
    """What a row has, for errors about one that has another form."""
    if not isinstance(row, dict):
        return f"the row is of type {type(row).__name__}, not an object"
    return f"the row has the fields {', '.join(map(str, row)) or 'of an empty object'}"[:300]


def _problem(example: EvalExample, retrieving: bool) -> str:
    for name in ("id", "question"):
        if not getattr(example, name).strip():
            return f"the {name} is empty"
    if not example.answers or not all(answer.strip() for answer in example.answers):
        return "an answer is empty or missing"
    if any(not 0 <= place < len(example.documents) for place in example.golden):
        count = len(example.documents)
        return f"no oracle document with text at {example.golden}, of {count} documents from 0"
    if retrieving:
        return ""
    if not example.documents:
        return "no documents; --retrieve bm25:5 --documents FOLDER looks them up"
    golden = [example.documents[place] for place in example.golden]
    return "" if any(text.strip() for text in golden) else "no oracle document with text"


def _read_raft_row(row: object) -> EvalExample:
    """A row of generate: its chunks are the documents."""
    raft = RaftRow.model_validate(row)
    documents, place = raft.with_oracle()
    answer, answered = find_answer(raft.cot_answer)
    return EvalExample(
        id=raft.id,
        question=raft.question,
        answers=[raft.answer or (answer if answered else "")],
        documents=documents,
        golden=[place],
        kind="" if raft.type == "general" else raft.type,
        sources=[raft.document_id] if raft.document_id else [],
    )


def _read_hub(dataset: str, name: str, configuration: str, split: str) -> list[EvalExample]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the hub's data set cannot be read ({first_line(error)})",
            path=name,
            hint="Give --questions a file.",
        ) from error
    return [load_dataset_module(dataset).read(row) for row in rows]
