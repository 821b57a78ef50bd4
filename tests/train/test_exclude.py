"""`raft train --exclude`: rows that a person left out after a look at them."""

from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.core.models import load_tokenizer
from components.core.records import RaftRow, read_jsonl
from components.train.config import TrainConfig
from components.train.rows import read_rows
from components.train.train import _identity


@pytest.fixture
def first(world_dataset: Path) -> RaftRow:
    return next(iter(read_jsonl(world_dataset / "train.jsonl", RaftRow)))


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return load_tokenizer(str(demo_model))


@pytest.fixture
def config(world_dataset: Path, demo_model: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset=str(world_dataset), base_model=str(demo_model), output=str(tmp_path / "adapter"),
        exclude=str(tmp_path / "exclude.txt"),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["{0.id}\n", "\n{0.id}\t{0.question}\n\n", "{0.id}"])
def test_rows_are_left_out_by_their_id(
    form: str, first: RaftRow, config: TrainConfig, tokenizer: Any
) -> None:
    whole = read_rows(config.model_copy(update={"exclude": ""}), tokenizer)
    Path(config.exclude).write_text(form.format(first), encoding="utf-8")
    rows = read_rows(config, tokenizer)
    assert (len(rows.train), rows.excluded) == (len(whole.train) - 1, 1)
    assert list(rows.train[0]["input_ids"]) == list(whole.train[1]["input_ids"])
    identity = _identity(config)
    assert identity.keys() - _identity(config.model_copy(update={"exclude": ""})) == {"exclude"}
    Path(config.exclude).write_text("", encoding="utf-8")
    assert _identity(config)["exclude"] != identity["exclude"], "a checkpoint is of other rows"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\nseed_task_999\n", ":2: no row 'seed_task_999' in the dataset"),
        ("{0.id}\tIs it another?\n", ":1: row '{0.id}' has another question in this dataset"),
    ],
)
def test_a_file_of_another_dataset_is_named_with_its_line(
    text: str, problem: str, first: RaftRow, config: TrainConfig, tokenizer: Any
) -> None:
    Path(config.exclude).write_text(text.format(first), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(config, tokenizer)
    assert str(caught.value) == config.exclude + problem.format(first)
    assert "raft rows" in caught.value.hint


def test_no_such_file(config: TrainConfig, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="No such file") as caught:
        read_rows(config, tokenizer)
    assert "--exclude" in caught.value.hint
