"""`raft card`: what is published of an adapter, and the real client of the hub that pushes it."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from components.core.records import Evaluation
from components.core.storage import finish_artifact, verify, write_json
from components.use.card import PUBLISHED
from tests.conftest import REPOSITORY, Raft
from tests.hub import COMMIT, Hub, hub
from tests.report.test_summary import evaluated

REPO = "my-team/raft-adapter"
TOKEN = "hf_secret_of_mine"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    write_json(folder / Evaluation.FILE, evaluated(0.8))
    finish_artifact(folder)
    return folder


def push(
    running: Hub, adapter: Path, output: Path, evaluation: Path
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the client reads its variables when imported."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "card", "--adapter", str(adapter), "--output",
         str(output), "--evaluation", str(evaluation), "--push-to-hub", REPO],
        capture_output=True, text=True, timeout=300, cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "HOME": str(output.parent), "HF_ENDPOINT": running.url,
             "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_the_card_has_the_figures_and_the_folder_no_path(
    raft: Raft, world_adapter: Path, evaluation: Path, tmp_path: Path
) -> None:
    output = tmp_path / "published"
    command = ("card", "--adapter", world_adapter, "--output", output)
    done = raft(*command, "--evaluation", evaluation)
    assert done.returncode == 0, done.stderr
    assert f"→ {output}/README.md" in done.stderr
    verify(output, "--output")
    names = {path.name for path in output.iterdir()}
    assert names - {"README.md", "manifest.json"} <= set(PUBLISHED)
    assert {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"} < names
    text = (output / "README.md").read_text("utf-8")
    assert "## Evaluation" in text and "| raft | 0.800 |" in text
    assert ModelCard(text).data.library_name == "peft"


def test_adapter_and_card_are_pushed(
    world_adapter: Path, evaluation: Path, demo_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "published"
    with hub(demo_model) as running:
        running.token = TOKEN
        done = push(running, world_adapter, output, evaluation)
    assert done.returncode == 0, done.stderr
    assert f"{running.url}/{REPO}/commit/{COMMIT}" in done.stderr
    pushed = running.pushed[REPO]
    assert pushed == {
        path.name: path.read_bytes() for path in output.iterdir() if path.name != "manifest.json"
    }
    assert b"## Evaluation" in pushed["README.md"]
    assert TOKEN not in done.stderr + done.stdout


def test_a_hub_that_refuses(
    world_adapter: Path, evaluation: Path, demo_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "published"
    with hub(demo_model) as running:
        running.token = "another"
        done = push(running, world_adapter, output, evaluation)
    assert done.returncode == 2 and not running.pushed
    assert f"--push-to-hub {REPO}: the hub refuses" in done.stderr and "HF_TOKEN" in done.stderr
    assert f"hf upload {REPO} {output}" in done.stderr and TOKEN not in done.stderr
    verify(output, "--output")


def test_an_adapter_without_a_card(raft_here: Raft, world_adapter: Path, tmp_path: Path) -> None:
    import shutil

    old = tmp_path / "old"
    ignored = shutil.ignore_patterns("README.md", "manifest.json", "ledger.json")
    shutil.copytree(world_adapter, old, ignore=ignored)
    done = raft_here("card", "--adapter", old, "--output", tmp_path / "out")
    assert done.returncode == 2 and "README.md: no such file" in done.stderr
    bad = raft_here("card", "--adapter", old, "--output", tmp_path / "out", "--push-to-hub", "name")
    assert bad.returncode == 2 and "--push-to-hub 'name'" in bad.stderr
