"""The README's first command, whole: what a newcomer sees, and whether it is true."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.ledger import RunLedger
from components.core.records import Evaluation, Question, RaftRow, read_json, read_jsonl
from components.core.storage import verify
from pipelines.demo import demo
from tests.conftest import REPOSITORY, Raft

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def printed(
    raft: Raft, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = raft("demo", "--output", folder, timeout=2400)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def run(printed: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return printed[0]


@pytest.fixture(scope="module")
def result(run: Path) -> Evaluation:
    return read_json(run / "evaluation" / "results.json", Evaluation)


def test_raft_raises_f1_on_unseen_documents(result: Evaluation) -> None:
    arms = {arm.name: arm for arm in result.arms}
    assert arms["raft"].n >= 300
    assert arms["raft"].f1 >= 0.60
    assert arms["raft"].f1 - arms["base"].f1 >= 0.35
    (gain,) = (
        c for c in result.comparisons if (c.arm, c.baseline, c.metric) == ("raft", "base", "f1")
    )
    assert gain.difference == pytest.approx(arms["raft"].f1 - arms["base"].f1, abs=2e-6)
    assert gain.ci[0] > 0
    assert result.retention == pytest.approx(arms["raft-4bit"].f1 / arms["raft"].f1, abs=2e-6)
    assert result.retention >= 0.94


def test_the_questions_are_about_documents_that_nobody_saw(run: Path) -> None:
    questions = [
        Question.model_validate(row)
        for row in json.loads((run / "questions.json").read_text(encoding="utf-8"))
    ]
    asked = {"".join(sentences) for question in questions for _, sentences in question.context}
    seen = {
        text
        for split in ("train", "validation")
        for row in read_jsonl(run / "dataset" / f"{split}.jsonl", RaftRow)
        for text in row.context.sentences[0]
    }
    assert len(questions) >= 300 and len(seen) > 300
    assert not asked & seen
    assert all(len(question.context) == 4 for question in questions)


def test_everything_the_readme_lists_is_there(run: Path) -> None:
    for name in (
        "dataset/train.jsonl", "dataset/validation.jsonl", "dataset/report.json",
        "dataset/README.md", "adapter/adapter_model.safetensors", "adapter/training.json",
        "quantization/quantization.json", "quantization/answers.jsonl", "evaluation/results.json",
        "evaluation/samples.jsonl", "evaluation/report.html", "evaluation/f1.svg", "ledger.json",
        "questions.json",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    for name in ("dataset", "adapter", "quantization", "evaluation"):
        verify(run / name, "--output")
    ledger = read_json(run / "ledger.json", RunLedger)
    assert [entry.stage for entry in ledger.stages] == [
        "generate", "train", "quantize-check", "eval",
    ]  # fmt: skip
    assert ledger.cost is None, "a CPU is not in the price table"


def test_the_terminal_tells_what_happens(
    printed: tuple[Path, subprocess.CompletedProcess[str]], result: Evaluation
) -> None:
    run, table, log = printed[0], printed[1].stdout, printed[1].stderr
    for stage in ("demo", "generate", "train", "quantize-check", "eval"):
        assert f"▸ {stage}" in log
    assert "steps/" in log and "loss=" in log
    for arm in result.arms:
        assert arm.name in table and f"{arm.f1:.3f}" in table
    assert str(run / "evaluation" / "report.html") in "".join(table.split("\n"))
    ask = f'raft ask --adapter {run}/adapter --documents {run}/questions.json "'
    assert ask in table and f"raft serve --adapter {run}/adapter --run" in table


def test_a_second_run_gives_the_same_data_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a smaller world: what is random does not depend on its size."""
    sizes = {"DOCUMENTS": 80, "UNSEEN_DOCUMENTS": 60, "QUESTIONS": 40}
    first, second = tmp_path / "first", tmp_path / "second"
    script = (
        "from pathlib import Path; from pipelines.demo import demo; "
        f"vars(demo).update({sizes}); demo.run_demo(Path({str(first)!r}), seed=0)"
    )
    another = os.environ | {"PYTHONHASHSEED": "1"}  # no order of a set may show
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=another, check=True)
    for name, size in sizes.items():
        monkeypatch.setattr(demo, name, size)
    demo.run_demo(second, seed=0)
    for name in ("train.jsonl", "validation.jsonl", "report.json", "README.md"):
        assert filecmp.cmp(first / "dataset" / name, second / "dataset" / name, shallow=False)

    def scores(folder: Path) -> list[object]:
        result = read_json(folder / "evaluation" / "results.json", Evaluation)
        return [arm.model_dump(exclude={"seconds"}) for arm in result.arms]

    assert scores(first) == scores(second)


def test_a_folder_with_something_else_is_left_alone(raft: Raft, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mine.txt").write_text("precious", encoding="utf-8")
    done = raft("demo", "--output", tmp_path)
    assert done.returncode == 2
    assert ": holds something else" in done.stderr
    assert (tmp_path / "documents" / "mine.txt").read_text(encoding="utf-8") == "precious"
