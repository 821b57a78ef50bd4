"""Stopped at any moment, a run resumes and ends with the weights of one that was not."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
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
from tests.core.test_kubeflow import executor_input
from tests.gcs import Emulator
from tests.train.conftest import Configure, config

WEIGHTS = "adapter_model.safetensors"


# Dropout, so that the random numbers matter; two passes a step, so that it can be cut in two.
SHORT = {
    "epochs": 2, "batch_size": 6, "gradient_accumulation": 2, "dropout": 0.1, "rank": 4,
    "checkpoint_steps": 2, "learning_rate": 2e-3,
}  # fmt: skip


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, **SHORT)


@pytest.fixture(scope="module")
def uninterrupted(
    world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "adapter"
    train.run(config(world_dataset, demo_model, output, **SHORT))
    return output


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
    actual, wanted = (read_json(p / "training.json", TrainingRecord) for p in (output, expected))
    assert actual.curve == wanted.curve and actual.tokens == wanted.tokens
    assert actual.steps == wanted.steps == 6


# Six steps of two passes each: calls 3 and 4 of training_step are the second step.
@pytest.mark.parametrize(
    ("act", "method", "call", "step"),
    [
        (terminate, "training_step", 3, 1),  # within a step: the one before is saved
        (terminate, "training_step", 4, 2),  # in its last pass: the step is finished first
        (terminate, "training_step", 6, 3),  # the last of an epoch
        # Each of the three validations has four rows.
        (terminate, "prediction_step", 2, 0),  # in the validation before the training
        (terminate, "prediction_step", 6, 3),  # between two epochs
        (terminate, "training_step", 12, 6),  # the very last
        (terminate, "prediction_step", 10, 6),  # in the last
        (kill, "training_step", 4, 0),  # before the first checkpoint
        (kill, "training_step", 11, 4),
    ],
)
def test_sigterm_loses_no_step_and_a_kill_no_more_than_the_interval(
    configure: Configure,
    act: Callable[[], None],
    method: str,
    call: int,
    step: int,
    uninterrupted: Path,
    tmp_path: Path,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = configure()
    at_call(method, call, act)
    with pytest.raises((SystemExit, Killed)) as stopped:
        train.run(settings)
    assert stopped.value.args == ((143,) if act is terminate else ())
    assert (f"stopped after step {step};" in capsys.readouterr().err) is (act is terminate)
    assert not (tmp_path / "out" / MANIFEST).exists(), "unfinished"
    train.run(settings)
    assert (f"resuming after step {step}" in capsys.readouterr().err) is (step > 0)
    same_result(tmp_path / "out", uninterrupted)
    verify(tmp_path / "out", "--adapter")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_real_chat_model_resumes_to_the_byte(
    configure: Configure,
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
    whole = train.run(configure("whole", dataset=dataset, base_model=smollm2_model, **short))
    settings = configure(dataset=dataset, base_model=smollm2_model, **short)
    at_call("training_step", 3, terminate)
    with pytest.raises(SystemExit):
        train.run(settings)
    record = train.run(settings)
    assert "resuming after step 1" in capsys.readouterr().err
    assert (record.steps, record.curve, record.tokens) == (2, whole.curve, whole.tokens)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_sigterm_between_two_passes_of_a_batch(
    configure: Configure,
    tmp_path: Path,
    at_call: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "PASS_TOKENS", 0)  # rows of other length never share a pass
    whole = train.run(configure("whole"))
    settings = configure()
    at_call("training_step", 8, terminate)
    with pytest.raises(SystemExit):
        train.run(settings)
    record = train.run(settings)
    assert record.curve == whole.curve and record.tokens == whole.tokens
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_checkpoints_reach_the_bucket_during_training(
    configure: Configure,
    uninterrupted: Path,
    gcs: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = configure("gs://bucket/run/adapter")

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


# ---- what is refused, without a model ------------------------------------------------------------


def checkpoints(folder: Path, remote: str = "", **identity: str) -> Checkpoints:
    return Checkpoints(folder, remote, {"rank": "64", "dataset": "a"} | identity)


def write(store: Checkpoints, step: int, content: str = "weights") -> Path:
    folder = store.folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model").write_text(content, encoding="utf-8")
    store.add(folder, step, seconds=1.0)
    return folder


def test_the_newest_are_kept_in_the_bucket(tmp_path: Path, gcs: Emulator) -> None:
    store = checkpoints(tmp_path / "here", "gs://bucket/c")
    for step in (5, 10, 15):
        write(store, step)
    store.wait()
    newest = checkpoints(tmp_path / "there", "gs://bucket/c").newest()
    assert newest is not None and newest.run.step == 15
    assert (newest.folder / "model").read_text(encoding="utf-8") == "weights"
    remote = {name.split("/")[1] for name in gcs.names("c/")}
    assert remote == {"checkpoint-10", "checkpoint-15"}


def test_the_newest_are_kept_here(
    configure: Configure, tmp_path: Path, at_call: Callable[..., None]
) -> None:
    at_call("training_step", 9, kill)  # in the fifth step
    with pytest.raises(Killed):
        train.run(configure(checkpoint_steps=1))
    names = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert names == {"checkpoint-3", "checkpoint-4"}


def test_a_bucket_that_refuses_is_logged(
    tmp_path: Path, gcs: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    store = checkpoints(tmp_path, "gs://bucket/c")
    gcs.fault = lambda method, path: 403 * (method != "GET")
    write(store, 5)
    store.wait()
    assert "checkpoint-5 is on this disk only" in capsys.readouterr().err
    newest = store.newest()
    assert newest is not None and newest.run.step == 5


@pytest.mark.parametrize("remote", ["", "gs://bucket/checkpoints"])
def test_half_of_a_checkpoint_is_never_resumed(tmp_path: Path, gcs: Emulator, remote: str) -> None:
    store = checkpoints(tmp_path / "here", remote)
    write(store, 5)
    store.wait()
    half = store.folder / "checkpoint-10"
    half.mkdir()
    (half / "model").write_text("half of it", encoding="utf-8")
    newest = store.newest()
    assert newest is not None and newest.run.step == 5
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
    newest = checkpoints(tmp_path / "there", "gs://bucket/c").newest()
    assert newest is not None and newest.run.step == 5


def test_one_that_is_damaged_here_is_whole_in_the_bucket(tmp_path: Path, gcs: Emulator) -> None:
    store = checkpoints(tmp_path, "gs://bucket/c")
    folder = write(store, 10)
    store.wait()
    (folder / "model").write_text("weighty", encoding="utf-8")
    newest = store.newest()
    assert newest is not None and (newest.folder / "model").read_text(encoding="utf-8") == "weights"


def test_another_runs_checkpoint_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    write(checkpoints(tmp_path), 5)
    with pytest.raises(ConfigError, match="--rank was 64 there and is 16 now") as refused:
        checkpoints(tmp_path, rank="16").newest()
    assert "--dataset" not in str(refused.value) and "--fresh true" in refused.value.hint
    assert checkpoints(tmp_path).newest(), "and it is still there"


def test_the_stage_refuses_and_fresh_throws_away(
    configure: Configure, tmp_path: Path, at_call: Callable[..., None]
) -> None:
    at_call("training_step", 4, terminate)
    with pytest.raises(SystemExit):
        train.run(configure())
    with pytest.raises(ConfigError, match="--rank was 4 there and is 2 now"):
        train.run(configure(rank=2))
    record = train.run(configure(rank=2, fresh=True))
    assert record.settings["rank"] == 2
    lora = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert lora["r"] == 2


def test_a_folder_of_ones_own_keeps_what_else_is_in_it(
    configure: Configure, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious", encoding="utf-8")
    train.run(configure(checkpoints=str(mine)))
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def step_of(run: str, message: Path) -> str:
    """What Kubeflow tells the train step of a run."""
    return executor_input(f"gs://bucket/root/raft/{run}/train", message, adapter="Model")


@pytest.mark.usefixtures("gcs")
def test_a_step_keeps_its_checkpoints_in_the_state_of_the_pipeline_root(
    tmp_path: Path, world_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []

    def remember(settings: TrainConfig) -> TrainingRecord:
        seen.append(settings)
        return read_json(world_adapter / "training.json", TrainingRecord)

    monkeypatch.setattr(train, "run", remember)
    monkeypatch.setattr(train, "published", lambda _: pytest.fail("Kubeflow has not copied it yet"))
    message = tmp_path / "announced.json"
    required = {"dataset": str(tmp_path / "d"), "base_model": "m", "output": str(tmp_path / "out")}
    # Kubeflow passes every setting; one at its default gives way to what the kind of GPU sets.
    passed = {"gpu": "h100", "batch_size": "4", "gradient_accumulation": "3"}
    run_step(TrainConfig, {**required, **passed}, step_of("a", message))
    (settings,) = seen
    assert settings.state == "gs://bucket/root/state" and settings.checkpoints == ""
    remote = Checkpoints.of(settings, {"rank": "4"}).remote
    assert re.fullmatch(r"gs://bucket/root/state/checkpoints/[0-9a-f]{32}", remote)
    assert Checkpoints.of(settings, {"rank": "8"}).remote != remote
    assert (settings.batch_size, settings.gradient_accumulation) == (8, 3)
    assert "raft/a/train/step/adapter" in message.read_text(encoding="utf-8")


def test_a_new_run_resumes_the_training_of_one_that_failed(
    configure: Configure,
    tmp_path: Path,
    gcs: Emulator,
    uninterrupted: Path,
    at_call: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(run: str, **settings: Any) -> Path:
        """The train step of a run with an id of its own, in a pod of its own."""
        output = tmp_path / run
        settings = configure(output, **settings).model_dump(mode="json", exclude_unset=True)
        run_step(TrainConfig, settings, step_of(run, tmp_path / f"{run}.json"))
        return output

    def kill_once_copied() -> None:
        for _ in range(600):
            if any(name.endswith(f"checkpoint-4/{MANIFEST}") for name in gcs.names("root/state/")):
                break
            time.sleep(0.05)
        kill()

    at_call("training_step", 9, kill_once_copied)  # in the fifth step
    with pytest.raises(Killed):
        begin("first")
    same_result(begin("second"), uninterrupted)
    assert "resuming after step 4" in capsys.readouterr().err
    # A third run finds the adapter, unless its settings differ or it is told to start over.
    same_result(begin("third"), uninterrupted)
    assert "already trained" in capsys.readouterr().err
    begin("fourth", seed=5)
    log = capsys.readouterr().err
    assert "already trained" not in log and "resuming" not in log
    begin("fifth", fresh=True)
    log = capsys.readouterr().err
    assert "already trained" not in log and "resuming" not in log
