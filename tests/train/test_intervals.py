"""When a training saves: by the minutes that may be lost, the cost of saving, and a preemption."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from trl import SFTTrainer

from components.train import callbacks, train
from components.train.answer_trainer import AnswerTrainer
from components.train.checkpoints import Checkpoints
from tests.train.conftest import Configure

Spans = list[tuple[float, float]]
STEPS = 36
"""Optimizer steps of a run: one a row."""


class Clock:
    """The trainer's clock, in which work may take longer than it does."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def slow(self, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, by: float) -> None:
        original = getattr(owner, method)

        def later(*args: Any, **named: Any) -> Any:
            self.ahead += by
            return original(*args, **named)

        monkeypatch.setattr(owner, method, later)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    running = Clock()
    monkeypatch.setattr(callbacks, "time", running)
    return running


@pytest.fixture
def saves(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Spans:
    """When the training began, twice, then when each save began and ended."""
    save, add, spans = AnswerTrainer._save_checkpoint, Checkpoints.add, []
    train_begins = callbacks.Checkpointing.on_train_begin

    def start(*args: Any, **named: Any) -> None:
        spans.append((clock.monotonic(), clock.monotonic()))
        train_begins(*args, **named)

    def begin(*args: Any, **named: Any) -> None:
        spans.append((clock.monotonic(), 0.0))
        save(*args, **named)

    def end(*args: Any, **named: Any) -> None:
        add(*args, **named)
        spans[-1] = spans[-1][0], clock.monotonic()

    monkeypatch.setattr(callbacks.Checkpointing, "on_train_begin", start)
    monkeypatch.setattr(AnswerTrainer, "_save_checkpoint", begin)
    monkeypatch.setattr(Checkpoints, "add", end)
    return spans


Train = Callable[..., None]


@pytest.fixture
def short(configure: Configure) -> Train:
    def train_adapter(**settings: Any) -> None:
        settings = {"rank": 2, "batch_size": 1} | settings
        assert train.run(configure(**settings)).steps

    return train_adapter


@pytest.mark.parametrize("seconds", [50, 130, 250])
def test_minutes_bound_the_loss_and_the_cost(
    seconds: float, short: Train, clock: Clock, saves: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.slow(monkeypatch, SFTTrainer, "training_step", seconds)
    short()
    lost = [begun - durable for (_, durable), (begun, _) in pairwise(saves)]
    assert 600 - seconds <= max(lost) <= 600 and len(lost) >= STEPS * seconds // 600
    cost = sum(durable - begun for begun, durable in saves)
    assert cost <= 0.05 * STEPS * seconds


def test_saving_that_takes_long_is_rare(
    short: Train, clock: Clock, saves: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.slow(monkeypatch, SFTTrainer, "training_step", 150)
    clock.slow(monkeypatch, Checkpoints, "_finish_artifact", 100)
    short()
    start, *spans = saves
    assert len(spans) == 2
    cost = sum(durable - begun for begun, durable in spans)
    assert cost <= 0.05 * (spans[-1][1] - start[0])


def test_no_minutes_and_no_steps(
    short: Train, clock: Clock, saves: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.slow(monkeypatch, SFTTrainer, "training_step", 1000)
    short(checkpoint_minutes=0, epochs=0.2)
    assert len(saves) == 1


@contextmanager
def metadata_server(status: int, answers: list[str]) -> Iterator[str]:
    """Answers as GKE's does: at once, or when the value has changed."""

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right_path = self.path.partition("?")[0] == "/computeMetadata/v1/instance/preempted"
            known = right_path and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(status if known else 403)
            self.end_headers()
            self.wfile.write((answers.pop(0) if len(answers) > 1 else answers[0]).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "answers", "expected"),
    [
        (200, ["FALSE", "TRUE"], 1),
        (200, ["TRUE"], 1),
        (200, ["FALSE"], 0),
        (404, ["not found"], 0),
        (403, ["TRUE"], 0),
    ],
)
def test_a_notice_of_a_preemption_starts_a_checkpoint(
    status: int, answers: list[str], expected: int, short: Train, saves: Spans,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    step = SFTTrainer.training_step
    monkeypatch.setattr(
        SFTTrainer, "training_step", lambda *args, **named: time.sleep(0.5) or step(*args, **named)
    )
    with metadata_server(status, answers) as host:
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        short(epochs=0.3)
    assert len(saves) == 1 + expected


def test_no_metadata_server(
    short: Train, saves: Spans, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    short(epochs=0.1)
    assert len(saves) == 1 and "Error" not in capfd.readouterr().err
