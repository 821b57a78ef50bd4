from pathlib import Path

import pytest

from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.teachers.extractive import ExtractiveTeacher


def ask(text: str, tmp_path: Path, questions: int = 1) -> list[tuple[str, str]]:
    chunk = Chunk(id="c", document_id="d", title="t", text=text, start=0, end=len(text))
    ((_, drafts),) = ExtractiveTeacher(questions, seed=0).drafts(
        [chunk], Ledger("generate", tmp_path)
    )
    return [
        (draft.question, draft.cot_answer.rpartition("<ANSWER>: ")[2]) if not draft.fault
        else (draft.fault, "")
        for draft in drafts
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Ada Voss was born in Kelden.", "Where was Ada Voss born?", "Kelden"),
        ("Kelden was founded in 1850.", "When was Kelden founded?", "1850"),
        ("The Old Bell was found by Ada Voss.", "By whom was the Old Bell found?", "Ada Voss"),
        ("The Old Bell is made of bronze.", "Of what is the Old Bell made?", "bronze"),
        ("The mayor of Kelden is Ada Voss.", "Who is the mayor of Kelden?", "Ada Voss"),
        ("The flag color of Kelden is red.", "What is the flag color of Kelden?", "red"),
        (
            "Scott Derrickson (born July 16, 1966) is an American director, and writer.",
            "What is Scott Derrickson?",
            "an American director",
        ),
        (
            "Visitors drink green tea near the harbor of Kelden.",
            'Which word or words fill the gap in "Visitors drink green tea near the harbor of '
            '_____."?',
            "Kelden",
        ),
    ],
)
def test_rules(sentence: str, question: str, answer: str, tmp_path: Path) -> None:
    assert ask(sentence, tmp_path) == [(question, answer)]


@pytest.mark.parametrize("text", ["He was born in Kelden.", "# Title", "no sentence here", ""])
def test_nothing_to_ask(text: str, tmp_path: Path) -> None:
    assert ask(text, tmp_path) == [("no sentence to ask about", "")]


def test_several_questions_are_about_different_sentences(tmp_path: Path) -> None:
    text = "Kelden was founded in 1850. The mayor of Kelden is Ada Voss."
    pairs = ask(text, tmp_path, questions=2)
    assert {answer for _, answer in pairs} == {"1850", "Ada Voss"}
