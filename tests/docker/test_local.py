"""The committed pipelines, run for real: kfp.local with a container for every step.

Not simulated: the compiled YAML (but for how long answers may be), the placeholders, the commands,
the stages, the tiny model.
Borrowed: containers mount the installed environment instead of the images of images/.
Also, kfp.local ignores hardware, secrets and timeouts, and its backend is not
the cluster's.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.types import Mount

from components.core.ledger import RunLedger
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    TrainingRecord,
    read_json,
)
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.trials import completed
from tests.conftest import DATA, REPOSITORY, lacking
from tests.docker.engine import borrow_image, borrowed_environment, borrowed_folders
from tests.docker.local import folder_of, run_compiled

pytestmark = pytest.mark.timeout(1800)
VLLM_ON_A_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
STAGES = ("generate", "train", "quantize-check", "eval")
SHORT = {
    "generate": {"allow_cpu": True, "teacher_timeout": 900.0, "teacher_max_tokens": 96},
    "quantize-check": {"max_rows": 16, "max_new_tokens": 96},
    "eval": {"max_new_tokens": 96},
}
"""Constants of the committed pipelines with other values: a model that was trained on a few rows
does not stop by itself, and answers 64 rows with 800 tokens each, twice."""


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
        self.error, self.folder = error, folder_of(root)

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

    def __call__(
        self,
        name: str,
        prefix: Path | None = None,
        seen: Sequence[Path] = (),
        attempts: int = 0,
        **parameters: object,
    ) -> Run:
        """Run a pipeline; containers also see `seen`, and have the environment in `prefix`.

        Steps are tried so often; 0 is as often as the pipeline says.
        """
        self.runs += 1
        root = self.folder / f"{self.runs}"
        root.mkdir()
        paths = [*borrowed_folders(), str(self.inputs), *map(str, seen)]
        mounts = [Mount(path, path, type="bind", read_only=True) for path in paths]
        environment = borrowed_environment()
        if prefix:
            environment |= {"PATH": f"{prefix}/bin:{environment['PATH']}", **VLLM_ON_A_CPU}
        given = {
            "documents": str(self.inputs / "documents"),
            "teacher": "extractive",
            "questions": str(self.inputs / "questions.json"),
            "epochs": 1.0,
            "max_questions": 6,
        }
        try:
            run_compiled(
                name,
                root,
                given | parameters,
                SHORT,
                attempts=attempts,
                mounts=mounts,
                environment=environment,
            )
        except RuntimeError as error:
            return Run(root, str(error))
        return Run(root, "")


@pytest.fixture(scope="module")
def run(
    docker_host: str, inputs: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    specification, _ = yaml.safe_load_all((REPOSITORY / "pipelines" / "raft.yaml").read_text())
    executors = specification["deploymentSpec"]["executors"].values()
    images = {found["container"]["image"] for found in executors} | {"raft-generate-gpu:0.1.0"}
    borrow_image(docker_host, sorted(image for image in images if "{{" not in image))
    return Runner(inputs, demo_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(run: Runner) -> Run:
    """The happy path."""
    return run(
        "raft",
        base_model=str(run.model),
        learning_rate=3e-3,
        rank=8,
        alpha=16,
    )


def test_every_step_runs_and_leaves_its_artifacts(whole: Run) -> None:
    assert whole.error == ""
    assert (whole.artifact("generate", "dataset") / "train.jsonl").stat().st_size
    assert "license" in whole.artifact("generate", "card").read_text()
    assert (whole.artifact("train", "adapter") / "adapter_model.safetensors").exists()
    assert whole.artifact("quantize-check", "decision").read_text() == "go"
    assert "are the same, and F1 is" in whole.artifact("quantize-check", "verdict").read_text()
    report = whole.artifact("eval", "report").read_text()
    assert report == (whole.artifact("eval", "evaluation") / "report.html").read_text()


def test_metrics_are_announced_as_metadata(whole: Run) -> None:
    result = read_json(whole.artifact("eval", "evaluation") / "results.json", Evaluation)
    shown = whole.announced("eval")["metrics"]["metadata"]
    assert {f"{arm.name.replace('-', '_')}_f1" for arm in result.arms} <= shown.keys()
    assert shown["raft_f1"] == next(arm.f1 for arm in result.arms if arm.name == "raft")
    check = whole.announced("quantize-check")["metrics"]["metadata"]
    assert 0 < check["memory_ratio"] < 1 and 0 <= check["token_agreement"] <= 1
    assert re.match("PASS|FAIL|INCONCLUSIVE", check["verdict"])
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
    # Embeddings, which stay in 16 bits, are so much of the model that 4 bits save less than half.
    stopped = run("raft", base_model=str(run.model), rank=2, gate="stop")
    assert stopped.error == ""
    report = read_json(
        stopped.artifact("quantize-check", "quantization") / "quantization.json",
        QuantizationReport,
    )
    assert report.outcome == "fail"
    assert stopped.artifact("quantize-check", "decision").read_text() == "stop"
    assert not (stopped.folder / "eval").exists()
    assert "The gate is closed" in stopped.artifact("quantize-check", "verdict").read_text()
    assert "**The gate is closed:**" in stopped.summary
    assert [entry.stage for entry in stopped.account.stages] == list(STAGES[:3])


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
        completed(
            {"base_model": str(run.model), "rank": rank, "alpha": 2 * rank, "learning_rate": 3e-3,
             "arms": ["base", "raft"]}
        )
        for rank in (2, 8)
    ]  # fmt: skip
    study = run("study", trials=trials)
    assert study.error == ""
    page = study.artifact("compare", "report").read_text()
    assert "<svg" in page
    for rank in (2, 8):
        assert f"rank {rank}" in page
    assert "## comparison" in study.summary
    stages = [entry.stage for entry in study.account.stages]
    assert stages.count("generate") == 1 and stages.count("train") == stages.count("eval") == 2


def test_a_teacher_of_its_own_is_served_in_the_step(
    run: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM's CPU build serves the tests' tiny teacher, and its rows train the model.

    `make test-vllm` installs vLLM. With SmolLM2 as teacher there is no row: docs/results.md.
    """
    prefix = (REPOSITORY / ".venv-vllm").resolve()
    if not (prefix / ".installed").exists():
        lacking("make .venv-vllm/.installed")
    teacher = DATA / "teacher"
    write_documents(articles(40, seed=5), tmp_path / "documents")
    ended = run(
        "raft",
        prefix=prefix,
        seen=[teacher, tmp_path / "documents", prefix],
        attempts=1,
        documents=str(tmp_path / "documents"),
        teacher="vllm",
        teacher_model=str(teacher),
        base_model=str(run.model),
    )
    log = "".join(capfd.readouterr())
    assert ended.error == "", log[-5000:]
    assert "the teacher's server is ready after" in log, log[-5000:]
    assert "the prefix cache served" in log
    report = read_json(
        ended.artifact("generate", "dataset") / GenerationReport.FILE, GenerationReport
    )
    assert sum(report.rows.values()) >= 20, report.dropped
    first, *others = ended.account.stages
    assert [first.stage, *(entry.stage for entry in others)] == list(STAGES)
    assert first.parts["server start"] > 0
    assert first.requests >= 40 + sum(report.rows.values())
    assert read_json(
        ended.artifact("train", "adapter") / TrainingRecord.FILE, TrainingRecord
    ).rows_train
