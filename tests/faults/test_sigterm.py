"""SIGTERM is heard wherever it comes, and answered in time; SIGKILL leaves no workers behind."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.core.storage import publish, verify
from components.train import train
from components.train.checkpoints import Checkpoints
from components.train.config import TrainConfig
from tests.conftest import REPOSITORY
from tests.gcs import Emulator

SLOW = 30.0  # seconds that an object takes
GRACE = 15.0  # seconds between SIGTERM and SIGKILL on a spot node


@pytest.mark.parametrize("way", ["fetching", "publishing"])
@pytest.mark.fault(
    "Killed anywhere",
    "SIGTERM while an object takes 30 seconds to be fetched or published",
    "143 and a word within seconds, not after the transfer; the same command then ends well",
)
def test_a_transfer_under_way_is_not_waited_for(
    way: str, world_dataset: Path, gcs: Emulator, tmp_path: Path
) -> None:
    publish(world_dataset, "gs://bucket/dataset")
    source, output = "gs://bucket/dataset", str(tmp_path / "out")
    if way == "publishing":
        source, output = str(world_dataset), "gs://bucket/out"
    reached = tmp_path / "reached"

    uploads = itertools.count()

    def slow(method: str, path: str) -> int:
        # The first upload is the partial manifest, alone.
        if ("train.jsonl" in path and "alt=media" in path) or (method == "POST" and next(uploads)):
            reached.touch()
            time.sleep(SLOW)
        return 0

    gcs.fault = slow
    line = [sys.executable, "-m", "pipelines", "export", "--dataset", source, "--output", output]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        line, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not reached.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()
    _, log = process.communicate(timeout=GRACE)
    assert process.returncode == 128 + signal.SIGTERM, log
    assert log.splitlines()[-1].startswith("stopped by SIGTERM"), log
    gcs.fault = lambda method, path: 0
    again = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


@pytest.mark.fault(
    "Killed anywhere",
    "SIGTERM while the result of a training is put away, after its last step",
    "143; the same command trains nothing again",
)
def test_it_is_heard_after_the_last_step(
    world_dataset: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = TrainConfig(
        dataset=str(world_dataset), base_model=str(demo_model), output=str(tmp_path / "out"),
        rank=2, epochs=1, batch_size=12, gradient_accumulation=1, gradient_checkpointing=False,
    )  # fmt: skip
    finish = Checkpoints.finish

    def terminated(self: Checkpoints, *given: Any) -> None:
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, *given)

    monkeypatch.setattr(Checkpoints, "finish", terminated)
    with pytest.raises(SystemExit) as stopped:
        train.run(settings)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: stopped after training" in capsys.readouterr().err
    train.run(settings)
    assert capsys.readouterr().err.count("already trained") == 1
    verify(tmp_path / "out", "--adapter")


@pytest.mark.fault(
    "Killed anywhere",
    "SIGKILL of a training that has started two processes",
    "they end too, within seconds: none writes next to the next attempt's",
)
def test_workers_do_not_outlive_the_stage(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    flags = ["--epochs", "100", "--rank", "4", "--gradient-checkpointing", "false"]
    given = ["--dataset", str(world_dataset), "--base-model", str(demo_model)]
    output = ["--output", str(tmp_path / "out"), "--processes", "2"]
    line = [sys.executable, "-m", "pipelines", "train", *given, *output, *flags]
    stage = subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{stage.pid}/task/{stage.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        assert stage.poll() is None
        time.sleep(0.05)
    stage.kill()
    stage.wait()
    for _ in range(300):
        if not any(map(runs, workers)):
            break
        time.sleep(0.1)
    else:
        for worker in workers:
            os.kill(int(worker), signal.SIGKILL)
        pytest.fail("workers live on")


def runs(process: str) -> bool:
    """Whether a process is there, and more than an entry that nobody has asked about yet."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
