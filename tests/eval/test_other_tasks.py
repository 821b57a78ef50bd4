"""Further tasks of lm-evaluation-harness, on the models that the stage has evaluated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.records import Evaluation, OtherScore, read_json
from components.eval.eval import run
from tests.eval.conftest import Stage

ROWS = [
    {"q": f"{first} and {second} is", "choices": [str(first + second), "none"], "right": 0}
    for first in range(4)
    for second in range(3)
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = folder / "sums.yaml"
    path.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {folder}/sums.jsonl}}\n"
        "test_split: train\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: right\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc}]\nmetadata: {version: 1}\n"
    )
    return path


def scores_of(folder: Path) -> dict[str, OtherScore]:
    return {
        score.arm: score
        for score in read_json(folder / "results.json", Evaluation).other_tasks
        if score.metric == "acc"
    }


def test_a_task_on_disk_is_scored_as_the_stock_command_scores_it(
    configure: Stage, task: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path / "out", also=(str(task),), arms=("base", "raft", "base-4bit"))
    run(config)
    scores = scores_of(tmp_path / "out")
    assert [*scores] == ["base", "base-4bit", "raft"]
    assert all(score.n == len(ROWS) for score in scores.values())
    assert scores["base"].difference is scores["base-4bit"].difference is None
    assert scores["raft"].difference == pytest.approx(
        scores["raft"].value - scores["base"].value, abs=1e-5
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Other tasks</h2>" in page and page.count('scope="row">sums<') == 3
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--include_path", task.parent,
            "--tasks", "sums", "--model", "hf", "--device", "cpu", "--batch_size", "4",
            "--model_args",
            f"pretrained={config.base_model},peft={config.adapter},dtype=float32",
            "--output_path", tmp_path / "stock",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "stock").rglob("results_*.json")
    stock = json.loads(path.read_text())["results"]["sums"]["acc,none"]
    assert scores["raft"].value == pytest.approx(stock, abs=1e-6)


def test_a_limit(configure: Stage, task: Path, tmp_path: Path) -> None:
    run(configure(tmp_path / "out", also=(str(task),), also_limit=5, arms=("base",)))
    assert scores_of(tmp_path / "out")["base"].n == 5


@pytest.mark.parametrize("name", ["no_such_task_at_all", "nowhere/task.yaml"])
def test_a_task_that_is_none(configure: Stage, tmp_path: Path, name: str) -> None:
    config = configure(tmp_path / "out", also=(name,), arms=("base",))
    with pytest.raises(ConfigError, match=f"--also {name}: no task"):
        run(config)
