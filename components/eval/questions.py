"""Read questions, draw a sample, and choose the paragraphs that are shown.

Questions come in HotpotQA form, from the hub's HotpotQA, or as the rows that `generate` wrote. A
file is a JSON list, as HotpotQA is published, or JSON Lines; one entry (shortened)::

    {"_id": "5a8b57f2", "question": "Where was Ada Voss born?", "answer": "Kelden",
     "supporting_facts": [["Ada Voss", 0]],
     "context": [["Ada Voss", ["Ada Voss was born in Kelden.", " She …"]], ["Bram Kell", ["…"]]]}

Knows nothing of models or prompts.
"""

import random
import zlib
from pathlib import Path

from pydantic import ValidationError

from components.core.errors import DataError, first_line
from components.core.raft_form import find_answer
from components.core.records import Oracle, Question, RaftRow, Record, explain
from components.core.rows import fault_at, read_entries

ALL_DISTRACTORS = -1
HUB = "hotpotqa/hotpot_qa"
VALIDATION = "validation.jsonl"
FORM = "See https://hotpotqa.github.io for the form; the README shows an example."


class AskedQuestion(Record):
    """A question as it is asked: the paragraphs shown, and which of them hold the answer.

    This is the row of the file that the lm-eval task reads.
    """

    id: str
    question: str
    answer: str
    documents: list[str]
    oracle_indices: list[int]


def choose_questions(source: str | Path, *, max_questions: int, seed: int) -> list[Question]:
    """Read questions and take those to ask, in the source's order.

    Args:
        source: a file, a dataset folder of generate, or `hotpotqa/hotpot_qa` for the hub's.
        max_questions: when there are more, this many are drawn by `seed`.
        seed: of the draw.

    Raises:
        DataError: as `read_questions`, or the hub cannot be reached.
    """
    path = Path(source)
    if str(source) == HUB and not path.exists():
        questions = _from_hub()
    elif not path.exists():
        raise DataError(
            "no such file or folder",
            path=path,
            hint=f"Check --questions: a file, a folder of raft generate, or {HUB}. {FORM}",
        )
    elif path.is_dir() and not (path / VALIDATION).is_file():
        raise DataError(
            f"no {VALIDATION} in it",
            path=path,
            hint="Check --questions: a folder must be one that raft generate wrote.",
        )
    else:
        # The rows that generate kept back: nothing was trained on them.
        questions = read_questions(path / VALIDATION if path.is_dir() else path)
    if len(questions) > max_questions:
        drawn = sorted(random.Random(seed).sample(range(len(questions)), max_questions))
        questions = [questions[index] for index in drawn]
    return questions


def read_questions(path: Path) -> list[Question]:
    """Every question of a file.

    Raises:
        DataError: the file cannot be read or holds no question, or a row is malformed, has no
            documents or no oracle paragraph, or repeats an id; names the row (of a list) or the
            line (of JSON Lines).
    """
    kind, rows = read_entries(path, hint=FORM)
    questions: list[Question] = []
    places: dict[str, int] = {}
    for number, row in rows:
        try:
            question = Question.model_validate(_in_hotpotqa_form(row))
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=FORM) from None
        if fault := _fault(question):
            raise fault_at(path, kind, number, fault, hint=FORM)
        if question.id in places:
            first = f"{kind} {places[question.id]}"
            fault = f"_id: {question.id!r} is already in {first}"
            raise fault_at(path, kind, number, fault, hint=FORM)
        places[question.id] = number
        questions.append(question)
    if not questions:
        raise DataError("holds no question", path=path, hint=FORM)
    return questions


