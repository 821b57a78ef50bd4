"""How close asking a teacher comes to the bound that latency and concurrency set.

A local server takes 1 s for every call and serves 64 at once. A row takes two calls, so the bound
for R rows is 2 R / 64 seconds. The time is that of the whole stage, reading and writing included.

Run it: python tests/benchmarks/bench_teacher.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SECONDS, AT_ONCE = 1.0, 64


def measure(rows: int) -> float:
    """Print and return the share of the bound that a run of so many rows reaches."""
    from components.generate import generate
    from components.generate.config import GenerateConfig

    server = subprocess.Popen(
        [sys.executable, "-m", "tests.generate.teacher_server", str(SECONDS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    endpoint = server.stdout.readline().strip()
    with tempfile.TemporaryDirectory() as scratch:
        documents = Path(scratch) / "documents"
        documents.mkdir()
        for number in range(rows):
            text = f"Town{number} was founded in {1000 + number}. It lies by the sea."
            (documents / f"{number:04}.txt").write_text(text, encoding="utf-8")
        started = time.monotonic()
        report = generate.run(
            GenerateConfig(
                documents=str(documents), output=f"{scratch}/out", max_chunks=0,
                teacher="openai", teacher_endpoint=endpoint, teacher_model="teacher",
                teacher_concurrency=AT_ONCE,
            )
        )  # fmt: skip
        seconds = time.monotonic() - started
        assert sum(report.rows.values()) == rows, report.dropped
        server.stdin.close()
        calls, at_once = map(int, server.stdout.readline().split())
        assert calls == 2 * rows and at_once <= AT_ONCE
    bound = 2 * rows / AT_ONCE * SECONDS
    print(f"{rows} rows: {seconds:.2f} s; bound {bound:.2f} s; {bound / seconds:.1%} of it")
    return seconds


if __name__ == "__main__":
    measure(100)
    measure(1000)
