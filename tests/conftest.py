"""What many tests need: the command line in a process of its own, real data, the shipped model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch and the hub client are imported: a wrong path must not ask a hub for minutes, and
# idle threads must not spin on a machine with few cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Raft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def raft() -> Raft:
    """Run the `raft` command as a user does."""

    def run(*arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=REPOSITORY,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real questions and golden values, which lie beside the checkout, not in it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder}: the shared test data are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The tiny model that ships with the project."""
    return REPOSITORY / "pipelines" / "demo" / "model"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of ten small documents of two sentences each."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(10):
        name = f"Town{chr(ord('a') + number)}"
        (folder / f"{name}.txt").write_text(
            f"{name} was founded in {1800 + number}. The mayor of {name} is Ada Voss.\n",
            encoding="utf-8",
        )
    return folder
