"""docs/architecture.md shows how an arm and a data set are added: applied to a copy, they work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.records import Evaluation, Sample, read_json, read_jsonl
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
QUESTIONS = [
    {
        "id": f"2hop__{number}",
        "question": f"Where was Ada{number} born?",
        "answer": f"Kelden {number}",
        "answer_aliases": [f"Old Kelden {number}"][: number % 2],
        "answerable": True,
        "paragraphs": [
            {"idx": 0, "title": "Bram", "paragraph_text": "Bram bakes.", "is_supporting": False},
            {"idx": 1, "title": "Ada", "paragraph_text": "Born in Kelden.", "is_supporting": True},
        ],
    }
    for number in range(4)
]


def diff_of(heading: str) -> str:
    """The worked diff of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    return str(diff)


def added(diff: str) -> list[str]:
    return [line for line in diff.splitlines() if line.startswith("+") and line[:3] != "+++"]


def test_an_arm_is_one_entry_and_a_data_set_two_files() -> None:
    arm, dataset = diff_of("Add an arm"), diff_of("Add a data set")
    assert len(added(arm)) == arm.count("+++ ") == 1
    assert dataset.count("+++ ") == dataset.count("--- /dev/null") == 2
    assert len(added(dataset)) <= 60


@pytest.mark.timeout(300)
def test_the_diffs_apply_and_eval_runs_with_them(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for name in ("components", "pipelines"):
        shutil.copytree(
            REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for heading in ("Add an arm", "Add a data set"):
        subprocess.run(
            ["git", "apply", "-"], input=diff_of(heading), text=True, cwd=copy, check=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        )  # fmt: skip
    questions = tmp_path / "musique.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "pipelines", "eval", "--task", "musique",
            "--questions", questions, "--base-model", tiny_model, "--adapter", tiny_adapter,
            "--output", tmp_path / "out",
            "--arms", "raft,base,base-question,base-question-4bit", "--max-new-tokens", "8",
            "--dtype", "float32",
        ],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_json(tmp_path / "out" / "results.json", Evaluation)
    assert result.task == "musique" and result.questions == 4
    assert [(arm.name, arm.label, arm.bits) for arm in result.arms] == [
        ("raft", "RAFT", 16),
        ("base", "Base", 16),
        ("base-question", "Base (question alone)", 16),
        ("base-question-4bit", "Base (question alone)", 4),
    ]
    assert {(item.arm, item.baseline) for item in result.comparisons} == {
        ("raft", "base"),
        ("base-question", "base"),
    }
    assert 0 < (result.memory_ratio or 0) < 1, "its twin in 16 bits is found by the entry"
    samples = list(read_jsonl(tmp_path / "out" / "samples.jsonl", Sample))
    assert [sample.gold for sample in samples[:2]] == [["Kelden 0"], ["Kelden 1", "Old Kelden 1"]]
    assert all(sample.oracle_indices == [1] for sample in samples)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Base (question alone), 4-bit" in page and "Kelden 1 / Old Kelden 1" in page
