"""The vLLM teacher on the real engine and the real server; skipped where vLLM is not installed.

`make test-vllm` runs them with vLLM's CPU build, in an environment of its own.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from components.core.errors import ConfigError, MissingDependencyError
from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers import openai
from components.generate.teachers.interview import Interview, Prompts
from components.generate.teachers.vllm import VllmTeacher

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

CHUNKS = [
    Chunk(id=str(n), document_id=str(n), title="t", start=0, end=9,
          text=f"Town{n} was founded in {1800 + n}." + " It lies by the sea, far from all." * 12)
    for n in range(6)
]  # fmt: skip


def teacher(model: Path | str, folder: Path) -> VllmTeacher:
    return VllmTeacher(
        GenerateConfig(
            documents="d", output=str(folder / "out"), teacher="vllm", teacher_model=str(model),
            teacher_max_tokens=32,
        )
    )  # fmt: skip


def test_a_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher-model is missing"):
        teacher("", tmp_path)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="needs vLLM") as error:
        teacher("model", tmp_path)
    assert error.value.hint == "pip install vllm"


@needs_vllm
@pytest.mark.timeout(300)
def test_the_engine_answers_and_its_prefix_cache_serves_the_second_prompt(
    demo_model: Path, tmp_path: Path
) -> None:
    asking = teacher(demo_model, tmp_path)
    ledger = Ledger("generate", tmp_path)
    made = list(asking.drafts(CHUNKS, ledger))
    assert [chunk for chunk, _ in made] == CHUNKS
    assert all(drafts for _, drafts in made)
    assert ledger.tokens_in > 0 and ledger.tokens_out > 0 and ledger.requests == 0
    # What was asked is kept: a second teacher starts no engine.
    again = teacher(demo_model, tmp_path)
    assert list(again.drafts(CHUNKS, Ledger("generate", tmp_path))) == made
    assert again._engine is None
    # Whatever the tiny model answers, the second prompt about a chunk opens as the first did.
    responses = _Nothing()
    prompts = Prompts.load(asking.config)
    for ask in (prompts.for_questions, lambda chunk: prompts.for_answer(chunk, "Who rules?")):
        ledger = Ledger("generate", tmp_path)
        asking._ask([ask(chunk) for chunk in CHUNKS], responses, ledger)
    share = ledger.tokens_cached / ledger.tokens_cacheable
    print(f"prefix cache: {share:.1%} of the prompt tokens of the answer calls")
    assert share > 0.3, "only whole blocks are shared; the CPU build's hold 128 tokens"


class _Nothing:
    """A store that keeps nothing."""

    def get(self, request: object) -> None:
        return None

    def put(self, request: object, reply: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of vLLM's own server of the tiny model."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(demo_model),
        "--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


@needs_vllm
@pytest.mark.timeout(600)
def test_the_server_answers_and_its_prefix_cache_serves_the_second_prompt(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerateConfig(
        documents="d", output=str(tmp_path / "out"), teacher="openai", teacher_endpoint=server,
        teacher_model="tiny", teacher_max_tokens=32, teacher_concurrency=4,
    )  # fmt: skip
    ledger = Ledger("generate", tmp_path)
    made = list(openai.OpenAITeacher(config).drafts(CHUNKS, ledger))
    assert [chunk for chunk, _ in made] == CHUNKS
    assert all(drafts for _, drafts in made)
    assert ledger.requests >= len(CHUNKS) and ledger.tokens_out > 0
    # The tiny model writes no question that can be asked: here the second call is made all the
    # same, as the first, which the server has in its cache.
    monkeypatch.setattr(openai, "interview", _two_calls)
    config = config.model_copy(update={"responses": str(tmp_path / "other")})
    ledger = Ledger("generate", tmp_path)
    list(openai.OpenAITeacher(config).drafts(CHUNKS, ledger))
    share = ledger.tokens_cached / ledger.tokens_cacheable
    print(f"prefix cache of the server: {share:.1%} of the prompt tokens of the answer calls")
    assert share > 0.3, "only whole blocks are shared; the CPU build's hold 128 tokens"


def _two_calls(chunk: Chunk, prompts: Prompts) -> Interview:
    yield [prompts.for_questions(chunk)]
    yield [prompts.for_answer(chunk, "Who rules?")]
    return []
