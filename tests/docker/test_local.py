"""The committed pipelines, run for real: kfp.local with a container for every step.

Not simulated: the compiled YAML, the placeholders, the commands, the stages, the tiny model.
Borrowed: containers mount the installed environment instead of the images of images/.
Also, kfp.local ignores hardware, secrets and timeouts, and its backend is not
the cluster's.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.ledger import RunLedger
from components.core.records import Evaluation, QuantizationReport, TrainingRecord, read_json
from pipelines.compile import compiled
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.local import exit_codes_kept
from tests.conftest import REPOSITORY
from tests.docker.engine import borrow_image, borrowed_environment, borrowed_folders

pytestmark = pytest.mark.timeout(1800)
STAGES = ("generate", "train", "quantize-check", "eval")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents about the invented world, and questions about others."""
    folder = tmp_path_factory.mktemp("inputs")
    known = articles(30, seed=3)
    unseen = articles(20, seed=4, exclude={article.title for article in known})
    write_documents(known, folder / "documents")
    write_questions(unseen, 6, 2, 3, folder / "questions.json")
    return folder


class Run:
    """What a run left: status, and artifacts by step."""

    def __init__(self, root: Path, error: str) -> None:
        self.error = error
        (self.folder,) = (path for path in root.iterdir() if path.is_dir())

    def artifact(self, step: str, name: str) -> Path:
        return self.folder / step / name

    def announced(self, step: str) -> dict[str, Any]:
        message = json.loads((self.folder / step / "executor_output.json").read_text())
        return {key: found["artifacts"][0] for key, found in message["artifacts"].items()}

    @property
    def summary(self) -> str:
        return self.artifact("summary", "text").read_text()

    @property
    def account(self) -> RunLedger:
        return read_json(self.artifact("summary", "account") / "ledger.json", RunLedger)


class Runner:
    """Runs compiled pipelines in an engine."""

    def __init__(self, inputs: Path, model: Path, folder: Path) -> None:
        self.inputs, self.model, self.folder = inputs, model, folder
        self.runs = 0

    def __call__(self, name: str, *, compiled: Path | None = None, **parameters: object) -> Run:
        from docker.types import Mount
        from kfp import components, local

        self.runs += 1
        root = self.folder / f"{self.runs}"
        root.mkdir()
        seen = [*borrowed_folders(), str(self.inputs)]
        mounts = [Mount(path, path, type="bind", read_only=True) for path in seen]
        local.init(
            runner=local.DockerRunner(
                entrypoint=[],
                mounts=mounts,
                environment=borrowed_environment(),
                network_mode="none",
                shm_size="512m",
            ),
            pipeline_root=str(root),
        )
        committed = REPOSITORY / "pipelines" / f"{name}.yaml"
        pipeline = components.load_component_from_file(str(compiled or committed))
        given = {
            "documents": str(self.inputs / "documents"),
            "questions": str(self.inputs / "questions.json"),
            "epochs": 1.0,
            "max_questions": 6,
        }
        try:
            pipeline(**given | parameters)
        except RuntimeError as error:
            return Run(root, str(error))
        return Run(root, "")


