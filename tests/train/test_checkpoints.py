"""Stopped at any moment, a run resumes and ends with the weights of one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError
from components.core.records import TrainingRecord, read_json
from components.core.storage import MANIFEST, fetch, verify
from components.train import batching, train
from components.train.checkpoints import Checkpoints
from components.train.config import TrainConfig
from pipelines.stages import run_stage, run_step
from tests.conftest import REPOSITORY
from tests.gcs import Emulator, emulator

WEIGHTS = "adapter_model.safetensors"


def config(dataset: Path, model: Path, output: Path | str, **settings: Any) -> TrainConfig:
    # Dropout, so that the random numbers matter; two passes a step, so that it can be cut in two.
    short = {"epochs": 2, "batch_size": 6, "gradient_accumulation": 2, "dropout": 0.1, "rank": 4}
    short |= {"checkpoint_steps": 2, "gradient_checkpointing": False, "learning_rate": 2e-3}
    given = {"dataset": str(dataset), "base_model": str(model), "output": str(output)}
    return TrainConfig.parse(given | short | settings)


@pytest.fixture(scope="module")
def uninterrupted(
    world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "adapter"
    train.run(config(world_dataset, demo_model, output))
    return output


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with emulator() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        yield running


@pytest.fixture
def at_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], None]], None]:
    """Do something at the n-th call of one of the trainer's methods."""
    from trl import SFTTrainer

    def arrange(method: str, number: int, act: Callable[[], None]) -> None:
        original, calls = getattr(SFTTrainer, method), [0]

        def counted(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                act()
            return original(*args, **named)

        monkeypatch.setattr(SFTTrainer, method, counted)

    return arrange


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(Exception):
    """Stands for SIGKILL inside one process: nothing gets to clean up or to save."""


def kill() -> None:
    raise Killed


def same_result(output: Path, expected: Path) -> None:
    assert (output / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    found, wanted = (read_json(p / "training.json", TrainingRecord) for p in (output, expected))
    assert found.curve == wanted.curve and found.tokens == wanted.tokens
    assert found.steps == wanted.steps == 6


# Six steps of two passes each: calls 3 and 4 of training_step are the second step.
@pytest.mark.parametrize(
    ("method", "call", "step"),
    [
        ("training_step", 3, 1),  # within a step: the one before is saved
        ("training_step", 4, 2),  # in its last pass: the step is finished first
        ("training_step", 6, 3),  # the last of an epoch
        ("prediction_step", 2, 3),  # in the validation between two epochs
        ("training_step", 12, 6),  # the very last
        ("prediction_step", 6, 6),  # in the last validation
    ],
)
def test_sigterm_loses_no_step(
    method: str,
    call: int,
    step: int,
    world_dataset: Path,
    demo_model: Path,
    uninterrupted: Path,
    tmp_path: Path,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config(world_dataset, demo_model, tmp_path / "out")
    at_call(method, call, terminate)
    with pytest.raises(SystemExit) as stopped:
        train.run(settings)
    assert stopped.value.code == 143
    assert f"stopped after step {step};" in capsys.readouterr().err
    assert not (tmp_path / "out" / MANIFEST).exists(), "unfinished"
    train.run(settings)
    assert f"resuming after step {step}" in capsys.readouterr().err
    same_result(tmp_path / "out", uninterrupted)
    verify(tmp_path / "out", "--adapter")
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(("call", "step"), [(4, 0), (11, 4)])
def test_a_kill_loses_no_more_than_the_interval(
    call: int,
    step: int,
    world_dataset: Path,
    demo_model: Path,
    uninterrupted: Path,
    tmp_path: Path,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config(world_dataset, demo_model, tmp_path / "out")
    at_call("training_step", call, kill)
    with pytest.raises(Killed):
        train.run(settings)
    capsys.readouterr()
    train.run(settings)
    assert (f"resuming after step {step}" in capsys.readouterr().err) is (step > 0)
    same_result(tmp_path / "out", uninterrupted)


def test_a_real_chat_model_resumes_to_the_byte(
    world_dataset: Path,
    smollm2_model: Path,
    tmp_path: Path,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for name, rows in (("train.jsonl", 4), ("validation.jsonl", 1)):
        lines = (world_dataset / name).read_text(encoding="utf-8").splitlines()[:rows]
        (dataset / name).write_text("\n".join(lines), encoding="utf-8")
    short = {"epochs": 1, "batch_size": 1}  # two steps of two passes
    whole = train.run(config(dataset, smollm2_model, tmp_path / "whole", **short))
    settings = config(dataset, smollm2_model, tmp_path / "out", **short)
    at_call("training_step", 3, terminate)
    with pytest.raises(SystemExit):
        train.run(settings)
    record = train.run(settings)
    assert "resuming after step 1" in capsys.readouterr().err
    assert (record.steps, record.curve, record.tokens) == (2, whole.curve, whole.tokens)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_sigterm_between_two_passes_of_a_batch(
    world_dataset: Path,
    demo_model: Path,
    tmp_path: Path,
    at_call: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "PASS_TOKENS", 0)  # rows of other length never share a pass
    whole = train.run(config(world_dataset, demo_model, tmp_path / "whole"))
    settings = config(world_dataset, demo_model, tmp_path / "out")
    at_call("training_step", 8, terminate)
    with pytest.raises(SystemExit):
        train.run(settings)
    record = train.run(settings)
    assert record.curve == whole.curve and record.tokens == whole.tokens
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_sigkill_at_a_random_moment(
    world_dataset: Path, demo_model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """A process of its own, killed for real; tests/faults/test_kills.py does more."""
    output = tmp_path / "out"
    flags = []
    for name, value in config(world_dataset, demo_model, output).model_dump(mode="json").items():
        if value not in ("", [], ["all-linear"]):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "train", *flags], stderr=log, cwd=REPOSITORY
        )
        whole = list((output / "checkpoints").glob(f"checkpoint-*/{MANIFEST}"))
        while not whole and process.poll() is None:
            time.sleep(0.01)
            whole = list((output / "checkpoints").glob(f"checkpoint-*/{MANIFEST}"))
        time.sleep(random.Random(os.getpid()).uniform(0, 0.5))
        process.kill()
        process.wait()
    assert whole, (tmp_path / "log").read_text(encoding="utf-8")
    train.run(config(world_dataset, demo_model, output))
    same_result(output, uninterrupted)


def test_checkpoints_reach_the_bucket_during_training(
    world_dataset: Path,
    demo_model: Path,
    uninterrupted: Path,
    gcs: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config(world_dataset, demo_model, "gs://bucket/run/adapter")

    def kill_once_copied() -> None:
        # The copying thread outlives this kill, which is only an exception: it must be done first.
        arrived = f"run/adapter-checkpoints/checkpoint-4/{MANIFEST}"
        for _ in range(600):
            if arrived in gcs.names("run/"):
                break
            time.sleep(0.05)
        kill()

    for attempt, act, call in (("killed", kill_once_copied, 9), ("terminated", terminate, 2)):
        # Every attempt is on a machine of its own: nothing local is left of the one before.
        monkeypatch.setenv("TMPDIR", str(tmp_path / attempt))
        monkeypatch.setattr("tempfile.tempdir", None)
        (tmp_path / attempt).mkdir()
        at_call("training_step", call, act)  # both times in the fifth step
        with pytest.raises((Killed, SystemExit)):
            run_stage(settings)
        whole = {name for name in gcs.names("run/") if name.endswith(MANIFEST)}
        assert whole and all(name.startswith("run/adapter-checkpoints/check") for name in whole)
        assert not gcs.names("run/adapter/"), "no half of an adapter"
    shutil.rmtree(tmp_path / "terminated")
    (tmp_path / "terminated").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    run_stage(settings)
    assert re.findall(r"resuming after step (\d+)", capsys.readouterr().err) == ["4", "5"]
    fetch("gs://bucket/run/adapter", tmp_path / "fetched")
    same_result(tmp_path / "fetched", uninterrupted)
    assert not gcs.names("run/adapter-checkpoints"), "the adapter has arrived, so they can go"


def test_overfitting_ends_a_training_also_one_that_was_stopped_just_then(
    world_dataset: Path, demo_model: Path, tmp_path: Path, at_call: Callable[..., None]
) -> None:
    over = {"learning_rate": 0.05, "epochs": 9, "stop_on_overfitting": True}
    whole = train.run(config(world_dataset, demo_model, tmp_path / "whole", **over))
    assert whole.steps < 27 and "Overfitting" in " ".join(whole.warnings)
    settings = config(world_dataset, demo_model, tmp_path / "out", **over)
    at_call("prediction_step", 4 * whole.steps // 3, terminate)  # in the validation that ends it
    with pytest.raises(SystemExit):
        train.run(settings)
    record = train.run(settings)
    assert record.curve == whole.curve
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


# ---- what is refused, without a model ------------------------------------------------------------


def checkpoints(folder: Path, remote: str = "", **identity: str) -> Checkpoints:
    return Checkpoints(folder, remote, kept=2, identity={"rank": "64", "dataset": "a"} | identity)


def write(store: Checkpoints, step: int, content: str = "weights") -> Path:
    folder = store.folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model").write_text(content, encoding="utf-8")
    store.add(folder, step, seconds=1.0)
    return folder


@pytest.mark.parametrize("remote", ["", "gs://bucket/checkpoints"])
def test_the_newest_are_kept(tmp_path: Path, gcs: Emulator, remote: str) -> None:
    store = checkpoints(tmp_path / "here", remote)
    for step in (5, 10, 15):
        write(store, step)
    store.wait()
    elsewhere = checkpoints(tmp_path / ("there" if remote else "here"), remote)
    found = elsewhere.newest()
    assert found is not None and found.run.step == 15
    assert (found.folder / "model").read_text(encoding="utf-8") == "weights"
    assert store._steps() == {10, 15}


@pytest.mark.parametrize("remote", ["", "gs://bucket/checkpoints"])
def test_half_of_a_checkpoint_is_never_resumed(tmp_path: Path, gcs: Emulator, remote: str) -> None:
    store = checkpoints(tmp_path / "here", remote)
    write(store, 5)
    store.wait()
    half = store.folder / "checkpoint-10"
    half.mkdir()
    (half / "model").write_text("half of it", encoding="utf-8")
    found = store.newest()
    assert found is not None and found.run.step == 5
    assert not half.exists()


def test_a_killed_upload_is_never_resumed(tmp_path: Path, gcs: Emulator) -> None:
    store = checkpoints(tmp_path / "here", "gs://bucket/c")
    write(store, 5)
    store.wait()
    # Its two files and the partial manifest arrive; then the machine is gone.
    arrived = len(gcs.uploads) + 3
    gcs.fault = lambda method, path: 403 * (method != "GET" and len(gcs.uploads) >= arrived)
    write(store, 10)
    store.wait()
    gcs.fault = lambda method, path: 0
    assert "c/checkpoint-10/model" in gcs.names() and "c/checkpoint-10/run.json" in gcs.names()
    found = checkpoints(tmp_path / "there", "gs://bucket/c").newest()
    assert found is not None and found.run.step == 5


def test_a_damaged_one_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = checkpoints(tmp_path)
    write(store, 5)
    (write(store, 10) / "model").write_text("weighty", encoding="utf-8")
    found = store.newest()
    assert found is not None and found.run.step == 5
    assert "is skipped" in capsys.readouterr().err


def test_one_that_is_damaged_here_is_whole_in_the_bucket(tmp_path: Path, gcs: Emulator) -> None:
    store = checkpoints(tmp_path, "gs://bucket/c")
    folder = write(store, 10)
    store.wait()
    (folder / "model").write_text("weighty", encoding="utf-8")
    found = store.newest()
    assert found is not None and (found.folder / "model").read_text(encoding="utf-8") == "weights"


def test_a_bucket_that_refuses_fills_no_disk_and_is_logged(tmp_path: Path, gcs: Emulator) -> None:
    store = checkpoints(tmp_path, "gs://bucket/c")
    write(store, 5)
    store.wait()
    assert store.outlook(5) == "the same command resumes there"
    gcs.fault = lambda method, path: 403 * (method != "GET")
    for step in (10, 15, 20, 25):
        write(store, step)
    store.wait()
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"checkpoint-20", "checkpoint-25"}, "no more than are kept"
    assert f"that is in {tmp_path} only" in store.outlook(25)


def test_another_runs_checkpoint_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    write(checkpoints(tmp_path), 5)
    with pytest.raises(ConfigError, match="--rank was 64 there and is 16 now") as refused:
        checkpoints(tmp_path, rank="16").newest()
    assert "--dataset" not in str(refused.value) and "--fresh true" in refused.value.hint
    assert checkpoints(tmp_path).newest(), "and it is still there"


def test_the_stage_refuses_and_fresh_throws_away(
    world_dataset: Path, demo_model: Path, tmp_path: Path, at_call: Callable[..., None]
) -> None:
    at_call("training_step", 4, terminate)
    with pytest.raises(SystemExit):
        train.run(config(world_dataset, demo_model, tmp_path / "out"))
    with pytest.raises(ConfigError, match="--rank was 4 there and is 2 now"):
        train.run(config(world_dataset, demo_model, tmp_path / "out", rank=2))
    record = train.run(config(world_dataset, demo_model, tmp_path / "out", rank=2, fresh=True))
    assert record.settings["rank"] == 2
    lora = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert lora["r"] == 2


def test_a_folder_of_ones_own_keeps_what_else_is_in_it(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious", encoding="utf-8")
    train.run(config(world_dataset, demo_model, tmp_path / "out", checkpoints=str(mine)))
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "gs://pipelines/raft/run/train/1/adapter",
            "gs://pipelines/raft/run/train/1/adapter-checkpoints",
        ),
        ("/tmp/run/train/adapter", ""),
    ],
)
def test_a_step_of_the_pipeline_has_its_checkpoints_beside_its_artifact(
    uri: str,
    expected: str,
    tmp_path: Path,
    gcs: Emulator,
    world_adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def run(settings: TrainConfig) -> TrainingRecord:
        seen.append(settings.checkpoints)
        return read_json(world_adapter / "training.json", TrainingRecord)

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(train, "published", lambda _: pytest.fail("Kubeflow has not copied it yet"))
    artifact = {"name": "adapter", "uri": uri, "type": {"schemaTitle": "system.Model"}}
    message = tmp_path / "announced.json"
    step = {"outputs": {"artifacts": {"adapter": {"artifacts": [artifact]}}}}
    step["outputs"]["outputFile"] = str(message)
    given = {"dataset": str(tmp_path / "d"), "base_model": "m", "output": str(tmp_path / "out")}
    run_step(TrainConfig, dict(given), json.dumps(step))
    assert seen == [expected]
    assert uri in message.read_text(encoding="utf-8")
