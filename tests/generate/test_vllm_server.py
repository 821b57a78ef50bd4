"""The server that `--teacher vllm` starts: a stand-in of vLLM's, in a process of its own.

What it must be like is held to the real one in test_vllm.py. Not tried: GPUs.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.core.accelerator import Device
from components.core.errors import ConfigError
from components.core.ledger import LedgerEntry
from components.core.records import read_json
from components.generate.config import GenerateConfig
from components.generate.teachers.vllm_server import VllmServer, _check_fits
from tests.conftest import REPOSITORY

STAND_IN = """
import os, subprocess, sys, time
flags = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
kind = os.environ["STAND_IN"]
child = subprocess.Popen(["sleep", "600"])  # as vLLM's engine is
print("loading", flags["--model"], "\\x1b[31mred\\x1b[0m", child.pid, flush=True)
if kind == "dies":
    sys.exit("ValueError: no such architecture")
if kind == "never":
    time.sleep(600)
from tests.generate import teacher_server as real
replies = 0
def reply(body):
    global replies
    replies += 1
    if kind == "ends" and replies > 4:
        print("RuntimeError: the engine is dead", flush=True)
        os._exit(3)
    return real.good(body)
server = real.TeacherServer(reply, seconds=2.0 * (kind == "slow"), port=int(flags["--port"]))
server.serve()
"""


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(12):
        text = f"Town{number} was founded in {1800 + number}. It lies by the sea, far from all."
        (folder / f"{number}.txt").write_text(text)
    return folder


def start(tmp_path: Path, documents: Path, kind: str, *flags: str) -> "subprocess.Popen[str]":
    """The stage, with a package `vllm` that is the stand-in."""
    package = tmp_path / "path" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN)
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path / 'path'}:{REPOSITORY}",
        "STAND_IN": kind,
        "OPENAI_API_KEY": "sk-not-for-the-server",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    return subprocess.Popen(
        [
            sys.executable, "-m", "pipelines", "generate", "--documents", str(documents),
            "--teacher", "vllm", "--teacher-model", "models/tiny", "--teacher-concurrency", "2",
            "--output", str(tmp_path / "out"), *flags,
        ],
        stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment,
    )  # fmt: skip


def servers(tmp_path: Path) -> list[int]:
    """The processes that the stage has started and left: the stand-in, its keeper, its child."""
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if f"{tmp_path / 'path'}:".encode() in environment:
            children.append(int(path.name))
    return children


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rows_are_made_and_the_server_is_stopped(tmp_path: Path, documents: Path) -> None:
    stage = start(tmp_path, documents, "good", "--allow-cpu", "true")
    _, errors = stage.communicate(timeout=120)
    assert stage.returncode == 0, errors
    rows = (tmp_path / "out" / "train.jsonl").read_text()
    assert rows.count('"teacher":"vllm:models/tiny"') > 5
    entry = read_json(tmp_path / "out" / "ledger.json", LedgerEntry)
    assert entry.requests == 24 and entry.cost is None and entry.parts["server start"] > 0
    assert "starting vLLM with models/tiny on the CPU" in errors and "is ready after" in errors
    assert not servers(tmp_path)
    # All is stored: a second run starts no server.
    stage = start(tmp_path, documents, "dies", "--overwrite", "true", "--allow-cpu", "true")
    _, errors = stage.communicate(timeout=120)
    assert stage.returncode == 0 and "starting vLLM" not in errors


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("dies", (), ("ended while it started, with exit code 1", "| ValueError: no such arch")),
        ("never", ("--teacher-start-timeout", "1"), ("does not answer within", "| loading")),
        ("ends", (), ("the server has ended", "| RuntimeError: the engine is dead")),
    ],
)
def test_a_server_that_fails_is_explained(
    kind: str, flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, documents: Path
) -> None:
    stage = start(tmp_path, documents, kind, "--allow-cpu", "true", *flags)
    _, errors = stage.communicate(timeout=120)
    assert stage.returncode == 2
    assert all(word in errors for word in words), errors
    assert "\x1b[31m" not in errors and "Traceback" not in errors
    assert not servers(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_the_stage(
    number: signal.Signals, tmp_path: Path, documents: Path
) -> None:
    stage = start(tmp_path, documents, "slow", "--allow-cpu", "true")
    until(lambda: len(servers(tmp_path)) == 4)  # the stage too
    time.sleep(1)
    stage.send_signal(number)
    stage.communicate(timeout=60)
    assert stage.returncode != 0
    until(lambda: not servers(tmp_path), 20)


def test_without_a_gpu_nothing_starts(tmp_path: Path, documents: Path) -> None:
    stage = start(tmp_path, documents, "good", "--gpus", "4")
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 2
    assert "--teacher vllm asks for 4 GPUs, and this machine has 0" in errors
    assert "--allow-cpu true" in errors and not (tmp_path / "out").exists()


def test_vllm_must_be_installed(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    config = GenerateConfig(
        documents="d", output=str(tmp_path), teacher="vllm", teacher_model="a/b", allow_cpu=True
    )
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="vLLM is not installed"):
            VllmServer(config)


def test_a_model_that_does_not_fit_names_what_would() -> None:
    a100 = Device("NVIDIA A100-SXM4-80GB", int(79.2 * 2**30))
    _check_fits("a/70b", 141 * 10**9, [a100] * 4)
    _check_fits("a/70b-4bit", 40 * 10**9, [a100])
    with pytest.raises(ConfigError) as caught:
        _check_fits("a/70b", 141 * 10**9, [a100])
    assert "a/70b: 141 GB of weights do not fit 1 × NVIDIA A100-SXM4-80GB" in str(caught.value)
    assert "2 × A100 with 80 GB" in caught.value.hint and "8 × L4" in caught.value.hint
    assert "1 × A100" not in caught.value.hint
    with pytest.raises(ConfigError, match="405b"):
        _check_fits("a/405b", 2 * 10**12, [a100] * 8)
