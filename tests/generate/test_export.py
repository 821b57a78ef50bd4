import json
from pathlib import Path

import pytest

from components.errors import DataError
from components.generate import export, generate
from components.generate.config import GenerateConfig
from components.generate.export import PUBLISHED, ExportConfig, read_rows
from components.records import RaftRow, read_jsonl
from components.storage import verify


@pytest.fixture
def dataset(texts: Path, tmp_path: Path) -> Path:
    generate.run(GenerateConfig(documents=str(texts), output=str(tmp_path / "dataset")))
    return tmp_path / "dataset"


def exported(source: Path, output: Path, form: str, kind: str, **more: str) -> Path:
    export.run(
        ExportConfig.parse(
            {"dataset": str(source), "output": str(output), "format": form, "type": kind, **more}
        )
    )
    verify(output, "--dataset")
    return output


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("hf", list(PUBLISHED)),
        ("completion", ["prompt", "completion"]),
        ("chat", ["messages"]),
        ("eval", ["id", "question", "context", "answer", "oracle_context"]),
    ],
)
def test_datasets_reads_every_format(
    dataset: Path, tmp_path: Path, form: str, columns: list[str], kind: str
) -> None:
    import datasets

    folder = exported(dataset, tmp_path / "out", form, kind)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 9, "validation": 1}
    assert loaded["train"].column_names == columns
    row = loaded["train"][0]
    ours = next(read_jsonl(dataset / "train.jsonl", RaftRow))
    if form == "hf":
        assert RaftRow.model_validate(row).context == ours.context
    if form == "completion":
        assert row == {"prompt": ours.instruction, "completion": ours.cot_answer}
    if form == "chat":
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] == ours.cot_answer
    if form == "eval":
        assert row["answer"] == ours.answer
        assert row["context"] + "\n" + row["question"] == ours.instruction


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_published_files_are_read_back(dataset: Path, tmp_path: Path, kind: str) -> None:
    folder = exported(dataset, tmp_path / "published", "hf", kind)
    found = list(read_rows(folder / f"train.{kind}"))
    ours = list(read_jsonl(dataset / "train.jsonl", RaftRow))
    for theirs, mine in zip(found, ours, strict=True):
        assert theirs.model_dump(include=set(PUBLISHED)) == mine.model_dump(include=set(PUBLISHED))
        assert theirs.answer == ""
    again = exported(folder / f"train.{kind}", tmp_path / "again", "eval", "jsonl")
    first = json.loads((again / "train.jsonl").open(encoding="utf-8").readline())
    assert first["answer"] == ours[0].answer, "read from the chain of thought"


def test_a_system_prompt_opens_every_chat(dataset: Path, tmp_path: Path) -> None:
    told = {"system_prompt": "Quote, then answer."}
    folder = exported(dataset, tmp_path / "out", "chat", "jsonl", **told)
    for line in (folder / "train.jsonl").open(encoding="utf-8"):
        first, *rest = json.loads(line)["messages"]
        assert first == {"role": "system", "content": "Quote, then answer."} and len(rest) == 2


def test_what_holds_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"id": 5}\n', encoding="utf-8")
    (tmp_path / "bad.parquet").write_text("not parquet", encoding="utf-8")
    for name, complaint in (
        ("empty", "no RAFT rows here"),
        ("none.jsonl", "no RAFT rows here"),
        ("bad.jsonl", "bad.jsonl:1: "),
        ("bad.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(DataError, match=complaint):
            exported(tmp_path / name, tmp_path / "out", "hf", "jsonl")
