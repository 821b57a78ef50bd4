"""A fact is written in one place: an edit of it there, in a copy of the tree, shows everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.pipelines.conftest import edit, tasks_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a checkout needs to compile its pipelines."""
    for room in ("components", "pipelines", "k8s", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "model")
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=ignored)
    return tmp_path


def raft(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(tree: Path, name: str) -> dict:
    specification, _ = yaml.safe_load_all((tree / "pipelines" / f"{name}.yaml").read_text())
    return specification


def help_of(tree: Path, stage: str) -> str:
    return " ".join(raft(tree, stage, "--help").split())


def test_a_new_setting(tree: Path) -> None:
    edit(
        tree / "components" / "train" / "config.py",
        "    rank: int = lora_option(",
        "    loraplus_ratio: float = lora_option(\n"
        '        1.0, ge=1, help="Learning rate of B over A."\n    )\n    rank: int = lora_option(',
    )
    raft(tree, "compile")
    assert "--loraplus-ratio VALUE Learning rate of B over A. [default" in help_of(tree, "train")
    for name in ("raft", "study"):
        specification = read(tree, name)
        declared = specification["components"]["comp-train"]["inputDefinitions"]["parameters"]
        assert declared["loraplus_ratio"]["defaultValue"] == 1.0
        assert declared["loraplus_ratio"]["description"].startswith("Learning rate of B over A")
        arguments = specification["deploymentSpec"]["executors"]["exec-train"]["container"]["args"]
        flag = arguments.index("--loraplus-ratio")
        assert arguments[flag + 1] == "{{$.inputs.parameters['loraplus_ratio']}}"
        passed = tasks_of(specification)["train"]["inputs"]["parameters"]["loraplus_ratio"]
        assert passed == {"runtimeValue": {"constant": 1.0}}
    assert "| `--loraplus-ratio` | 1.0 |" in (tree / "docs" / "settings.md").read_text()


def test_a_default(tree: Path) -> None:
    edit(
        tree / "components" / "train" / "config.py",
        "rank: int = lora_option(64,",
        "rank: int = lora_option(48,",
    )
    raft(tree, "compile")
    assert "Rank r of the LoRA matrices. [default: 48;" in help_of(tree, "train")
    form = read(tree, "raft")["root"]["inputDefinitions"]["parameters"]
    assert form["rank"]["defaultValue"] == 48
    assert "| `--rank` | 48 |" in (tree / "docs" / "settings.md").read_text()
