"""The summary of a run: whole, half, with a closed gate, with several trials, or of nothing."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from components.core.chart import COLORS
from components.core.errors import StorageError
from components.core.ledger import LedgerEntry, RunLedger
from components.core.pages import for_terminal, plain
from components.core.records import (
    ArmResult,
    Comparison,
    Evaluation,
    GenerationReport,
    LossPoint,
    Record,
    TrainingRecord,
    read_json,
)
from components.core.storage import finish_artifact, write_json
from components.core.use_it import use_it
from components.report import summary
from components.report.comparison import best
from components.report.outcome import Outcome, StepState
from components.report.results import read
from components.report.summary import SummaryConfig
from components.report.trial import Trial
from tests.conftest import Raft
from tests.core.test_kubeflow import REPORT

GENERATED = GenerationReport(
    documents=3, documents_duplicate=0, chunks=9, chunks_duplicate=0, chunks_used=9,
    rows={"train": 8, "validation": 1},
    dropped={"no question | found": 2}, rows_without_oracle=1, split_by="document",
    teacher="extractive", seed=0,
)  # fmt: skip


def trained(rank: int) -> TrainingRecord:
    return TrainingRecord(
        base_model="m", rows_train=8, rows_validation=1, rows_too_long=0, steps=2, epochs=1,
        trainable_parameters=10, total_parameters=100, tokens=50, tokens_per_second=5,
        peak_memory_bytes=1, validation_loss=1.25, settings={"rank": rank, "target_modules": ["a"]},
        curve=[LossPoint(step=2, loss=1.25, split="validation")],
    )  # fmt: skip


def evaluated(f1: float) -> Evaluation:
    arms = [
        ArmResult(
            name=name, label=name, tuned=name == "raft", bits=16, prompt="raft", f1=score,
            em=0.1, precision=0.2, recall=0.3, n=5, contains=0.4, truncated=0,
            unanswered=0, f1_ci=(score - 0.1, score + 0.1), em_ci=(0, 1), contains_ci=(0, 1),
            weight_bytes=10,
        )
        for name, score in (("base", 0.2), ("raft", f1))
    ]  # fmt: skip
    return Evaluation(
        task="t", base_model="org/<model>", dtype="bfloat16", questions=5, max_new_tokens=8, seed=0,
        arms=arms, comparisons=[], retention=None, memory_ratio=None, warnings=[],
    )  # fmt: skip


def entry(stage: str, cost: float | None = 0.5, **fields: Any) -> LedgerEntry:
    return LedgerEntry(
        stage=stage, seconds=61, tokens_in=1, tokens_out=2, requests=0, gpu="NVIDIA A100",
        gpu_count=1, peak_memory_bytes=1, peak_gpu_memory_bytes=1, cost=cost,
        prices_date="2026-01-01", bytes_fetched=2_000_000, **fields,
    )  # fmt: skip


def artifact(folder: Path, stage: str, **records: Record) -> Path:
    for name, record in records.items():
        write_json(folder / f"{name}.json", record)
    write_json(folder / "ledger.json", entry(stage))
    finish_artifact(folder)
    return folder


def sum_up(run: Path, status: str = "") -> tuple[str, RunLedger]:
    output = run / "out"
    config = SummaryConfig(folders=(str(run),), output=str(output), status=status)
    ledger = summary.run(config)
    assert read_json(output / "ledger.json", RunLedger) == ledger
    return (output / "summary.md").read_text(), ledger


def test_a_run_with_one_adapter_ends_with_how_to_use_it(tmp_path: Path) -> None:
    artifact(tmp_path / "a", "generate", report=GENERATED)
    adapter = artifact(tmp_path / "my adapter", "train", training=trained(8))
    evaluation = artifact(tmp_path / "e", "eval", training=trained(8), results=evaluated(0.75))
    text, _ = sum_up(tmp_path)
    commands = text.split("## use it\n\n```sh\n")[1].split("\n```")[0].splitlines()
    assert commands == [
        f"raft ask --adapter '{adapter}' --documents DOCUMENTS \"QUESTION\"",
        f"raft serve --adapter '{adapter}' --run",
        f"raft card --adapter '{adapter}' --evaluation {evaluation} --output published/",
    ]
    card = (tmp_path / "out" / "card.md").read_text()
    assert "| teacher | extractive |" in card and "| raft | 0.750 |" in card
    artifact(tmp_path / "c", "train", training=trained(16))
    output = tmp_path / "both"
    summary.run(SummaryConfig(folders=(str(tmp_path),), output=str(output)))
    assert "## use it" not in (output / "summary.md").read_text()
    assert not (output / "card.md").exists()


def test_adapters_on_gs_are_copied_before_they_are_served() -> None:
    ask, serve, card = use_it("gs://b/run/adapter", evaluation="gs://b/run/evaluation")
    assert serve == "raft serve --adapter gs://b/run/adapter --copy-to models/ --run"
    assert ask.startswith("raft ask --adapter gs://b/run/adapter --documents ")
    assert "--evaluation gs://b/run/evaluation" in card


def test_a_whole_run(tmp_path: Path) -> None:
    artifact(tmp_path / "a", "generate", report=GENERATED)
    artifact(tmp_path / "b", "train", training=trained(8))
    artifact(tmp_path / "c", "quantize-check", quantization=REPORT.model_copy(
        update={"decision": "go"}))  # fmt: skip
    artifact(tmp_path / "d", "eval", results=evaluated(0.6), training=trained(8))
    text, ledger = sum_up(tmp_path, '{"state": "SUCCEEDED", "error": {}}')
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == [
        "# RAFT run", "## generate", "## train", "## quantize-check", "## eval",
        "## use it", "## time and cost",
    ]  # fmt: skip
    assert "**Succeeded.**" in text and "Without a result" not in text
    assert "| no question \\| found | 2 |" in text
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert ledger.cost == 2.0 and "| all |  | 4 min 4 s |  |  | 8.0 MB | 2.00 USD |" in text
    again, _ = sum_up(tmp_path, '{"state": "SUCCEEDED", "error": {}}')
    assert again == text, "its own output is not taken for a stage's"


def test_a_failed_run_names_the_step_and_counts_every_attempt(tmp_path: Path) -> None:
    artifact(tmp_path / "a", "generate", report=GENERATED)
    adapter = tmp_path / "b"
    adapter.mkdir()
    write_json(adapter / "training.json", trained(8))  # not sealed: half-written
    write_json(adapter / "ledger.failed-2.json", entry("train", failed="out of memory"))
    write_json(adapter / "ledger.failed-1.json", entry("train", failed="stopped from outside"))
    status = {"state": "FAILED", "error": {"message": "node `x` died"}}
    text, ledger = sum_up(tmp_path, json.dumps(status))
    assert "**Failed.** node \\`x\\` died" in text
    attempts = [attempt.failed for attempt in ledger.stages]
    assert attempts == ["", "stopped from outside", "out of memory"]
    assert "**train failed:** out of memory" in text, "the last attempt's reason"
    assert text.count("**train failed:**") == 1
    assert "## train" not in text
    assert "Without a result: train, quantize-check, eval." in text
    assert ledger.cost == 1.5


def test_a_step_has_failed_where_its_last_attempt_has(tmp_path: Path) -> None:
    stopped, memory = "stopped from outside", "out of memory"
    artifact(tmp_path / "1", "train", training=trained(8))
    write_json(tmp_path / "1" / "ledger.failed-1.json", entry("train", failed=stopped))
    text, ledger = sum_up(tmp_path)
    assert "**train failed" not in text and f"| train | {stopped} |" in text
    assert [attempt.failed for attempt in ledger.stages] == [stopped, ""]
    (tmp_path / "2").mkdir()
    write_json(tmp_path / "2" / "ledger.failed-1.json", entry("train", failed=memory))
    text, _ = sum_up(tmp_path)
    assert f"**train failed:** {memory}" in text and "## train" in text, "of another trial"


@pytest.mark.parametrize(
    ("since", "reason"),
    [("10:01:00", "out of memory"), ("10:01:01", "it left no ledger entry: its process or pod")],
)
def test_a_reason_is_of_the_attempt_that_the_server_means(
    since: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    started = datetime.fromisoformat("2026-01-02 10:01:00Z")
    failed = entry("train", failed="out of memory", started=started)
    write_json(tmp_path / "1" / "ledger.failed-1.json", failed)
    last = StepState("train", "failed", 2, datetime.fromisoformat(f"2026-01-02 {since}Z"))
    text = summary.as_reported(Outcome("1a2b", "failed", (last,)), read((str(tmp_path),)))
    assert f"**Train failed at attempt 2:** {reason}" in text
    assert "Attempts: train 2; each resumes" in text


def test_time_in_which_no_step_worked_is_told(tmp_path: Path) -> None:
    # Each works for 61 s: 39 s before the second, none before the third, 120 s before the last.
    for number, started in enumerate(("10:00:00", "10:01:40", "10:02:00", "10:05:01")):
        at = datetime.fromisoformat(f"2026-01-02 {started}Z")
        name = f"ledger.failed-{number}.json"
        write_json(tmp_path / "1" / name, entry("train", failed="killed", started=at))
    text, _ = sum_up(tmp_path)
    assert "Between the steps: 2 min 39 s (drivers," in text


def test_a_closed_gate_is_no_failure_and_says_what_to_do(tmp_path: Path) -> None:
    artifact(tmp_path / "c", "quantize-check", quantization=REPORT)
    text, _ = sum_up(tmp_path)
    assert "**The gate is closed:**" in text and "`gate` set to `warn`" in text
    assert "Without a result: generate, train." in text


def test_several_trials_are_compared(tmp_path: Path) -> None:
    for number, (rank, f1) in enumerate(((8, 0.4), (64, 0.7))):
        artifact(tmp_path / f"{number}", "eval", results=evaluated(f1), training=trained(rank))
    text, _ = sum_up(tmp_path)
    assert "| 64 |" in text and "0.700 (0.600 – 0.800)" in text
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<rect") == 4 and COLORS[True, 16] in page
    assert ">org/&lt;model&gt;, rank 64<" in page and "<model>" not in page
    assert "https:" not in page and "http:" not in page, "self-contained"


def trial(name: str, f1: float, loss: float, **changed: object) -> Trial:
    training = trained(8).model_copy(update={"validation_loss": loss})
    return Trial(evaluated(f1).model_copy(update=changed), training, name)


def test_the_best_trials_are_named_among_those_that_can_be_compared() -> None:
    title, scores = "org/<model>", "0.700 (0.600 – 0.800)"
    first, near, far = trial("first", 0.7, 1.2), trial("near", 0.65, 1.0), trial("far", 0.4, 1.5)
    least = f"Best by validation loss: {title} (near), 1.0000."
    close = f" Not distinguishable from it: {title} (near)."
    assert best([far, near, first]) == [f"Best by F1: {title} (first), {scores}.{close}", least]
    assert best([far, first])[0] == f"Best by F1: {title} (first), {scores}."
    assert best([first]) == []
    other = trial("other", 0.4, 1.0, base_model="org/other")
    assert best([first, other]) == [f"Best by F1: {title}, {scores}."], "of losses nothing"
    assert best([first, trial("rag", 0.4, 9.0, retrieve="bm25:5")])[0] == (
        f"Best by validation loss: {title} (first), 1.2000."
    ), "of scores nothing"
    settings = trained(8).settings | {"target": "answer"}
    answer = trained(8).model_copy(update={"settings": settings, "validation_loss": 0.1})
    unlike = Trial(evaluated(0.4), answer, "answer")
    assert not [text for text in best([first, unlike]) if "loss" in text], "other tokens"
    longer = trial("near", 0.4, 1.0, max_new_tokens=9)
    assert best([first, longer]) == [least], "of scores nothing"


@pytest.mark.parametrize("folders", [(), ("gone",), (".",)])
def test_nothing_to_read_is_an_error_where_no_run_has_ended(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError) as caught:
        summary.run(SummaryConfig(folders=folders, output=str(tmp_path / "out")))
    assert "gone: no such folder" in str(caught.value) or "nothing of a run" in str(caught.value)
    assert "--folders run/dataset,run/adapter" in caught.value.hint
    assert not (tmp_path / "out").exists()


RUNNING = '{"state": "RUNNING", "error": {}}'
"""What Kubeflow 2.17.0 gives the exit handler where no launcher reported a failure."""


def test_a_run_that_kubeflow_calls_running_is_judged_by_its_results(tmp_path: Path) -> None:
    def heading() -> str:
        text, _ = sum_up(tmp_path, RUNNING)
        assert "Running." not in text
        return text.splitlines()[2]

    assert heading().startswith("**Ended early, before generate had a result.**")
    artifact(tmp_path / "a", "generate", report=GENERATED)
    artifact(tmp_path / "b", "train", training=trained(8))
    assert heading().startswith("**Ended early, before quantize-check had a result.**")
    artifact(tmp_path / "c", "quantize-check", quantization=REPORT)
    assert heading() == "**Complete.**", "the gate is closed, so eval was not to run"
    artifact(tmp_path / "c", "quantize-check", quantization=REPORT.model_copy(
        update={"decision": "go"}))  # fmt: skip
    assert heading().startswith("**Ended early, before eval had a result.**")
    artifact(tmp_path / "d", "eval", results=evaluated(0.6), training=trained(8))
    assert heading() == "**Complete.**"
    artifact(tmp_path / "e", "eval", results=evaluated(0.7), training=trained(16))
    assert heading() == "**2 trials are finished.**"


@pytest.mark.parametrize("status", ["nonsense", "[]", '{"state": "CANCELLED"}'])
def test_nothing_to_read_is_a_sentence(status: str, tmp_path: Path) -> None:
    config = SummaryConfig(
        folders=("minio://bucket/run", str(tmp_path / "gone")), output=str(tmp_path / "out"),
        status=status,
    )  # fmt: skip
    assert summary.run(config).stages == []
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "The results are below minio://bucket/run. minio://" in text
    assert "minio:// is not read here (allowed: a local path, gs://BUCKET/PATH)" in text
    assert "pipeline root on gs://" in text and "no such folder" in text
    assert ("**Cancelled.**" in text) is ("CANCELLED" in status)


def test_what_an_interrupted_training_kept_is_no_result(tmp_path: Path) -> None:
    artifact(tmp_path / "run" / "adapter", "train", training=trained(8))
    kept = tmp_path / "run" / "adapter-checkpoints" / "finished"
    kept.mkdir(parents=True)
    (kept / "run.json").write_text("{}", encoding="utf-8")
    artifact(kept, "train", training=trained(4))
    text, ledger = sum_up(tmp_path / "run", '{"state": "SUCCEEDED"}')
    assert text.count("## train") == 1
    assert len(ledger.stages) == 1


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a", "generate", report=GENERATED)
    (folder / "report.json").write_text('{"rows": 1}')
    finish_artifact(folder)
    text, _ = sum_up(tmp_path)
    assert "report.json is of a form that this version cannot read." in text


def test_finished_runs_are_compared_from_the_command_line(tmp_path: Path, raft: Raft) -> None:
    for name, f1, settings in (
        ("one", 0.5, {"max_new_tokens": 8}),
        ("two", 0.6, {"max_new_tokens": 9}),
    ):
        gain = Comparison(
            arm="raft", baseline="base", metric="f1", difference=f1 - 0.2, ci=(0.1, 0.5),
            p_value=0.0005,
        )  # fmt: skip
        result = evaluated(f1).model_copy(update={**settings, "comparisons": [gain]})
        artifact(tmp_path / name / "evaluation", "eval", results=result, training=trained(16))
    done = raft("compare", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "out")
    assert (done.returncode, "2 evaluations" in done.stderr) == (0, True), done.stderr
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "org/&lt;model&gt;" in page and "<model>" not in page
    assert "The runs differ in max_new_tokens (8, 9): compare their gains" in page
    assert page.count(f"({tmp_path}/two/evaluation)") == 1, "in the table; the figure breaks lines"
    assert "+0.400 (+0.100 – +0.500)" in page


def test_a_run_without_an_evaluation_is_named(tmp_path: Path, raft: Raft) -> None:
    (tmp_path / "empty").mkdir()
    done = raft("compare", tmp_path / "empty")
    assert done.returncode == 2
    assert f"{tmp_path / 'empty'}: holds no finished evaluation" in done.stderr
    assert raft("compare").returncode == 2


@pytest.mark.parametrize(
    "text", ["--rank 5000 (>= 1, <= 1024)", r"a*b_c \ & [x] `#1` |", "&lt; \\*"]
)
def test_a_terminal_shows_the_text_itself(text: str) -> None:
    assert for_terminal(plain(text)) == text
