"""What a step reports to Kubeflow, and where it finds the rest of its run."""

import json
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.kubeflow import Step
from components.core.ledger import LedgerEntry
from components.core.records import QuantizationReport, read_json
from tests.conftest import Raft

REPORT = QuantizationReport(
    weight_bytes_16bit=100, weight_bytes_4bit=30, memory_ratio=0.3, bytes_kept_16bit=5, rows=4,
    tokens=50, token_agreement=0.5, mean_kl=0.1, perplexity_16bit=2.0, perplexity_4bit=2.5,
    min_agreement=0.9, max_memory_ratio=0.5, passed=False, verdict="FAIL: <b>agreement</b>",
    decision="stop",
)  # fmt: skip


def executor_input(folder: Path, /, **kinds: str) -> str:
    """Kubeflow's description of a step whose artifacts lie in a local folder."""
    return json.dumps(
        {
            "inputs": {"parameterValues": {"seed": 0}},
            "outputs": {
                "artifacts": {
                    name: {
                        "artifacts": [
                            {
                                "name": name,
                                "uri": str(folder / "step" / name),
                                "type": {"schemaTitle": f"system.{kind}"},
                                "metadata": {},
                            }
                        ]
                    }
                    for name, kind in kinds.items()
                },
                "parameters": {"decision": {"outputFile": str(folder / "step" / "decision")}},
                "outputFile": str(folder / "step" / "executor_output.json"),
            },
        }
    )


def test_a_step_announces_figures_pages_and_parameters(tmp_path: Path) -> None:
    text = executor_input(tmp_path, folder="Artifact", metrics="Metrics", page="HTML")
    Step.parse(text).announce(REPORT, tmp_path / "step" / "folder")
    step = tmp_path / "step"
    message = json.loads((step / "executor_output.json").read_text())
    assert message.keys() == {"artifacts", "parameterValues"}, "the launcher refuses other fields"
    for name in ("folder", "metrics", "page"):
        (artifact,) = message["artifacts"][name]["artifacts"]
        assert artifact["uri"] == str(step / name)
        assert artifact["metadata"]["memory_ratio"] == 0.3
        assert artifact["metadata"]["passed"] is False
    assert message["parameterValues"] == {"decision": "stop"}
    assert (step / "decision").read_text() == "stop"
    page = (step / "page").read_text()
    assert "FAIL: &lt;b&gt;agreement" in page and "<b>" not in page
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
    text = json.dumps(
        {"outputs": {"artifacts": {"text": {"artifacts": [{"uri": uri}]}}, "outputFile": "x"}}
    )
    assert Step.parse(text).folders_to_read("summary") == [folder]


def test_collected_artifacts_are_read_where_they_lie() -> None:
    artifacts = [{"uri": "gs://b/1/evaluation"}, {"uri": "minio://b/2/evaluation"}, {"uri": "/3"}]
    text = json.dumps(
        {
            "inputs": {"artifacts": {"evaluations": {"artifacts": artifacts}}},
            "outputs": {"outputFile": "x"},
        }
    )
    assert Step.parse(text).folders_to_read("summary") == [
        "gs://b/1/evaluation", "/minio/b/2/evaluation", "/3",
    ]  # fmt: skip


def test_every_failed_attempt_has_a_ledger_of_its_own(tmp_path: Path, raft: Raft) -> None:
    text = executor_input(tmp_path, dataset="Dataset")
    for _ in range(2):
        done = raft(
            "generate", "--documents", "no/such", "--output", tmp_path / "step" / "dataset",
            "--executor-input", text,
        )  # fmt: skip
        assert done.returncode == 2
    ledgers = sorted((tmp_path / "step" / "dataset").glob("ledger.failed-*.json"))
    assert len(ledgers) == 2
    entry = read_json(ledgers[0], LedgerEntry)
    assert entry.stage == "generate" and entry.failed.startswith("no/such: no such file")
    assert not (tmp_path / "step" / "executor_output.json").exists()


def test_a_ledger_that_cannot_be_written_does_not_hide_the_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = executor_input(tmp_path, dataset="Dataset").replace(str(tmp_path), "minio://bucket")
    with pytest.raises(ZeroDivisionError), Step.parse(text).ledger_on_failure("generate"):
        raise ZeroDivisionError
    assert "the ledger of this attempt is lost: minio://" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense"])
def test_what_is_not_from_kubeflow_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not Kubeflow's description"):
        Step.parse(text)


def test_what_an_attempt_keeps_lies_in_the_bucket_beside_what_it_writes(tmp_path: Path) -> None:
    # Kubeflow hands the artifacts over in the order of their names.
    text = executor_input(tmp_path, card="Markdown", dataset="Dataset")
    here = str(tmp_path / "step" / "dataset")
    assert Step.parse(text, here).beside("responses") == "", "a folder of the pod is lost with it"
    there = text.replace(str(tmp_path), "gs://bucket/top")
    place = Step.parse(there, "/gcs/bucket/top/step/dataset").beside("responses")
    assert place == "gs://bucket/top/step/dataset-responses"
