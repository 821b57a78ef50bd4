"""Questions whose answers are given (`--gold-questions`): the teacher only explains them.

So the paper's rows were made (Zhang et al. 2024, section 3). Each question brings the text that
answers it, its supporting paragraphs, as an oracle of its own; documents give the distractors.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from components.core.errors import DataError
from components.core.json_entries import fault_at, read_entries
from components.core.records import Chunk, Gold, Question, explain

HINT = "--gold-questions takes questions in HotpotQA format (https://hotpotqa.github.io)."


def read_gold(path: Path) -> Iterator[Chunk]:
    """The oracle of each question of a file, which carries the question.

    Raises:
        DataError: the file cannot be read or has no questions, or one has no supporting sentence;
            names the row or line.
    """
    kind, rows = read_entries(path, hint=HINT)
    number = 0
    for number, row in rows:
        try:
            question = Question.model_validate(row)
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=HINT) from error
        sentences = question.supporting_sentences()
        if not sentences:
            raise fault_at(path, kind, number, "no supporting sentence", hint=HINT)
        text = "\n\n".join(part.strip() for part in question.oracles())
        yield Chunk(
            id=f"gold#{question.id}",
            document_id=f"gold#{question.id}",
            title=" / ".join(dict.fromkeys(title for title, _ in question.supporting_facts)),
            text=text,
            start=0,
            end=len(text),
            gold=Gold(question=question.question, answer=question.answer, sentences=sentences),
        )
    if not number:
        raise DataError("contains no questions", path=path, hint=HINT)
