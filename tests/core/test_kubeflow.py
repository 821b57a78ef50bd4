"""What a step reports to Kubeflow, and where it finds the rest of its run."""

import json
from pathlib import Path

import pytest

from components.core.errors import (
    ConfigError,
    DataError,
    OutOfMemory,
    StorageError,
    TeacherError,
)
from components.core.kubeflow import Step, results_folder
from components.core.ledger import Ledger, LedgerEntry, cost_of
from components.core.records import QuantizationReport, read_json
from tests.conftest import Raft

REPORT = QuantizationReport(
    weight_bytes_16bit=100, weight_bytes_4bit=30, memory_ratio=0.3, bytes_kept_16bit=5,
    rows=40, rows_training=30, rows_too_long=0, max_new_tokens=800, complete_16bit=1.0,
    complete_4bit=0.5, complete_4bit_ci=(0.4, 0.6), same_answer=0.5, same_answer_ci=(0.4, 0.6),
    f1_16bit=0.8, f1_4bit=0.4, f1_kept=0.5, f1_kept_ci=(0.3, 0.7), min_f1_kept=0.9,
    max_incomplete=0.05, tokens=50, token_agreement=0.9, mean_kl=0.1, perplexity_16bit=2.0,
    perplexity_4bit=2.5, max_memory_ratio=0.5, outcome="fail", verdict="FAIL: <b>answers</b>",
    decision="stop",
)  # fmt: skip


def executor_input(
    folder: object, /, message: Path | None = None, parameter: str = "", **kinds: str
) -> str:
    """Kubeflow's description of a step whose artifacts lie in a folder, or at a URI.

    `message` is the file that the step announces them in; one of the folder by default. `parameter`
    is an output of the step that is no artifact, or "".
    """
    artifacts = {
        name: {"artifacts": [{"name": name, "uri": f"{folder}/step/{name}", "metadata": {},
                              "type": {"schemaTitle": f"system.{kind}"}}]}
        for name, kind in kinds.items()
    }  # fmt: skip
    outputs = {
        "artifacts": artifacts,
        "parameters": {parameter: {"outputFile": f"{folder}/step/{parameter}"}}
        if parameter
        else {},
        "outputFile": str(message or f"{folder}/step/executor_output.json"),
    }
    return json.dumps({"inputs": {"parameterValues": {"seed": 0}}, "outputs": outputs})


def test_a_step_announces_figures_pages_and_parameters(tmp_path: Path) -> None:
    text = executor_input(
        tmp_path, parameter="decision", folder="Artifact", metrics="Metrics", page="HTML"
    )
    Step.parse(text).announce(REPORT, tmp_path / "step" / "folder")
    step = tmp_path / "step"
    message = json.loads((step / "executor_output.json").read_text())
    assert message.keys() == {"artifacts", "parameterValues"}, "the launcher refuses other fields"
    for name in ("folder", "metrics", "page"):
        (artifact,) = message["artifacts"][name]["artifacts"]
        assert artifact["uri"] == str(step / name)
        assert artifact["metadata"]["memory_ratio"] == 0.3
        assert artifact["metadata"]["outcome"] == "fail"
    assert message["parameterValues"] == {"decision": "stop"}
    assert (step / "decision").read_text() == "stop"
    page = (step / "page").read_text()
    assert "FAIL: &lt;b&gt;answers" in page and "<b>" not in page
    assert "The gate is closed" in page


def test_the_artifacts_own_page_and_text_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "step" / "folder"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>whole</h1>")
    (folder / "README.md").write_text("# card")
    text = executor_input(tmp_path, folder="Artifact", page="HTML", card="Markdown")
    Step.parse(text).announce(REPORT, folder)
    assert (tmp_path / "step" / "page").read_text() == "<h1>whole</h1>"
    assert (tmp_path / "step" / "card").read_text() == "# card"


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("gs://b/runs/raft/1a2b/summary/9f/text", "gs://b/runs/raft/1a2b"),
        ("gs://b/summary/raft/1a2b/summary/9f/text", "gs://b/summary/raft/1a2b"),
        ("/out/raft-2026/summary/summary", "/out/raft-2026"),
        ("minio://b/v2/raft/1a2b/summary/text", "minio://b/v2/raft/1a2b"),
    ],
)
def test_the_run_lies_above_the_step(uri: str, folder: str) -> None:
    outputs = {"artifacts": {"text": {"artifacts": [{"uri": uri}]}}, "outputFile": "x"}
    step = Step.parse(json.dumps({"outputs": outputs}))
    assert step.folders_to_read("summary") == [folder]


def test_collected_artifacts_are_read_where_they_lie() -> None:
    uris = ["gs://b/1/evaluation", "minio://b/2/evaluation", "s3://b/3", "/4"]
    inputs = {"evaluations": {"artifacts": [{"uri": uri} for uri in uris]}}
    step = {"inputs": {"artifacts": inputs}, "outputs": {"outputFile": "x"}}
    folders = Step.parse(json.dumps(step)).folders_to_read("summary")
    assert folders == ["gs://b/1/evaluation", "/minio/b/2/evaluation", "/s3/b/3", "/4"]