def show(question: Question, distractors: int, oracle: Oracle = "present") -> AskedQuestion:
    """Choose the paragraphs: the oracle ones and the first `distractors` others.

    Args:
        question: with all its paragraphs.
        distractors: how many others; -1 is all.
        oracle: present keeps the question's order; first and last move the oracle paragraphs to
            that end; absent leaves them out.
    """
    titles = _oracle_titles(question)
    room = len(question.context) if distractors == ALL_DISTRACTORS else distractors
    oracles: list[str] = []
    others: list[str] = []
    in_order: list[tuple[str, bool]] = []
    for title, sentences in question.context:
        text = "".join(sentences)
        if title in titles:
            oracles.append(text)
            in_order.append((text, True))
        elif len(others) < room:
            others.append(text)
            in_order.append((text, False))
    arranged: dict[Oracle, list[tuple[str, bool]]] = {
        "present": in_order,
        "absent": [(text, False) for text in others],
        "first": [*((text, True) for text in oracles), *((text, False) for text in others)],
        "last": [*((text, False) for text in others), *((text, True) for text in oracles)],
    }
    return AskedQuestion(
        id=question.id,
        question=question.question,
        answer=question.answer,
        documents=[text for text, _ in arranged[oracle]],
        oracle_indices=[
            index for index, (_, is_oracle) in enumerate(arranged[oracle]) if is_oracle
        ],
    )


# ---- other forms -------------------------------------------------------------------------------


def _from_hub() -> list[Question]:
    """HotpotQA's validation set in the distractor setting."""
    from datasets import load_dataset

    try:
        rows = load_dataset(HUB, "distractor", split="validation")
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(
            f"the hub's data set cannot be read ({first_line(error)})",
            path=HUB,
            hint="Give --questions a file in HotpotQA form.",
        ) from None
    return [Question.model_validate(_in_hotpotqa_form(row)) for row in rows]


def _in_hotpotqa_form(row: object) -> object:
    """Bring the hub's rows and generate's into HotpotQA form; others stay as they are."""
    if not isinstance(row, dict):
        return row
    if "cot_answer" in row:
        return _from_raft(RaftRow.model_validate(row))
    facts, context = row.get("supporting_facts"), row.get("context")
    if not isinstance(facts, dict) or not isinstance(context, dict):
        return row
    # The hub keeps titles and sentences in parallel lists.
    return {
        **{name: row[name] for name in ("question", "answer") if name in row},
        **({"_id": row["id"]} if "id" in row else {}),
        "supporting_facts": _pairs(facts, "title", "sent_id"),
        "context": _pairs(context, "title", "sentences"),
    }


def _pairs(columns: dict[str, object], *names: str) -> object:
    """Two parallel lists as pairs; what is not that stays, for the checks to refuse."""
    first, second = (columns.get(name) for name in names)
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return list(zip(first, second, strict=True))
    return columns


def _from_raft(row: RaftRow) -> dict[str, object]:
    """A row of generate: its chunks are the paragraphs, named by their place.

    Chunks of one document share a title, so titles cannot say which one is the oracle. A row whose
    oracle was left out in training gets it back, at a place that the row's id decides.
    """
    documents = list(row.context.sentences[0]) if row.context.sentences else []
    place = row.oracle_index
    if place is None and row.oracle_context in documents:  # published rows have no index
        place = documents.index(row.oracle_context)
    if place is None:
        place = zlib.crc32(row.id.encode()) % (len(documents) + 1)
        documents.insert(place, row.oracle_context)
    return {
        "_id": row.id,
        "question": row.question,
        "answer": row.answer or find_answer(row.cot_answer)[0],
        "supporting_facts": [(str(place), 0)],
        "context": [(str(index), [text]) for index, text in enumerate(documents)],
    }


# ---- checks ------------------------------------------------------------------------------------


def _oracle_titles(question: Question) -> set[str]:
    return {title for title, _ in question.supporting_facts}


def _fault(question: Question) -> str:
    for name in ("id", "question", "answer"):
        if not getattr(question, name).strip():
            return f"{'_id' if name == 'id' else name}: is empty"
    if not question.context:
        return "context: has no paragraph"
    oracles = _oracle_titles(question)
    if not any(title in oracles and "".join(text).strip() for title, text in question.context):
        return "context: has no paragraph with text whose title is in supporting_facts"
    return ""
