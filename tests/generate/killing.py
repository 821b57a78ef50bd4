"""Kill a run with SIGKILL at random moments, finish it, and count what was paid twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.generate.teacher_server import TeacherServer

FILES = ("train.jsonl", "validation.jsonl", "report.json", "README.md")


def command(documents: Path, output: Path, server: TeacherServer, width: int) -> list[str]:
    return [
        sys.executable, "-m", "pipelines", "generate", "--documents", str(documents),
        "--output", str(output), "--teacher", "openai", "--teacher-endpoint", server.endpoint,
        "--teacher-model", "teacher", "--teacher-concurrency", str(width),
        "--max-chunks", "0",
    ]  # fmt: skip


def kill_and_finish(
    documents: Path, output: Path, server: TeacherServer, concurrency: int, kills: int, seed: int
) -> tuple[list[bytes], int]:
    """Kill a run `kills` times, each after a random number of further calls; then let it finish.

    Returns:
        The bytes of the artifact's files, and how many calls were made more than once.
    """
    rng = random.Random(seed)
    line = command(documents, output, server, concurrency)
    first = len(server.seen)
    for _ in range(kills):
        process = subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        wanted = len(server.seen) + rng.randint(1, 2 * concurrency)
        while process.poll() is None and len(server.seen) < wanted:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = Counter(body["messages"][0]["content"] for body in server.seen[first:])
    return [(output / name).read_bytes() for name in FILES], calls.total() - len(calls)
