"""The teacher against a real vLLM server; skipped where vLLM is not installed.

`make test-vllm` runs it with vLLM's CPU build, in an environment of its own.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from components.core.breaker import PermanentError
from components.core.endpoint import connected
from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers.endpoint_teacher import EndpointTeacher

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

CHUNKS = [
    Chunk(id=str(n), document_id=str(n), title="t", start=0, end=9,
          text=f"Town{n} was founded in {1800 + n}." + " It lies by the sea, far from all." * 12)
    for n in range(6)
]  # fmt: skip


def started_by(place: Path, model: Path) -> EndpointTeacher:
    return EndpointTeacher(
        GenerateConfig(
            documents="d", output=str(place / "out"), teacher="vllm", teacher_model=str(model),
            teacher_max_tokens=32, teacher_concurrency=4, allow_cpu=True,
        )
    )  # fmt: skip


@needs_vllm
@pytest.mark.timeout(1800)
def test_the_server_answers_and_its_prefix_cache_serves_the_second_prompt(
    demo_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = started_by(tmp_path, demo_model)
    ledger = Ledger("generate", tmp_path)
    made = list(teacher.drafts(CHUNKS, ledger))
    assert [chunk for chunk, _ in made] == CHUNKS
    assert all(drafts for _, drafts in made)
    assert ledger.requests >= len(CHUNKS) and ledger.tokens_out > 0
    assert ledger.entry().parts["server start"] > 0
    assert "the prefix cache served" in capfd.readouterr().err
    assert not servers(demo_model)
    teacher = started_by(tmp_path, demo_model)
    assert teacher.server is not None

    # The tiny model writes no question that can be asked: here the second call is made all the
    # same, as the first, which the server has in its cache.
    async def two_calls() -> list[tuple[int, int]]:
        async with connected(teacher.settings, Ledger("generate", tmp_path)) as endpoint:
            assert teacher.server is not None
            await teacher.server.ready(endpoint.session)
            tokens = []
            for chunk in CHUNKS:
                asking = teacher.prompts.for_questions(chunk, 1, as_json=False)
                answering = teacher.prompts.for_answer(chunk, "Who rules?")
                with suppress(PermanentError):  # the tiny model may write nothing
                    await endpoint.complete(asking)
                    answer = await endpoint.complete(answering)
                    tokens.append((answer.tokens_cached, answer.tokens_in))
            return tokens

    with teacher.server:
        cached, total = map(sum, zip(*asyncio.run(two_calls()), strict=True))
    print(f"prefix cache of the server: {cached / total:.1%} of the prompt tokens of answer calls")
    assert cached > 0.3 * total, "only whole blocks are shared; the CPU build's hold 128 tokens"


def servers(model: Path) -> list[str]:
    """The processes of vLLM with this model: vLLM gives its own other names."""
    commands = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"RAFT_TEST_MODEL=" + bytes(model) in (path / "environ").read_bytes():
                commands.append((path / "cmdline").read_text().replace("\0", " "))
    return commands


@needs_vllm
@pytest.mark.timeout(1800)
def test_no_server_is_left_when_the_stage_is_killed(demo_model: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for chunk in CHUNKS:
        (documents / f"{chunk.id}.txt").write_text(chunk.text)
    command = [
        sys.executable, "-m", "pipelines", "generate", "--documents", str(documents),
        "--teacher", "vllm", "--teacher-model", str(demo_model), "--allow-cpu", "true",
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = os.environ | {"RAFT_TEST_MODEL": str(demo_model)}
    log = tmp_path / "log"
    with log.open("wb") as output:
        stage = subprocess.Popen(command, stderr=output, env=environment)
    end = time.monotonic() + 1200
    while "is ready after" not in log.read_text():
        assert stage.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    assert len(servers(demo_model)) > 2
    stage.kill()
    stage.wait()
    end = time.monotonic() + 30
    while servers(demo_model):
        assert time.monotonic() < end, servers(demo_model)
        time.sleep(0.2)
