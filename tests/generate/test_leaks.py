import json
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.core.records import RaftRow, read_jsonl
from components.generate import generate
from components.generate.leaks import LeakGuard
from tests.conftest import by_rules
from tests.eval.conftest import make_question

PARAGRAPH = (
    "Ada Voss was born in the harbour town of Kelden in 1850. She studied law, sailed north with "
    "three ships, and was elected mayor of her town at the age of forty."
)


def guard(folder: Path) -> LeakGuard:
    question = make_question(0) | {
        "question": "In which harbour town was Ada Voss born?",
        "context": [["Ada0", [PARAGRAPH]], ["Bram0", ["Bram paints.", " Nobody knows why."]]],
    }
    (folder / "dev.json").write_text(json.dumps([question]), encoding="utf-8")
    return LeakGuard(folder / "dev.json")


def test_rows_of_generate_may_be_given_by_their_folder(world_dataset: Path, tmp_path: Path) -> None:
    row = next(read_jsonl(world_dataset / "validation.jsonl", RaftRow))
    assert LeakGuard(world_dataset).knows_question(row.question)
    with pytest.raises(DataError) as error:
        LeakGuard(tmp_path / "hotpotqa" / "hotpot_qa")
    assert "on the hub have to be downloaded first" in error.value.hint


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (PARAGRAPH, True),
        (PARAGRAPH.upper().replace(",", ""), True),
        ("Once upon a time. " * 50 + PARAGRAPH, True),
        (PARAGRAPH[: len(PARAGRAPH) // 2], True),
        ("She studied law", True),
        (PARAGRAPH[:50] + " Then something else happened altogether, of which many books tell "
         "at length and with pleasure, year after year.", False),
        ("Bram paints. Nobody knows why.", False),
        ("Ada Voss sails.", False),
        ("", False),
    ],
)  # fmt: skip
def test_contexts(tmp_path: Path, text: str, known: bool) -> None:
    assert guard(tmp_path).knows_context(text) is known


@pytest.mark.parametrize(
    ("question", "known"),
    [
        ("in which harbour town was ada voss born", True),
        ("Ada Voss was born in which harbour town?", True),
        ("In which harbor town was Ada Voss born?", True),
        ("In which harbour town did Bram Kell die?", False),
        ("In which harbour town was Ada Kell born?", False),
    ],
)
def test_questions(tmp_path: Path, question: str, known: bool) -> None:
    assert guard(tmp_path).knows_question(question) is known


def test_no_row_shows_a_paragraph_that_answers_an_evaluation_question(
    hotpotqa: Path, tmp_path: Path
) -> None:
    report = generate.run(
        by_rules(hotpotqa, tmp_path / "out", eval_questions=str(hotpotqa), max_chunks=300)
    )
    oracles = {
        "".join(sentences).strip()
        for row in json.loads(hotpotqa.read_text(encoding="utf-8"))
        for title, sentences in row["context"]
        if title in {name for name, _ in row["supporting_facts"]}
    }
    assert report.chunks_left_out["gives away an evaluation question"] >= 0.95 * len(oracles)
    for split in ("train", "validation"):
        for row in read_jsonl(tmp_path / "out" / f"{split}.jsonl", RaftRow):
            assert not {row.oracle_context, *row.context.sentences[0]} & oracles


def test_rows_of_generate_are_guarded_too(tmp_path: Path, texts: Path) -> None:
    made = by_rules(texts, tmp_path / "out")
    generate.run(made)
    (row,) = read_jsonl(tmp_path / "out" / "validation.jsonl", RaftRow)
    rows = LeakGuard(tmp_path / "out" / "validation.jsonl")
    assert rows.knows_question(row.question) and rows.knows_context(row.oracle_context)


def test_questions_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text('[{"question": "?"}]', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: _id: Field required"):
        LeakGuard(tmp_path / "dev.json")
    (tmp_path / "dev.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="contains no questions"):
        LeakGuard(tmp_path / "dev.json")
