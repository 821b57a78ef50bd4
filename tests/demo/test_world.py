"""The invented world: unseen means unseen, and the teacher asks what the evaluation asks."""

import json
from pathlib import Path

from components.core.ledger import Ledger
from components.core.records import Chunk, Question
from components.generate.teachers.extractive import ExtractiveTeacher
from pipelines.demo.world import articles, write_documents, write_questions


def test_titles_are_unique_and_excluded_ones_stay_out() -> None:
    known = articles(300, seed=1)
    titles = {article.title for article in known}
    assert len(titles) == 300
    assert not titles & {article.title for article in articles(300, seed=2, exclude=titles)}
    assert articles(300, seed=1) == known != articles(300, seed=2)


def test_the_teacher_asks_the_worlds_own_questions(tmp_path: Path) -> None:
    """Rules and world agree word for word, or training and evaluation would differ in form."""
    teacher = ExtractiveTeacher(questions_per_chunk=9, seed=0)
    known = articles(60, seed=3)
    for article in known:
        chunk = Chunk(
            id="c", document_id="d", title="t", text=article.text, start=0, end=len(article.text)
        )
        ((_, drafts),) = teacher.drafts([chunk], Ledger("generate", tmp_path))
        asked = {(draft.question, draft.cot_answer.rpartition("<ANSWER>: ")[2]) for draft in drafts}
        assert asked == {(fact.question, fact.answer) for fact in article.facts}


def test_questions_show_the_oracle_among_distractors_of_its_kind(tmp_path: Path) -> None:
    known = articles(120, seed=4)
    write_questions(known, count=150, distractors=3, seed=5, path=tmp_path / "questions.json")
    rows = json.loads((tmp_path / "questions.json").read_text(encoding="utf-8"))
    kinds = {article.title: article.kind for article in known}
    positions = []
    for row in rows:
        question = Question.model_validate(row)
        titles = [title for title, _ in question.context]
        ((oracle, sentence),) = question.supporting_facts
        assert len(set(titles)) == 4 and oracle in titles
        assert len({kinds[title] for title in titles}) == 1
        assert question.answer in dict(question.context)[oracle][sentence]
        positions.append(titles.index(oracle))
    assert len({row["_id"] for row in rows}) == 150
    assert all(positions.count(place) > 20 for place in range(4))


def test_documents_are_written_one_a_file(tmp_path: Path) -> None:
    known = articles(30, seed=6)
    write_documents(known, tmp_path)
    texts = {path.read_text(encoding="utf-8").strip() for path in tmp_path.iterdir()}
    assert texts == {article.text for article in known}
