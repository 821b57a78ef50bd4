"""The report of a training: warnings, page and events; and its errors."""

import errno
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, OutOfMemory, StorageError
from components.core.records import LossPoint, TrainingRecord, read_json
from components.train import train
from components.train.report import log_ticks, step_ticks, warnings, write_page
from tests.train.conftest import Configure


def points(losses: list[float], split: str = "train") -> list[LossPoint]:
    return [
        LossPoint(step=step, loss=loss, split=split) for step, loss in enumerate(losses, start=1)
    ]


def test_warnings_of_overfitting_and_a_rising_loss() -> None:
    falling = points([2.0 - 0.01 * step for step in range(30)])
    assert warnings(falling + points([1.0, 0.8, 0.79], "validation")) == []
    (text,) = warnings(falling + points([1.0, 0.8, 0.9], "validation"))
    assert "Overfitting" in text and "at step 2 (0.8000)" in text and "0.9000" in text
    flat = [1.0 + 0.05 * (-1) ** step for step in range(30)]
    assert warnings(points([0.9, *flat])) == [], "a loss that stays has not diverged"
    (text,) = warnings(points([1.0, *[1.5] * 30]))
    assert "ended above where it began (1.500 against 1.000)" in text


def test_warnings_of_a_training_that_ends_too_early() -> None:
    (text,) = warnings(points([1.0] * 13) + points([1.0, 0.99], "validation"))
    assert text.startswith("Only 13 steps to learn from: raise --epochs")
    halved = points([2.0 * 0.95**step for step in range(40)])
    (text,) = warnings(halved + points([2.0, 1.0, 0.4], "validation"))
    assert "still fell steeply at the end (from 1.0000 to 0.4000)" in text
    flat = points([2.0] * 10 + [0.3] * 30)
    assert warnings(flat + points([2.0, 0.3], "validation")) == [], "it fell at first only"


def test_the_page_and_the_events(world_adapter: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    record = read_json(world_adapter / "training.json", TrainingRecord)
    page = (world_adapter / "report.html").read_text(encoding="utf-8")
    assert page == write_page(record)
    assert page.count("<svg") == 1 and "validation <tspan" in page and "//" not in page
    assert "grouped by length" in page
    assert [p.learning_rate is not None for p in record.curve if p.split == "train"] == [True] * 9
    (events,) = (world_adapter / "tensorboard").iterdir()
    data, tags, at = events.read_bytes(), {}, 0
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append(event.step)
        at += 16 + size
    assert tags["train/loss"] == list(range(1, 10))
    assert tags["validation/loss"] == [0, 9]
    assert {"train/learning_rate", "train/tokens_per_second", "train/peak_memory_gib"} <= set(tags)


def test_the_losses_have_a_logarithmic_axis_with_ticks(world_adapter: Path) -> None:
    record = read_json(world_adapter / "training.json", TrainingRecord)
    curve = points([2.0, 0.2, 0.02, 0.0])
    page = write_page(record.model_copy(update={"curve": curve}))
    heights = re.findall(r'<polyline points="([^"]+)"', page)[0].split()
    ys = [float(place.split(",")[1]) for place in heights]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2), "a tenth is as far everywhere"
    assert ys[3] == max(ys), "zero is drawn at the least loss"
    assert page.count('class="grid"') == len(log_ticks(1e-4, 2.0)) == 6
    assert f"<h1>{Path(record.base_model).name}, rank 64, learning rate 0.002</h1>" in page


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.3, 4.0, [0.2, 0.5, 1, 2, 5]), (1, 1, [1]), (0.0002, 3, [1e-4, 1e-3, 0.01, 0.1, 1, 10])],
)
def test_loss_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("last", "ticks"),
    [(1, [0, 1]), (9, [0, 2, 4, 6, 8]), (1200, [0, 500, 1000]), (47, [0, 10, 20, 30, 40])],
)
def test_step_ticks(last: int, ticks: list[int]) -> None:
    assert step_ticks(last) == ticks


def test_words_from_elsewhere_are_escaped(world_adapter: Path) -> None:
    record = read_json(world_adapter / "training.json", TrainingRecord)
    page = write_page(record.model_copy(update={"warnings": ["<script>"], "batching": "<b>"}))
    assert "<script>" not in page and "<b>" not in page


# ---- errors --------------------------------------------------------------------------------------


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, epochs=2, rank=4)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Any], Any]], None]:
    """Change what a training step returns, or fail in it."""
    from trl import SFTTrainer

    def arrange(number: int, change: Callable[[Any], Any]) -> None:
        original = SFTTrainer.training_step

        def step(self: Any, *args: Any, **named: Any) -> Any:
            loss = original(self, *args, **named)
            return change(loss) if self.state.global_step + 1 >= number else loss

        monkeypatch.setattr(SFTTrainer, "training_step", step)

    return arrange


def test_a_loss_that_is_no_number_stops_at_once(
    configure: Configure, at_step: Callable[..., None]
) -> None:
    at_step(3, lambda loss: loss * math.nan)
    with pytest.raises(ConfigError, match="diverged: the train loss is nan at step 3") as stopped:
        train.run(configure())
    assert "--learning-rate" in stopped.value.hint


def test_a_lack_of_memory_names_what_to_lower(
    configure: Configure, at_step: Callable[..., None]
) -> None:
    import torch

    def fail(loss: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    at_step(2, fail)
    with pytest.raises(OutOfMemory, match="with 4 rows of up to 4096 tokens") as stopped:
        train.run(configure())
    hint = stopped.value.hint
    for step in (
        "--gradient-checkpointing true",
        "--batch-size 2 --gradient-accumulation 2",
        "--load-in-4bit true",
    ):
        assert step in hint
    assert stopped.value.exit_code == 2


def test_a_full_disk_keeps_the_checkpoint_before(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    settings = configure(checkpoint_steps=4)
    original = torch.save

    def full(*args: Any, **named: Any) -> None:
        if "checkpoint-8" in str(args[1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(StorageError, match="the disk is full") as stopped:
            train.run(settings)
    assert "the newest complete checkpoint" in stopped.value.hint
    assert train.run(settings).steps == 18
    assert "resuming after step 4" in capsys.readouterr().err
