"""Two processes on a CPU train as one does with the doubled batch, and stop and resume as one."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from safetensors.torch import load_file

from components.core.errors import ConfigError, RaftError
from components.core.records import TrainingRecord, read_json
from components.core.storage import finish_artifact
from components.train import train
from tests.train.conftest import Configure, config

pytestmark = pytest.mark.timeout(300)


SHORT = {
    "epochs": 2, "gradient_accumulation": 2, "rank": 4, "learning_rate": 2e-3,
    "checkpoint_steps": 2,
}  # fmt: skip


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, **SHORT)


@pytest.fixture(scope="module")
def world_dataset(world_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one row that is far longer than the others: alone it has a pass of its own."""
    dataset = tmp_path_factory.mktemp("long") / "dataset"
    shutil.copytree(world_dataset, dataset)
    first, *rest = (dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(first)
    row["instruction"] = " ".join([row["instruction"]] * 6)
    (dataset / "train.jsonl").write_text("\n".join([*rest, json.dumps(row), ""]), encoding="utf-8")
    finish_artifact(dataset)
    return dataset


@pytest.fixture(scope="module")
def one(world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "adapter"
    train.run(config(world_dataset, demo_model, output, batch_size=6, **SHORT))
    return output


def same_curve(actual: TrainingRecord, wanted: TrainingRecord) -> None:
    for mine, other in zip(actual.curve, wanted.curve, strict=True):
        assert (mine.step, mine.split) == (other.step, other.split)
        assert mine.loss == pytest.approx(other.loss, rel=1e-4), mine
    assert actual.tokens == wanted.tokens


def same_weights(actual: Path, wanted: Path) -> None:
    """Adapters that were trained in another number of processes: equal but for rounding."""
    mine, other = (load_file(folder / "adapter_model.safetensors") for folder in (actual, wanted))
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        # Adam makes a step of a tiny gradient, too, so a rounding there shows in single numbers.
        assert (weight - other[name]).abs().mean() < 2e-6, name


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_lose_as_one_with_twice_the_batch(
    configure: Configure,
    sharding: str,
    one: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each with a whole model, or with its share of one; stopped by SIGTERM in between, too."""
    output = tmp_path / "two"
    settings = configure(output, batch_size=3, processes=2, sharding=sharding)
    Thread(target=terminate_at, args=[output / "checkpoints/checkpoint-2"], daemon=True).start()
    with pytest.raises(SystemExit) as stop:
        train.run(settings)
    text = capfd.readouterr().err
    assert stop.value.code == 143, text
    assert text.count("SIGTERM: stopped after step") == 1
    train.run(settings)
    assert "resuming after step" in capfd.readouterr().err
    record = read_json(output / "training.json", TrainingRecord)
    same_curve(record, read_json(one / "training.json", TrainingRecord))
    shared = {"none": "a whole model on each of 2 processes"}
    assert record.sharing == shared.get(sharding, "one copy of the model on 2 processes (FSDP)")
    assert record.total_parameters == 719_104 + 26_112
    same_weights(output, one)


def terminate_at(checkpoint: Path) -> None:
    while not checkpoint.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("setting", ["load_in_4bit", "method"])
def test_what_cannot_be_split(configure: Configure, setting: str) -> None:
    other = {"load_in_4bit": True, "method": "full"}[setting]
    with pytest.raises(ConfigError, match="splits 16-bit weights under an adapter"):
        configure(sharding="full", **{setting: other})


def test_the_error_of_a_process_is_raised_by_the_stage(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(RaftError, match="cannot be loaded") as wrong:
        train.run(configure(base_model=model, processes=2))
    assert wrong.value.exit_code == 2 and "safetensors" in wrong.value.hint
