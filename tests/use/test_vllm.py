"""The real server that `raft serve --run` starts: it answers as an evaluation does.

Skipped where vLLM is not installed; `make test-vllm` runs it with vLLM's CPU build.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from components.core.records import RaftRow, read_jsonl
from tests.conftest import Raft
from tests.use.vllm_server import compare, serving

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

PROMPTS, LIMIT = 50, 24


@pytest.fixture(scope="module")
def server(
    world_adapter: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with serving(world_adapter, demo_model, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.mark.timeout(1800)
def test_the_server_says_token_by_token_what_an_evaluation_says(
    server: str, world_adapter: Path, world_dataset: Path, demo_model: Path
) -> None:
    rows = [*read_jsonl(world_dataset / "train.jsonl", RaftRow)]
    asked = [(row.context.sentences[0], row.question) for row in rows]
    asked += [(documents[::-1], question) for documents, question in asked]
    differences = compare(server, world_adapter, demo_model, asked[:PROMPTS], LIMIT)
    print(f"answers of the server that differ, of {PROMPTS}: {differences}")
    assert differences["vllm"] == 0
    assert differences["transformers"] <= PROMPTS // 10


@pytest.mark.timeout(1800)
def test_ask_streams_from_the_server(server: str, texts: Path, raft: Raft) -> None:
    question = "When was Towna founded?"
    command = ("ask", "--documents", texts, "--max-new-tokens", LIMIT, "--endpoint", server)
    done = raft(*command, question)
    assert done.returncode == 0, done.stderr
    assert ", Towna.txt#0\n" in done.stderr and done.stdout.count("\n") >= 2
    missing = raft(*command, "--model", "nobody", question)
    assert missing.returncode == 2 and "serves no model 'nobody'" in missing.stderr
    assert "raft" in missing.stderr