def test_every_failed_attempt_has_a_ledger_of_its_own(tmp_path: Path, raft: Raft) -> None:
    text = executor_input(tmp_path, dataset="Dataset")
    for _ in range(2):
        done = raft(
            "generate", "--teacher", "extractive", "--documents", "no/such",
            "--output", tmp_path / "step" / "dataset",
            "--executor-input", text,
        )  # fmt: skip
        assert done.returncode == 2
    ledgers = sorted((tmp_path / "step" / "dataset").glob("ledger.failed-*.json"))
    assert len(ledgers) == 2
    entry = read_json(ledgers[0], LedgerEntry)
    assert entry.stage == "generate" and entry.failed.startswith("no/such: no such file")
    assert not (tmp_path / "step" / "executor_output.json").exists()


def test_what_a_failed_attempt_has_paid_is_in_its_ledger(tmp_path: Path) -> None:
    text = executor_input(tmp_path, dataset="Dataset")
    for requests in (7, 0):  # the second fails before the stage counts anything
        with pytest.raises(TeacherError), Step.parse(text).ledger_on_failure("generate"):
            if requests:
                with Ledger("generate", tmp_path) as ledger:
                    ledger.count(tokens_in=70, requests=requests)
                    raise TeacherError("does not answer")
            raise TeacherError("does not answer")
    first, second = sorted((tmp_path / "step" / "dataset").glob("ledger.failed-*.json"))
    entry = read_json(first, LedgerEntry)
    assert (entry.requests, entry.tokens_in, entry.cost) == (7, 70, cost_of(7))
    assert read_json(second, LedgerEntry).requests == 0


def test_a_ledger_that_cannot_be_written_does_not_hide_the_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = executor_input("minio://bucket", dataset="Dataset")
    with pytest.raises(ZeroDivisionError), Step.parse(text).ledger_on_failure("generate"):
        raise ZeroDivisionError
    assert "the ledger of this attempt is lost: minio://" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense"])
def test_what_is_not_from_kubeflow_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not Kubeflow's description"):
        Step.parse(text)


def test_what_outlives_a_run_lies_below_the_pipeline_root(tmp_path: Path) -> None:
    # Kubeflow hands the artifacts over in the order of their names.
    def state_of(folder: object) -> str:
        text = executor_input(folder, card="Markdown", dataset="Dataset", metrics="Metrics")
        return Step.parse(text).state("step")

    assert state_of(tmp_path) == "", "a folder of the pod is lost with it"
    assert state_of("gs://bucket/top/raft/run") == "gs://bucket/top/state"


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (ConfigError("--rank '5000'"), False), (DataError("no rows", path="d"), False),
        (OutOfMemory("too large"), False), (TeacherError("does not answer"), True),
        (StorageError("gs://b answers 503"), True), (ZeroDivisionError(), True),
        (SystemExit(143), True),
    ],
    ids=repr,
)  # fmt: skip
def test_an_attempt_says_whether_another_may_succeed(
    error: BaseException, repeatable: bool, tmp_path: Path
) -> None:
    text = executor_input(tmp_path, dataset="Dataset")
    with pytest.raises(type(error)), Step.parse(text).ledger_on_failure("generate"):
        raise error
    (path,) = (tmp_path / "step" / "dataset").iterdir()
    assert read_json(path, LedgerEntry).repeatable is repeatable


def test_a_pipeline_root_that_outlives_no_pod_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = executor_input("minio://mlpipeline/v2/artifacts/raft/1a2b", dataset="Dataset")
    step = Step.parse(text)
    assert step.state("step") == ""
    assert "minio://mlpipeline/v2/artifacts is not on gs://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("root", "state", "run", "results"),
    [
        ("gs://b/root", "", "gs://b/root/raft/1a2b", "gs://b/root/raft/1a2b"),
        ("gs://b/root", "gs://c/state", "gs://b/root/raft/1a2b", "gs://b/root/raft/1a2b"),
        ("minio://b/v2", "gs://c/state/", "gs://c/state/runs/raft/1a2b",
         "gs://c/state/runs/raft/1a2b"),
        ("minio://b/v2", "", "", "minio://b/v2/raft/1a2b"),
        ("minio://b/v2", "/cache", "", "minio://b/v2/raft/1a2b"),
        ("/out", "gs://c/state", "", "/out/raft/1a2b"),
    ],
)  # fmt: skip
def test_results_can_be_read_on_gs(root: str, state: str, run: str, results: str) -> None:
    step = Step.parse(executor_input(f"{root}/raft/1a2b/train", adapter="Model"))
    assert results_folder(step.run_folder, state) == run
    assert step.results(state) == f"{results}/train/step/adapter"
