"""Read questions in HotpotQA form, draw a sample, and choose the paragraphs that are shown.

A file is a JSON list, as HotpotQA is published, or JSON Lines; one entry (shortened)::

    {"_id": "5a8b57f2", "question": "Where was Ada Voss born?", "answer": "Kelden",
     "supporting_facts": [["Ada Voss", 0]],
     "context": [["Ada Voss", ["Ada Voss was born in Kelden.", " She …"]], ["Bram Kell", ["…"]]]}

Knows nothing of models or prompts.
"""

import random
from pathlib import Path

from pydantic import ValidationError

from components.errors import DataError
from components.records import Question, Record, explain
from components.rows import fault_at, read_rows

ALL_DISTRACTORS = -1
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


def choose_questions(
    path: Path, *, max_questions: int, distractors: int, seed: int
) -> list[AskedQuestion]:
    """Read a file and take the questions to ask, in the file's order.

    Args:
        path: JSON list or JSON Lines.
        max_questions: when the file has more, this many are drawn by `seed`.
        distractors: paragraphs shown beside the oracle ones; -1 shows all.
        seed: of the draw.

    Raises:
        DataError: as `read_questions`.
    """
    questions = read_questions(path)
    if len(questions) > max_questions:
        drawn = sorted(random.Random(seed).sample(range(len(questions)), max_questions))
        questions = [questions[index] for index in drawn]
    return [show(question, distractors) for question in questions]


def read_questions(path: Path) -> list[Question]:
    """Every question of a file.

    Raises:
        DataError: the file cannot be read or holds no question, or a row is malformed, has no
            documents or no oracle paragraph, or repeats an id; names the row (of a list) or the
            line (of JSON Lines).
    """
    kind, rows = read_rows(path, hint=FORM)
    questions: list[Question] = []
    places: dict[str, int] = {}
    for number, row in rows:
        try:
            question = Question.model_validate(row)
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


def show(question: Question, distractors: int) -> AskedQuestion:
    """Keep the oracle paragraphs and the first `distractors` others, in the question's order."""
    oracles = _oracle_titles(question)
    room = len(question.context) if distractors == ALL_DISTRACTORS else distractors
    documents: list[str] = []
    oracle_indices: list[int] = []
    for title, sentences in question.context:
        if title in oracles:
            oracle_indices.append(len(documents))
        elif room > 0:
            room -= 1
        else:
            continue
        documents.append("".join(sentences))
    return AskedQuestion(
        id=question.id,
        question=question.question,
        answer=question.answer,
        documents=documents,
        oracle_indices=oracle_indices,
    )


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
