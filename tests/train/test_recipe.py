"""What 0 stands for: the learning rate by width, and the rows of a step by their number."""

from pathlib import Path
from typing import Any

import pytest

from components.core import redaction
from components.core.errors import ConfigError
from components.core.records import TrainingRecord, read_json
from components.train import train
from components.train.config import TrainConfig
from components.train.recipe import ROWS_A_STEP, choose_recipe
from tests.train.conftest import config as quick


def chosen(rows: int, hidden: int = 4096, processes: int = 1, **settings: Any) -> TrainConfig:
    required = {"dataset": "-", "output": "-", "base_model": "-"}
    return choose_recipe(TrainConfig.parse(required | settings), rows, hidden, processes)


@pytest.mark.parametrize(
    ("hidden", "settings", "rate"),
    [
        (2000, {}, 5e-4),
        (4096, {}, 2.9e-4),
        (576, {}, 1.3e-3),
        (4096, {"method": "full"}, 2.9e-5),
        (576, {"learning_rate": 1e-5}, 1e-5),
    ],
)
def test_the_learning_rate_follows_the_width(
    hidden: int, settings: dict[str, Any], rate: float
) -> None:
    assert chosen(300, hidden, **settings).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
@pytest.mark.parametrize(("rows", "a_step"), [(10, 1), (50, 3), (100, 6), (300, 16), (5000, 16)])
def test_few_rows_make_small_steps(rows: int, a_step: int, batch_size: int) -> None:
    settings = chosen(rows, batch_size=batch_size)
    assert settings.batch_size <= batch_size
    rows_a_step = settings.batch_size * settings.gradient_accumulation
    assert abs(rows_a_step - a_step) <= 1 and rows_a_step <= ROWS_A_STEP
    assert rows * settings.epochs / rows_a_step >= 36 or rows < 36


def test_processes_share_a_step_and_what_is_given_stays() -> None:
    shared = chosen(1000, processes=4)
    assert (shared.batch_size, shared.gradient_accumulation) == (4, 1)
    fixed = chosen(10, batch_size=8, gradient_accumulation=2)
    assert (fixed.batch_size, fixed.gradient_accumulation) == (8, 2)


def test_the_record_has_what_was_chosen_and_the_loss_before(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    settings = quick(world_dataset, demo_model, tmp_path / "out", gradient_accumulation=0)
    train.run(settings)
    record = read_json(tmp_path / "out" / "training.json", TrainingRecord)
    assert record.settings["learning_rate"] > 1e-3 and record.settings["batch_size"] == 1
    before, *steps, after = record.curve
    assert (before.step, before.split) == (0, "validation") and before.loss > after.loss
    rates = [point.learning_rate for point in steps]
    peak = record.settings["learning_rate"]
    assert None not in rates and rates[0] == pytest.approx(peak / 2), "two steps of warm-up"
    assert max(rates) == pytest.approx(peak) and rates[-1] == pytest.approx(peak / 10)


def test_a_tracker_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--report-to clipboard: not available") as refused:
        train.run(
            quick(tmp_path / "rows", tmp_path / "no-model", tmp_path / "out", report_to="clipboard")
        )
    assert "pip install clipboard" in refused.value.hint


def test_trackers_are_those_of_transformers(
    world_dataset: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    output = tmp_path / "out"
    train.run(quick(world_dataset, demo_model, output, report_to="tensorboard", epochs=0.2))
    assert list((tmp_path / "events").rglob("events.out.tfevents.*"))
    assert read_json(output / "training.json", TrainingRecord).steps


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"])
def test_keys_of_trackers_are_redacted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "key-of-a-tracker")
    redaction._pattern.cache_clear()
    assert redaction.redact("refused: key-of-a-tracker") == "refused: ***"
    redaction._pattern.cache_clear()
