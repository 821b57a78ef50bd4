"""A long run against an endpoint with faults: is memory flat, is the rate, are the counts exact?

`raft generate` asks a local endpoint about 100,000 chunks, two calls a row, 5 % of which fail: it
answers 429 and 500, cuts connections in mid-answer, sends half of an answer, an empty one or a
page; refuses some chunks for good and answers some without a quote. The endpoint is a process of
its own and counts what it did. Memory is the resident set of the process that generates, each
figure the mean over a quarter of the calls; the rate is that of calls, in wall time and, because
others may use the machine, in CPU time of that process.

Run it: python tests/benchmarks/bench_soak.py [ROWS]
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.generate.teacher_server import (  # noqa: E402 (the path is set above)
    Answer,
    asks_for_answer,
    chunk_of,
    encoded,
    good,
)

ROWS, CONCURRENCY = 100_000, 128
PASSING = 0.04  # of all calls; as many faults again are the chunks that fail for good
EVERY = 100  # of the chunks: one is refused, one answered without a quote
SECONDS_BETWEEN_SAMPLES = 0.25

KINDS = {
    "429": ("HTTP 429", Answer("slow down", status=429, headers={"Retry-After": "0"})),
    "500": ("HTTP 500", Answer("oops", status=500)),
    "cut": ("connection failed", Answer("x" * 1000, cut=100)),
    "half": ("unreadable answer", Answer(raw=b'{"choices": [{"message": {"content": "abc')),
    "page": ("unreadable answer", Answer(raw=b"<html><body>Bad gateway</body></html>")),
    "empty": ("empty answer", Answer("")),
}
"""Faults that pass: what the ledger calls each, and what is sent."""

REFUSED, UNQUOTED = "answer: refused by the content filter", "no quote"


@dataclass
class Soak:
    """What a run left behind.

    Attributes:
        rows, dropped: of report.json.
        requests, failed: calls in the ledger, answered and failed by kind.
        served: what the endpoint did, by kind; "good" are the calls it answered.
        memory: bytes, in each quarter of the calls.
        rate, cpu_rate: calls a second in each quarter, of wall time and of CPU time.
        seconds: the whole run.
    """

    rows: int
    dropped: dict[str, int]
    requests: int
    failed: dict[str, int]
    served: dict[str, int]
    memory: list[float]
    rate: list[float]
    cpu_rate: list[float]
    seconds: float


def faulty(rng: random.Random, served: Counter[str], body: dict[str, Any]) -> Answer:
    """Answer one call, or fail it; and count."""
    if rng.random() < PASSING:
        kind = rng.choice(sorted(KINDS))
        served[KINDS[kind][0]] += 1
        return KINDS[kind][1]
    served["good"] += 1
    answer = good(body)
    if "<DOCUMENT>" not in body["messages"][0]["content"]:  # is the endpoint up?
        return answer
    number = int(chunk_of(body).split()[0].removeprefix("Town"))
    if asks_for_answer(body) and number % EVERY == 1:
        answer.finish = "content_filter"
    if asks_for_answer(body) and number % EVERY == 2:
        answer.text = answer.text.replace("##begin_quote##", "").replace("##end_quote##", "")
    return answer


async def serve() -> None:
    """The endpoint, until standard input ends; its first line is its URL."""
    from aiohttp import web

    rng, served = random.Random(0), Counter[str]()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        answer = faulty(rng, served, body)
        data = encoded(body, answer)
        if answer.cut is None:
            return web.Response(
                body=data, status=answer.status, headers=answer.headers,
                content_type="application/json",
            )  # fmt: skip
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: answer.cut])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def count(request: web.Request) -> web.Response:
        return web.json_response(served)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/served", count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """A look at the run: seconds, CPU seconds, calls until now, bytes held."""

    wall: float
    cpu: float
    calls: int
    memory: int


def by_quarter(samples: list[Sample]) -> list[list[Sample]]:
    """The samples of each quarter of the calls; quarters share the sample between them."""
    last = samples[-1].calls
    bounds = [0, *(bisect(samples, last * n / 4, key=lambda s: s.calls) for n in (1, 2, 3))]
    ends = [*bounds[1:], len(samples)]
    return [samples[max(0, start - 1) : end] for start, end in zip(bounds, ends, strict=True)]


def soak(rows: int, folder: Path) -> Soak:
    """Run `raft generate` over so many chunks, and look at it from outside."""
    documents = folder / "documents.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"Town{number} was founded in {1000 + number}. It lies by the sea."
            file.write(json.dumps({"text": text}) + "\n")
    endpoint = subprocess.Popen(
        [sys.executable, __file__, "serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert endpoint.stdin is not None and endpoint.stdout is not None
    url = endpoint.stdout.readline().strip()

    def served() -> Counter[str]:
        with urllib.request.urlopen(f"{url}/served") as reply:
            return Counter(json.load(reply))

    started = time.monotonic()
    with (folder / "log").open("w", encoding="utf-8") as log:
        run = subprocess.Popen(
            [
                sys.executable, "-m", "pipelines", "generate", "--documents", str(documents),
                "--text-field", "text", "--output", str(folder / "dataset"), "--max-chunks", "0",
                "--teacher", "openai", "--teacher-endpoint", f"{url}/v1",
                "--teacher-model", "teacher", "--teacher-concurrency", str(CONCURRENCY),
            ],
            stderr=log, cwd=ROOT,
        )  # fmt: skip
        samples: list[Sample] = []
        while run.poll() is None:
            if (calls := served().total()) and (memory := resident(run.pid)):
                samples.append(Sample(time.monotonic(), cpu_seconds(run.pid), calls, memory))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    seconds = time.monotonic() - started
    counted = served()
    endpoint.stdin.close()
    endpoint.wait()
    if run.returncode:
        raise SystemExit((folder / "log").read_text(encoding="utf-8"))
    report = json.loads((folder / "dataset" / "report.json").read_text(encoding="utf-8"))
    ledger = json.loads((folder / "dataset" / "ledger.json").read_text(encoding="utf-8"))
    quarters = by_quarter(samples)
    return Soak(
        rows=sum(report["rows"].values()),
        dropped=report["dropped"],
        requests=ledger["requests"],
        failed=ledger["requests_failed"],
        served=dict(counted),
        memory=[statistics.fmean(sample.memory for sample in quarter) for quarter in quarters],
        rate=[_calls(quarter) / (quarter[-1].wall - quarter[0].wall) for quarter in quarters],
        cpu_rate=[_calls(quarter) / (quarter[-1].cpu - quarter[0].cpu) for quarter in quarters],
        seconds=seconds,
    )


def _calls(quarter: list[Sample]) -> int:
    return quarter[-1].calls - quarter[0].calls


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
        return
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(asked, Path(scratch))
    dropped = sum(found.dropped.values())
    print(f"{asked:,} chunks in {found.seconds:.0f} s: {found.rows:,} rows, {dropped:,} dropped")
    print(f"  dropped: {found.dropped}")
    print(f"  calls: {found.requests:,} answered and {found.failed} in the ledger;")
    print(f"  the endpoint: {found.served}")
    print("  memory by quarter:", *(f"{value / 1e6:.0f} MB" for value in found.memory))
    print("  rate by quarter:", *(f"{value:.0f} calls/s" for value in found.rate))
    print("  of CPU time:", *(f"{value:.0f} calls/s" for value in found.cpu_rate))
    print(
        f"last quarter over the second: memory {found.memory[3] / found.memory[1]:.3f}, "
        f"rate {found.rate[3] / found.rate[1]:.3f}, "
        f"of CPU time {found.cpu_rate[3] / found.cpu_rate[1]:.3f}"
    )
    counted = Counter(found.served) - Counter(found.failed)
    if found.rows + dropped != asked or counted != {"good": found.requests}:
        sys.exit("the counts differ")


if __name__ == "__main__":
    main()
