"""Two processes on a CPU train as one does with the doubled batch, and stop and resume as one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.errors import ConfigError, RaftError
from components.core.models import load_tokenizer
from components.core.records import TrainingRecord, read_json
from components.core.storage import MANIFEST, finish_artifact
from components.train import train
from components.train.config import TrainConfig
from components.train.rows import read_rows
from components.train.sharding import choose_sharding
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(300)


def config(dataset: Path, model: Path, output: Path, **settings: Any) -> TrainConfig:
    short = {"epochs": 2, "gradient_accumulation": 2, "rank": 4, "learning_rate": 2e-3}
    short |= {"gradient_checkpointing": False, "checkpoint_steps": 2}
    given = {"dataset": str(dataset), "base_model": str(model), "output": str(output)}
    return TrainConfig.parse(given | short | settings)


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
    train.run(config(world_dataset, demo_model, output, batch_size=6))
    return output


def same_curve(found: TrainingRecord, wanted: TrainingRecord) -> None:
    for mine, other in zip(found.curve, wanted.curve, strict=True):
        assert (mine.step, mine.split) == (other.step, other.split)
        assert mine.loss == pytest.approx(other.loss, rel=1e-4), mine
    assert found.tokens == wanted.tokens


def same_weights(found: Path, wanted: Path) -> None:
    """Adapters that were trained in another number of processes: equal but for rounding."""
    mine, other = (load_file(folder / "adapter_model.safetensors") for folder in (found, wanted))
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        # Adam makes a step of a tiny gradient, too, so a rounding there shows in single numbers.
        assert (weight - other[name]).abs().mean() < 2e-6, name


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_lose_as_one_with_twice_the_batch(
    sharding: str, world_dataset: Path, demo_model: Path, one: Path, tmp_path: Path
) -> None:
    """Each with a whole model, or with its share of one; stopped by SIGTERM in between, too."""
    output = tmp_path / "two"
    settings = config(
        world_dataset, demo_model, output, batch_size=3, processes=2, sharding=sharding
    )
    process, log = start(settings, tmp_path)
    while process.poll() is None and not list(output.glob("checkpoints/checkpoint-2")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, text = process.wait(), log.read_text(encoding="utf-8")
    assert code == 143, text
    assert text.count("SIGTERM: stopped after step") == 1
    assert ("one copy of the model on 2 processes (FSDP)" in text) is (sharding == "full")
    process, log = start(settings, tmp_path)
    assert process.wait() == 0 and "resuming after step" in log.read_text(encoding="utf-8")
    record = read_json(output / "training.json", TrainingRecord)
    same_curve(record, read_json(one / "training.json", TrainingRecord))
    assert record.total_parameters == 719_104 + 26_112
    same_weights(output, one)


def start(settings: TrainConfig, folder: Path) -> tuple["subprocess.Popen[bytes]", Path]:
    flags = [
        f"--{name.replace('_', '-')}={json.dumps(value) if isinstance(value, list) else value}"
        for name, value in settings.model_dump(mode="json").items()
        if value not in ("", [], ["all-linear"])
    ]
    log = folder / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "pipelines", "train", *flags]
        return subprocess.Popen(command, stderr=file, cwd=REPOSITORY), log


def test_a_split_model_is_trained_whole_and_resumes_with_the_same_bytes(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    """Every weight and moment lies on one process or the other; a checkpoint holds them whole."""
    demo_model = even(demo_model, tmp_path / "model")
    settings = {"method": "full", "learning_rate": 1e-3, "epochs": 1, "checkpoint_steps": 1}
    alone = tmp_path / "alone"
    train.run(config(world_dataset, demo_model, alone, batch_size=6, **settings))
    settings |= {"batch_size": 3, "processes": 2, "sharding": "full"}
    split = tmp_path / "split"
    train.run(config(world_dataset, demo_model, split, **settings))
    again = config(world_dataset, demo_model, tmp_path / "again", **settings)
    process, _ = start(again, tmp_path)
    first = tmp_path / "again" / "checkpoints" / "checkpoint-1"
    while process.poll() is None and not (first / MANIFEST).exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    train.run(again)
    same_curve(*(read_json(f / "training.json", TrainingRecord) for f in (split, alone)))
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (split / weights).read_bytes()
    mine, other = load_file(split / weights), load_file(alone / weights)
    assert mine.keys() == other.keys()
    # Adam divides by the square root of the second moment: a rounding in a tiny gradient shows.
    assert all((mine[name] - other[name]).abs().mean() < 1e-5 for name in mine)
    assert "distributed_config" not in (split / "config.json").read_text(encoding="utf-8")


def even(model: Path, target: Path) -> Path:
    """The model with an even number of tokens, which two processes can share."""
    import transformers

    shutil.copytree(model, target)
    grown = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(0)
    grown.resize_token_embeddings(1772, mean_resizing=False)
    grown.save_pretrained(target)
    return target


def test_a_head_that_cannot_be_shared_evenly_is_refused(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    settings = {"method": "full", "processes": 2, "sharding": "full"}
    with pytest.raises(RaftError, match="whose 1771 rows the processes cannot share") as wrong:
        train.run(config(world_dataset, demo_model, tmp_path / "out", **settings))
    assert wrong.value.exit_code == 2


def test_a_model_is_split_between_several_processes_only(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs more than one process"):
        config(world_dataset, demo_model, tmp_path, sharding="full", processes=1)
    with pytest.raises(ConfigError, match="cannot split 4-bit weights"):
        config(world_dataset, demo_model, tmp_path, sharding="full", load_in_4bit=True)
    with pytest.raises(ConfigError, match="and there is one"):
        train.run(config(world_dataset, demo_model, tmp_path / "out", sharding="full"))


@pytest.mark.parametrize(("gib", "shared"), [(40.0, False), (0.5, True)])
def test_auto_shares_where_a_whole_model_does_not_fit(
    gib: float,
    shared: bool,
    world_dataset: Path,
    demo_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(world_dataset, demo_model, tmp_path / "out")
    tokenizer = load_tokenizer(str(demo_model))
    gpu = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    rows = read_rows(settings, tokenizer)
    split, reason = choose_sharding(settings, rows)
    assert split is shared and f"of {gib:.1f}" in reason
    assert reason.startswith("one copy of the model" if shared else "a whole model")
    another = shutil.copytree(demo_model, tmp_path / "another")
    text = (another / "config.json").read_text(encoding="utf-8")
    text = text.replace('"model_type": "llama"', '"model_type": "gemma"')
    (another / "config.json").write_text(text, encoding="utf-8")
    unknown = config(world_dataset, another, tmp_path / "out")
    split, reason = choose_sharding(unknown, rows)
    assert not split and "whether it fits is not known" in reason


def test_the_error_of_a_process_is_raised_by_the_stage(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(demo_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(RaftError, match="cannot be loaded") as wrong:
        train.run(config(world_dataset, model, tmp_path / "out", processes=2))
    assert wrong.value.exit_code == 2 and "safetensors" in wrong.value.hint
