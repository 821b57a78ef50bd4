"""The base model, which is fetched from the hub once: the hub's own client against a small hub."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from components.core.base_model import with_base_model
from components.core.errors import AccessError, ConfigError, ModelError
from components.core.fingerprints import fingerprint
from components.core.hardware import HardwareConfig
from components.core.kubeflow import Step
from components.core.ledger import LedgerEntry
from components.core.records import TrainingRecord, read_json
from components.core.storage import LEDGER, MANIFEST, PARTIAL_MANIFEST, is_up_to_date, traffic
from components.eval.config import EvalConfig
from components.quantize_check.config import QuantizeCheckConfig
from components.report.results import read
from components.train.config import TrainConfig
from pipelines.stages import run_stage, run_step
from tests.gcs import BUCKET, Emulator
from tests.hub import COMMIT, MODEL, NOT_LOADED, Hub, hub

WEIGHTS = "model.safetensors"


@pytest.fixture
def the_hub(demo_model: Path, gcs: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the shipped model; the other tests are offline."""
    with hub(demo_model) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        traffic.clear()
        yield running


@pytest.fixture(params=["gs", "local"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"gs://{BUCKET}/state" if request.param == "gs" else str(tmp_path / "state")


def train(state: str, **settings: object) -> TrainConfig:
    defaults = {"dataset": "-", "output": "out", "base_model": MODEL, "state": state}
    return TrainConfig.parse(defaults | settings)


def test_17_7_a_second_step_reads_the_copy(the_hub: Hub, state: str, demo_model: Path) -> None:
    expected = {path.name: path.read_bytes() for path in demo_model.iterdir()}
    loaded = {name for name in expected if Path(name).suffix != ".md"}
    for _ in range(2):
        with with_base_model(train(state)) as ready:
            folder = Path(ready.base_model)
            assert folder.is_dir() and ready.base_revision == COMMIT
            assert {path.name for path in folder.iterdir()} == {*loaded, MANIFEST}
            assert all((folder / name).read_bytes() == expected[name] for name in loaded)
            assert fingerprint(str(folder)) == f"{MODEL}@{COMMIT}"
    assert sorted(the_hub.downloads) == sorted(loaded)
    assert not any(name in " ".join(the_hub.requests) for name in NOT_LOADED)
    size = sum(len(expected[name]) for name in loaded)
    assert traffic["fetched"] == (2 * size if state.startswith("gs") else size)


def test_17_7_one_run_of_three_gpu_steps_fetches_the_weights_once(
    the_hub: Hub, gcs: Emulator, world_dataset: Path, world_adapter: Path, tmp_path: Path
) -> None:
    """As Kubeflow runs them: `state` is empty, so it is below the pipeline root."""
    dataset = world_dataset
    for kind, settings in (
        (TrainConfig, {"dataset": dataset, "epochs": 0.2, "gradient_checkpointing": False}),
        (QuantizeCheckConfig, {"dataset": dataset, "adapter": tmp_path / "train", "max_rows": 2,
                               "max_new_tokens": 4}),
        (EvalConfig, {"questions": world_dataset, "adapter": tmp_path / "train",
                      "max_questions": 1, "max_new_tokens": 4, "arms": "base,raft"}),
    ):  # fmt: skip
        output = tmp_path / kind.stage
        uri = f"gs://{BUCKET}/root/raft/1a2b/{kind.stage}/7c/artifact"
        outputs = {
            "artifacts": {"artifact": {"artifacts": [{"uri": uri}]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        }
        values: dict[str, object] = {name: str(value) for name, value in settings.items()}
        values |= {"base_model": MODEL, "state": "", "output": str(output)}
        run_step(kind, values, json.dumps({"outputs": outputs}))
        assert the_hub.downloads.count(WEIGHTS) == 1
        entry = read_json(output / LEDGER, LedgerEntry)
        assert entry.bytes_fetched > (the_hub.folder / WEIGHTS).stat().st_size
    copy = f"root/state/models/{MODEL}/main/"
    assert gcs.names(copy) > {f"{copy}{WEIGHTS}", f"{copy}{MANIFEST}"}
    record = read_json(tmp_path / "train" / TrainingRecord.FILE, TrainingRecord)
    assert (record.base_model, record.base_fingerprint) == (MODEL, f"{MODEL}@{COMMIT}")
    results = read((str(tmp_path),))
    assert sum(entry.bytes_fetched for entry in results.entries) > 3 * entry.bytes_fetched * 0.9


def test_17_7_two_steps_at_once(the_hub: Hub, state: str) -> None:
    folders, errors = [], []
    both = threading.Barrier(2)

    def step() -> None:
        try:
            with with_base_model(train(state)) as ready:
                folders.append(fingerprint(ready.base_model))
                both.wait(60)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=step) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and folders == [f"{MODEL}@{COMMIT}"] * 2
    requests = len(the_hub.requests)
    with with_base_model(train(state)) as ready:
        assert (Path(ready.base_model) / WEIGHTS).exists()
    assert len(the_hub.requests) == requests, "one whole copy is there"


def test_17_7_a_copy_that_is_damaged_or_not_whole_is_made_again(
    the_hub: Hub, gcs: Emulator
) -> None:
    config = train(f"gs://{BUCKET}/state")
    copy = f"state/models/{MODEL}/main"
    for times, lost in enumerate((WEIGHTS, MANIFEST), start=1):
        with with_base_model(config):
            assert the_hub.downloads.count(WEIGHTS) == times
        gcs.storage.delete_file(BUCKET, f"{copy}/{lost}")
    with with_base_model(config):
        assert the_hub.downloads.count(WEIGHTS) == 3
    assert f"{copy}/{MANIFEST}" in gcs.names() and f"{copy}/{PARTIAL_MANIFEST}" not in gcs.names()


@pytest.mark.parametrize("place", ["gs://bucket/state", "gs://no-such-bucket/state", "file"])
def test_17_7_a_state_that_cannot_be_written_costs_no_run(
    the_hub: Hub, gcs: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    gcs.fault = lambda method, path: 403 if method == "POST" else 0
    state = str(tmp_path / place) if place == "file" else place
    with with_base_model(train(state)) as ready:
        assert (Path(ready.base_model) / WEIGHTS).exists()
    assert "the base model is not kept for later steps" in capsys.readouterr().err


def test_17_7_without_state_a_hub_id_is_the_librarys_to_fetch(the_hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(the_hub.folder, tmp_path / "model")
    for model in (MODEL, str(tmp_path / "model"), "gs://bucket/model"):
        config = train("" if model == MODEL else "gs://bucket/state", base_model=model)
        with with_base_model(config) as ready:
            assert ready is config
    with with_base_model(train("", base_revision="v1.0/rc")) as ready:
        assert ready.base_revision == COMMIT
    assert any(request.endswith("/revision/v1.0/rc") for request in the_hub.requests)
    for revision in ("../main", "a//b", "", "-x"):
        with pytest.raises(ConfigError, match="--base-revision"):
            train("", base_revision=revision)


@pytest.mark.parametrize(("status", "words"), [(401, "HF_TOKEN"), (404, "--base-revision")])
def test_17_7_a_model_that_the_hub_refuses(the_hub: Hub, status: int, words: str) -> None:
    the_hub.status = status
    with (
        pytest.raises(ModelError, match=f"--base-model {MODEL}: cannot be fetched") as error,
        with_base_model(train(f"gs://{BUCKET}/state")),
    ):
        pytest.fail("the stage began")
    assert words in error.value.hint


def test_17_7_a_finished_output_stays_up_to_date(
    the_hub: Hub, state: str, world_dataset: Path, tmp_path: Path
) -> None:
    config = train(
        state, dataset=str(world_dataset), output=str(tmp_path / "out"), epochs=0.2,
        gradient_checkpointing=False,
    )  # fmt: skip
    assert run_stage(config) is not None
    assert run_stage(config.model_copy(update={"state": ""})) is None
    with pytest.raises(ConfigError, match="--base-revision was main there and is v2 now"):
        is_up_to_date(TrainConfig.parse(config.model_dump() | {"base_revision": "v2"}))


@pytest.mark.parametrize("study", [False, True])
@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        (0, "", ""),
        (0, "hf-right", ""),
        (0, "hf-other", "HF_TOKEN"),
        (403, "", "licence"),
        (404, "", "name and revision"),
        (503, "", ""),
    ],
)
def test_17_7_the_first_step_asks_for_the_base_model(
    the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: bool, status: int,
    token: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf-right")
    the_hub.status, the_hub.token = status, token
    chosen = {"trials": [{"base_model": MODEL}]} if study else {"base_model": MODEL}
    config = HardwareConfig.parse({"output": str(tmp_path / "hardware"), **chosen})
    if words:
        with pytest.raises(ModelError, match=MODEL) as error:
            run_stage(config)
        assert words in error.value.hint and error.value.exit_code == 2
        assert "hf-" not in str(error.value) + error.value.hint
    else:
        run_stage(config)
    assert the_hub.requests == [f"HEAD /{MODEL}/resolve/main/config.json"]


@pytest.mark.parametrize("model", [MODEL, "gs://bucket/model"])
def test_17_7_no_answer_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    run_stage(HardwareConfig(output=str(tmp_path / "hardware"), base_model=model))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gs://b/runs/raft/1a2b/train/9f/adapter", "gs://b/runs/state"),
        ("gs://b/raft/1a2b/train/adapter", "gs://b/state"),
        ("/out/raft-2026/train/adapter", ""),
        ("minio://b/v2/raft/1a2b/train/adapter", ""),
    ],
)
def test_17_7_state_lies_in_the_pipeline_root(uri: str, expected: str) -> None:
    outputs = {"artifacts": {"text": {"artifacts": [{"uri": uri}]}}, "outputFile": "x"}
    assert Step.parse(json.dumps({"outputs": outputs})).state("train") == expected


@pytest.mark.parametrize("status", [401, 403])
def test_17_7_a_state_that_cannot_be_read_stops_the_stage(
    the_hub: Hub, gcs: Emulator, status: int
) -> None:
    gcs.fault = lambda method, path: status
    with (
        pytest.raises(AccessError, match="gs://bucket/state/models"),
        with_base_model(train("gs://bucket/state")),
    ):
        pytest.fail("the stage began")
    assert not the_hub.requests
