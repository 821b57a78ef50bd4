"""A step that asks for a GPU and finds none ends at once.

Not tried here: a pod that has one.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.accelerator import check_gpus
from components.core.errors import ConfigError
from components.train.config import TrainConfig
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")

COMMANDS = {
    "train": ("--dataset", "gs://b/d", "--base-model", "a/b"),
    "quantize-check": ("--dataset", "gs://b/d", "--base-model", "a/b", "--adapter", "gs://b/a"),
    "eval": ("--questions", "gs://b/q", "--base-model", "a/b", "--adapter", "gs://b/a"),
}
"""Inputs that would be fetched first, were the GPUs not looked for before."""


def attempt(
    stage: str, output: Path, *flags: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    environment = os.environ | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    command = [sys.executable, "-m", "pipelines", stage, *COMMANDS[stage]]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--output", str(output), *flags],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=environment, check=False,
    )  # fmt: skip
    return done, time.monotonic() - started


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize(("flags", "wanted"), [((), "1 GPU,"), (("--gpus", "2"), "2 GPUs,")])
def test_no_gpu_in_a_pod(stage: str, flags: tuple[str, ...], wanted: str, tmp_path: Path) -> None:
    done, seconds = attempt(stage, tmp_path / "out", *flags)
    assert done.returncode == 2, done.stderr
    assert f"raft {stage} needs {wanted}" in done.stderr and "--allow-cpu" in done.stderr
    assert seconds < 10 and not (tmp_path / "out" / "ledger.json").exists()


@pytest.mark.parametrize(
    ("settings", "host"),
    [({"allow_cpu": True}, "10.0.0.1"), ({"gpus": "0"}, "10.0.0.1"), ({}, ""), ({"gpus": "1"}, "")],
    ids=["allowed", "none asked for", "a laptop", "a step of kfp.local"],
)
def test_steps_that_may_run_on_the_cpu(
    settings: dict[str, object], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    places = {"dataset": "d", "base_model": "m", "output": "o"}
    check_gpus(TrainConfig.parse(places | settings))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="this pod has 0"):
        check_gpus(TrainConfig.parse(places | {"gpus": "8"}))


@pytest.mark.parametrize("text", ["one", "-1", "1.5"])
def test_a_count_that_is_no_number(text: str, tmp_path: Path) -> None:
    done, _ = attempt("train", tmp_path / "out", f"--gpus={text}")
    assert done.returncode == 2 and f"--gpus '{text}'" in done.stderr
