"""The teacher against a real vLLM server; skipped where vLLM is not installed.

`make test-vllm` runs it with vLLM's CPU build, in an environment of its own.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from components.core.breaker import PermanentError
from components.core.endpoint import connected
from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers.endpoint import EndpointTeacher

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

CHUNKS = [
    Chunk(id=str(n), document_id=str(n), title="t", start=0, end=9,
          text=f"Town{n} was founded in {1800 + n}." + " It lies by the sea, far from all." * 12)
    for n in range(6)
]  # fmt: skip


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
    server: str, tmp_path: Path
) -> None:
    teacher = EndpointTeacher(
        GenerateConfig(
            documents="d", output=str(tmp_path / "out"), teacher="openai", teacher_endpoint=server,
            teacher_model="tiny", teacher_max_tokens=32, teacher_concurrency=4,
        )
    )  # fmt: skip
    ledger = Ledger("generate", tmp_path)
    made = list(teacher.drafts(CHUNKS, ledger))
    assert [chunk for chunk, _ in made] == CHUNKS
    assert all(drafts for _, drafts in made)
    assert ledger.requests >= len(CHUNKS) and ledger.tokens_out > 0

    # The tiny model writes no question that can be asked: here the second call is made all the
    # same, as the first, which the server has in its cache.
    async def two_calls() -> list[tuple[int, int]]:
        async with connected(teacher.settings, Ledger("generate", tmp_path)) as endpoint:
            tokens = []
            for chunk in CHUNKS:
                asking = teacher.prompts.for_questions(chunk)
                answering = teacher.prompts.for_answer(chunk, "Who rules?")
                with suppress(PermanentError):  # the tiny model may write nothing
                    await endpoint.complete(asking)
                    answer = await endpoint.complete(answering)
                    tokens.append((answer.tokens_cached, answer.tokens_in))
            return tokens

    cached, total = map(sum, zip(*asyncio.run(two_calls()), strict=True))
    print(f"prefix cache of the server: {cached / total:.1%} of the prompt tokens of answer calls")
    assert cached > 0.3 * total, "only whole blocks are shared; the CPU build's hold 128 tokens"
