"""Questions that are given with their answers, through the teachers and the whole stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.core.records import Question, RaftRow, read_jsonl
from components.generate import generate
from components.generate.gold import read_gold
from tests.conftest import by_rules
from tests.eval.conftest import make_question
from tests.generate.conftest import Ask, rows_of
from tests.generate.teacher_server import Answer, teacher_server


def test_the_supporting_paragraphs_are_the_oracle_and_their_sentences_are_quoted(
    hotpotqa: Path, tmp_path: Path
) -> None:
    source = str(hotpotqa)
    report = generate.run(
        by_rules(source, tmp_path, gold_questions=source, max_chunks=0, oracle_probability=1)
    )
    by_text = {
        question.question: question
        for question in map(Question.model_validate, json.loads(Path(source).read_text()))
    }
    made = rows_of(tmp_path)
    assert report.chunks_used == 30 and len(made) >= 28, report.dropped
    assert report.rows["validation"] == 3
    assert report.warnings[0].startswith("Rules wrote the answers to the given questions")
    for row in made:
        question = by_text[row.question]
        assert row.answer == question.answer
        quotes = [
            part.split("##end_quote##")[0] for part in row.cot_answer.split("##begin_quote##")
        ]
        assert quotes[1:] == question.supporting_sentences()
        for paragraph in question.oracles():
            assert paragraph.strip() in row.oracle_context
            others = set(row.context.sentences[0]) - {row.oracle_context}
            assert paragraph.strip() not in others, "the rest of the oracle is no distractor"


def test_questions_about_one_paragraph_are_in_one_split(hotpotqa: Path, tmp_path: Path) -> None:
    questions = json.loads(hotpotqa.read_text(encoding="utf-8"))
    again = [
        question | {"_id": f"{number}", "question": f"{question['question']} (asked again)"}
        for number, question in enumerate(questions)
    ]
    file = tmp_path / "gold.json"
    file.write_text(json.dumps([*questions, *again]), encoding="utf-8")
    generate.run(
        by_rules(
            str(hotpotqa), tmp_path / "out", gold_questions=str(file), max_chunks=0,
            validation_fraction=0.5,
        )
    )  # fmt: skip
    train, validation = (
        {row.oracle_context for row in read_jsonl(tmp_path / "out" / f"{split}.jsonl", RaftRow)}
        for split in ("train", "validation")
    )
    assert len(train) > 5 < len(validation) and train.isdisjoint(validation)


def test_a_file_without_such_questions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gold.json"
    for content, problem in (
        ([], "contains no questions"),
        ([{"question": "?"}], "row 1: _id: Field required"),
        ([make_question(0, supporting_facts=[["Ada0", 9]])], "row 1: no supporting sentence"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=problem):
            list(read_gold(path))


def test_a_teacher_explains_the_given_answer_and_no_other(ask: Ask, tmp_path: Path) -> None:
    gold = [make_question(number) for number in range(6)]
    (tmp_path / "gold.json").write_text(json.dumps(gold))

    def explain(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][0]["content"]
        number = next(n for n in range(6) if f"Where was Ada{n} born?" in prompt)
        assert prompt.count(f"and end with it, word for word: Kelden {number}\n") == 1
        quote = f"##begin_quote##Ada{number} was born in Kelden {number}.##end_quote##"
        return Answer(f"{quote}\n<ANSWER>: {'Mossby' if number == 3 else f'kelden {number}.'}")

    with teacher_server(explain) as server:
        report, made = ask(server, gold_questions=str(tmp_path / "gold.json"))
        assert len(server.seen) == 6, "no question is asked for"
    assert report.dropped == {"explains another answer than the given one": 1}
    assert report.rows == {"train": 4, "validation": 1}
    assert sorted(row.question for row in made) == [
        f"Where was Ada{number} born?" for number in (0, 1, 2, 4, 5)
    ]
    assert all(row.answer.startswith("Kelden ") for row in made), "as it is given"