@pytest.fixture(scope="module")
def run(
    docker_host: str, inputs: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    from kfp.local.orchestrator import task_executor

    specification, _ = yaml.safe_load_all((REPOSITORY / "pipelines" / "raft.yaml").read_text())
    executors = specification["deploymentSpec"]["executors"].values()
    borrow_image(docker_host, sorted({found["container"]["image"] for found in executors}))

    with exit_codes_kept(), pytest.MonkeyPatch.context() as patch:
        # The pauses between attempts are for clusters.
        patch.setattr(task_executor.time, "sleep", lambda seconds: None)
        yield Runner(inputs, demo_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(run: Runner) -> Run:
    """The happy path."""
    return run(
        "raft",
        base_model=str(run.model),
        learning_rate=3e-3,
        rank=8,
        alpha=16,
        max_memory_ratio=1.0,
    )


def test_every_step_runs_and_leaves_its_artifacts(whole: Run) -> None:
    assert whole.error == ""
    assert (whole.artifact("generate", "dataset") / "train.jsonl").stat().st_size
    assert "license" in whole.artifact("generate", "card").read_text()
    assert (whole.artifact("train", "adapter") / "adapter_model.safetensors").exists()
    assert whole.artifact("quantize-check", "decision").read_text() == "go"
    assert "agree on" in whole.artifact("quantize-check", "verdict").read_text()
    report = whole.artifact("eval", "report").read_text()
    assert report == (whole.artifact("eval", "evaluation") / "report.html").read_text()


def test_metrics_are_announced_as_metadata(whole: Run) -> None:
    result = read_json(whole.artifact("eval", "evaluation") / "results.json", Evaluation)
    shown = whole.announced("eval")["metrics"]["metadata"]
    assert {f"{arm.name.replace('-', '_')}_f1" for arm in result.arms} <= shown.keys()
    assert shown["raft_f1"] == next(arm.f1 for arm in result.arms if arm.name == "raft")
    check = whole.announced("quantize-check")["metrics"]["metadata"]
    assert 0 < check["memory_ratio"] < 1 and 0 <= check["token_agreement"] <= 1
    assert re.match("PASS|FAIL", check["verdict"])
    for step in STAGES:
        for name, artifact in whole.announced(step).items():
            assert artifact["uri"] == str(whole.artifact(step, name))


def test_the_adapter_has_the_runs_settings(whole: Run) -> None:
    adapter = whole.artifact("train", "adapter")
    record = read_json(adapter / "training.json", TrainingRecord)
    lora = json.loads((adapter / "adapter_config.json").read_text())
    assert (lora["r"], lora["lora_alpha"]) == (8, 16)
    table = whole.artifact("train", "settings").read_text()
    assert "| step | validation loss |" in table and f"{record.validation_loss:.4f}" in table


def test_the_summary_tells_the_whole_run(whole: Run) -> None:
    assert "**Succeeded.**" in whole.summary
    for title in (*STAGES, "time and cost"):
        assert f"## {title}" in whole.summary
    assert [entry.stage for entry in whole.account.stages] == list(STAGES)
    assert not any(entry.failed for entry in whole.account.stages)
    assert whole.account.seconds > 1


def test_a_failed_check_closes_the_gate_and_the_run_still_succeeds(run: Runner) -> None:
    stopped = run("raft", base_model=str(run.model), rank=2, max_memory_ratio=0.01, gate="stop")
    assert stopped.error == ""
    report = read_json(
        stopped.artifact("quantize-check", "quantization") / "quantization.json",
        QuantizationReport,
    )
    assert not report.passed
    assert stopped.artifact("quantize-check", "decision").read_text() == "stop"
    assert not (stopped.folder / "eval").exists()
    assert "The gate is closed" in stopped.artifact("quantize-check", "verdict").read_text()
    assert "**The gate is closed:**" in stopped.summary
    assert [entry.stage for entry in stopped.account.stages] == list(STAGES[:3])


def test_shards_in_pods_of_their_own_make_the_rows_of_a_single_run(
    run: Runner, whole: Run, tmp_path: Path
) -> None:
    path = tmp_path / "raft.yaml"
    path.write_text(compiled(shards=3))
    closed = {"rank": 2, "max_memory_ratio": 0.01, "gate": "stop"}
    sharded = run("raft", compiled=path, base_model=str(run.model), **closed)
    assert sharded.error == ""
    for name in ("train.jsonl", "validation.jsonl"):
        merged = sharded.artifact("merge", "dataset") / name
        assert merged.read_bytes() == (whole.artifact("generate", "dataset") / name).read_bytes()
    assert "license" in sharded.artifact("merge", "card").read_text()
    stages = [entry.stage for entry in sharded.account.stages]
    assert stages.count("generate") == 3 and stages.count("train") == 1
    assert "## generate" in sharded.summary


def test_a_failing_step_is_in_the_summary_with_every_attempt(run: Runner) -> None:
    failed = run("raft", base_model=str(run.model), rank=5000)
    assert "finished with status" in failed.error
    assert "**Failed.**" in failed.summary
    assert "**train failed:** --rank '5000'" in failed.summary.replace("\\", "")
    assert "Without a result: train, quantize-check, eval." in failed.summary
    attempts = [entry for entry in failed.account.stages if entry.stage == "train"]
    assert len(attempts) == 4, "the first, and three retries"
    assert all("5000" in entry.failed for entry in attempts)
    assert failed.account.stages[0].stage == "generate"


def test_the_study_compares_its_trials(run: Runner) -> None:
    trials = [
        {"base_model": str(run.model), "rank": rank, "alpha": 2 * rank, "learning_rate": 3e-3,
         "target_modules": ["all-linear"]}
        for rank in (2, 8)
    ]  # fmt: skip
    study = run("study", trials=trials, arms=["base", "raft"])
    assert study.error == ""
    page = study.artifact("compare", "report").read_text()
    assert "<svg" in page
    for rank in (2, 8):
        assert f"rank {rank}" in page
    assert "## comparison" in study.summary
    stages = [entry.stage for entry in study.account.stages]
    assert stages.count("generate") == 1 and stages.count("train") == stages.count("eval") == 2
