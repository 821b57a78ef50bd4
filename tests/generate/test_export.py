import json
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.core.records import RaftRow, read_jsonl
from components.core.storage import verify
from components.generate import export, generate
from components.generate.export import PUBLISHED, ExportConfig
from tests.conftest import by_rules


@pytest.fixture
def dataset(texts: Path, tmp_path: Path) -> Path:
    generate.run(by_rules(texts, tmp_path / "dataset"))
    return tmp_path / "dataset"


def exported(source: Path, output: Path, form: str) -> Path:
    export.run(ExportConfig.parse({"dataset": str(source), "output": str(output), "format": form}))
    verify(output, "--dataset")
    return output


def test_datasets_reads_the_published_columns(dataset: Path, tmp_path: Path) -> None:
    import datasets

    folder = exported(dataset, tmp_path / "out", "hf")
    assert (dataset / "dropped.jsonl").is_file() and not (folder / "dropped.jsonl").exists()
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 9, "validation": 1}
    assert loaded["train"].column_names == list(PUBLISHED)
    for theirs, ours in zip(
        loaded["train"], read_jsonl(dataset / "train.jsonl", RaftRow), strict=True
    ):
        assert theirs == ours.model_dump(include=set(PUBLISHED))


def test_rows_become_chats_even_if_they_are_published_ones(dataset: Path, tmp_path: Path) -> None:
    published = exported(dataset, tmp_path / "published", "hf") / "train.jsonl"
    folder = exported(published, tmp_path / "out", "chat")
    ours = read_jsonl(dataset / "train.jsonl", RaftRow)
    with (folder / "train.jsonl").open(encoding="utf-8") as chats:
        for chat, row in zip(map(json.loads, chats), ours, strict=True):
            assert chat == {"messages": [
                {"role": "user", "content": row.instruction},
                {"role": "assistant", "content": row.cot_answer},
            ]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("empty", "no RAFT rows here"),
        ("none.jsonl", "no such file or folder"),
        ("bad.jsonl", "bad.jsonl:1: "),
    ],
)
def test_what_holds_no_rows_is_named(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"id": 5}\n', encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        exported(tmp_path / name, tmp_path / "out", "hf")
