"""Questions are read as published, and what is wrong with them is said with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.core.records import Oracle
from components.eval.questions import ContextLayout, arrange, choose_examples, read_examples
from components.eval.tasks.hotpotqa import hotpotqa
from tests.eval.conftest import make_question


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "dev.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def without(number: int, field: str) -> dict[str, Any]:
    row = make_question(number)
    del row[field]
    return row


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (without(1, "answer"), "row 2: answer: Field required"),
        (without(1, "_id"), "row 2: _id: Field required"),
        (make_question(1, answer=7), "row 2: answer: Input should be a valid string"),
        (make_question(1, answer=" "), "row 2: an answer is empty or missing"),
        (make_question(1, _id=""), "row 2: the id is empty"),
        (make_question(1, context=[]), "row 2: no documents"),
        (make_question(1, context=[["Ada1"]]), "row 2: context.0.1: Field required"),
        (
            make_question(1, supporting_facts=[["Nobody", 0]]),
            "row 2: no oracle document with text",
        ),
        (
            make_question(1, context=[["Ada1", []], ["Bram1", ["Bram1 sings."]]]),
            "row 2: no oracle document with text",
        ),
        (make_question(0), "row 2: the id 'q0' is already in row 1"),
        (
            {
                **make_question(1),
                "supporting_facts": {"title": ["Ada1"], "sent_id": [0]},
                "context": {"title": ["Ada1", "x"], "sentences": [["Born."]]},
            },
            "row 2: context: Value error, 2 titles but 1 lists of sentences",
        ),
        ("text", "row 2: Input should be a valid dictionary"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, problem: str) -> None:
    path = write(tmp_path, [make_question(0), row])
    with pytest.raises(DataError) as caught:
        read_examples(path, "hotpotqa")
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("lines", "problem"),
    [("\n{oops\n", ":2: not JSON"), ("\n\n{}\n", ":3: _id: Field required")],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: str, problem: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(make_question(0)) + lines, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path, "hotpotqa")
    assert f"{path}{problem}" in str(caught.value)


def test_a_missing_file_and_a_binary_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "none.json", "hotpotqa")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(tmp_path / "binary.json", "hotpotqa")


def test_json_lines_are_read_like_a_list(tmp_path: Path) -> None:
    rows = [make_question(0), make_question(1, answer="line\u2028break")]
    lines = tmp_path / "dev.jsonl"
    lines.write_text(
        "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )
    listed = write(tmp_path, rows)
    assert read_examples(lines, "hotpotqa") == read_examples(listed, "hotpotqa")


def test_a_sample_is_drawn_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = write(tmp_path, [make_question(number) for number in range(50)])

    def draw(seed: int) -> list[int]:
        chosen = choose_examples(str(path), "hotpotqa", max_questions=10, seed=seed)
        return [int(example.id[1:]) for example in chosen]

    assert len(draw(0)) == 10
    assert draw(0) == draw(0) == sorted(draw(0))
    assert draw(0) != draw(1)


@pytest.mark.parametrize(
    ("distractors", "oracle", "titles", "oracles"),
    [
        (2, "present", ["Bram0", "Ada0", "Cora0"], [1]),
        (2, "absent", ["Bram0", "Cora0"], []),
        (2, "first", ["Ada0", "Bram0", "Cora0"], [0]),
        (2, "last", ["Bram0", "Cora0", "Ada0"], [2]),
        (-1, "present", ["Bram0", "Ada0", "Cora0"], [1]),
        (0, "present", ["Ada0"], [0]),
        (1, "present", ["Bram0", "Ada0"], [1]),
        (9, "present", ["Bram0", "Ada0", "Cora0"], [1]),
    ],
)
def test_a_layout_shows_some_distractors_and_moves_the_oracle(
    distractors: int, oracle: Oracle, titles: list[str], oracles: list[int]
) -> None:
    arranged = arrange(hotpotqa.read(make_question(0)), ContextLayout(distractors, oracle))
    assert [document.split()[0] for document in arranged.documents] == titles
    assert arranged.golden == oracles


def raft_row(**changes: Any) -> dict[str, Any]:
    """A validation row whose two chunks come from one document, so they share a title."""
    return {
        "id": "ada.md#1/0",
        "type": "general",
        "question": "Where was Ada born?",
        "context": {"title": [["Ada", "Ada"]], "sentences": [["She paints.", "Born in Kelden."]]},
        "oracle_context": "Born in Kelden.",
        "cot_answer": "##begin_quote##Born in Kelden.##end_quote## <ANSWER>: Kelden",
        "instruction": "…",
        "answer": "Kelden",
        "oracle_index": 1,
        **changes,
    }


def test_rows_of_generate_are_questions(tmp_path: Path) -> None:
    rows = [
        raft_row(),
        raft_row(id="published", oracle_index=None, answer=""),
        raft_row(
            id="left out",
            oracle_index=None,
            context={"title": [["B"]], "sentences": [["She paints."]]},
        ),
    ]
    (tmp_path / "validation.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    chosen = choose_examples(str(tmp_path), "hotpotqa", max_questions=9, seed=0)
    assert [example.answers for example in chosen] == [["Kelden"]] * 3
    for example in chosen:
        (golden,) = example.golden
        assert example.documents[golden] == "Born in Kelden."
        assert sorted(example.documents) == ["Born in Kelden.", "She paints."]


@pytest.mark.parametrize("index", [-1, 2])
def test_an_oracle_that_is_not_there_is_named(tmp_path: Path, index: int) -> None:
    rows = tmp_path / "validation.jsonl"
    rows.write_text(json.dumps(raft_row(oracle_index=index)) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=":1: no oracle document with text"):
        read_examples(rows, "hotpotqa")


@pytest.mark.parametrize("bad", [{"cot_answer": "No.", "answer": ""}, {"context": None}])
def test_an_unfit_row_of_generate_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: dict[str, Any]
) -> None:
    """26: and equal ids are told apart."""
    path = tmp_path / "rows.jsonl"
    rows = [raft_row(id=7), raft_row(**bad), raft_row(id=7, answer="", cot_answer="Answer: sea")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    examples = read_examples(path, "hotpotqa")
    assert [(one.id, one.answers) for one in examples] == [
        ("7", ["Kelden"]),
        ("7 (line 3)", ["sea"]),
    ]
    assert "1 rows are unfit and skipped, the first:" in capsys.readouterr().err
