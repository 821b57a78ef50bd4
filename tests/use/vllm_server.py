"""What the command of k8s/base/serve starts, and what it answers, token by token."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipelines.manifests import BASE
from tests.conftest import REPOSITORY

Asked = tuple[list[str], str]
"""Documents, and a question."""
Ids = tuple[int, ...]


def deployment() -> dict[str, Any]:
    """The pod of the Deployment."""
    server: dict[str, Any] = yaml.safe_load((BASE / "serve" / "deployment.yaml").read_text())
    pod: dict[str, Any] = server["spec"]["template"]["spec"]
    return pod


@contextmanager
def serving(adapter: Path, base_model: Path, scratch: Path) -> Iterator[str]:
    """The URL of the Deployment's command, started here on vLLM's CPU build."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (container,) = deployment()["containers"]
    here = {"$(RAFT_RUN)/adapter": adapter, "$(RAFT_BASE_MODEL)": base_model}
    given = container["args"]
    for variable, path in here.items():
        given = [argument.replace(variable, str(path)) for argument in given]
    # The CPU build is installed under another name than the one that `vllm serve` looks for.
    info = scratch / "vllm-0.32.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    log = scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "serve", *given, f"--port={port}",
             "--vllm-flags=--enforce-eager", "--dtype=float32"],
            stdout=output, stderr=output, cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(scratch), str(REPOSITORY)))},
        )  # fmt: skip
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                time.sleep(1)
        else:
            raise AssertionError(f"not ready: {log.read_text(errors='replace')[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def complete(url: str, documents: Sequence[str], question: str, limit: int) -> tuple[Ids, Ids]:
    """The tokens of the prompt that the server made of a question, and of its answer."""
    body = {
        "model": "raft", "messages": [{"role": "user", "content": question}],
        "documents": [{"title": "", "text": text} for text in documents],
        "temperature": 0, "max_tokens": limit, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=900) as response:
        answer = json.load(response)
    return tuple(answer["prompt_token_ids"]), tuple(answer["choices"][0]["token_ids"])


class Differences(dict[str, int]):
    """How many answers of the server differ from those of each engine, by its name."""


def compare(
    url: str, adapter: Path, base_model: Path, asked: Sequence[Asked], limit: int
) -> Differences:
    """Ask the server and the engines of eval the same questions; every prompt must be the same."""
    from components.core.chat import render_prompt
    from components.core.models import load_tokenizer
    from components.core.raft_form import instruction
    from components.eval import engines
    from components.eval.config import EvalConfig

    config = EvalConfig.parse(
        {"questions": "q", "base_model": str(base_model), "adapter": str(adapter), "output": "o",
         "arms": "raft", "max_new_tokens": limit, "dtype": "float32"}
    )  # fmt: skip
    (arm,) = config.variants()
    tokenizer = load_tokenizer(str(base_model), str(adapter))
    requests = [
        engines.Request(arm, tuple(render_prompt(tokenizer, instruction(*one)))) for one in asked
    ]
    with ThreadPoolExecutor(len(asked)) as pool:  # LoRA is slow on the CPU, but not in a batch
        answers = [*pool.map(lambda one: complete(url, *one, limit), asked)]
    assert [prompt for prompt, _ in answers] == [request.ids for request in requests], (
        "the template has RAFT's form"
    )
    served = dict(answers)
    assert len(served) == len(asked)
    differences = Differences()
    for name in ("vllm", "transformers"):
        differences[name] = sum(
            completion.ids != served[request.ids]
            for completions, _ in engines.generate(name, requests, config)
            for request, completion in completions
        )
    return differences
