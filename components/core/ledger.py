"""The ledger of a stage (time, tokens, requests, hardware, cost), and that of a run: their sum.

Costs are in USD and come from the dated prices of `gpus.yaml`. What has no price there has an
unknown cost (null), never none.
"""

import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Self

from pydantic import AwareDatetime, Field

from components.core.accelerator import Gpus
from components.core.gpus import of_device, table
from components.core.records import Record
from components.core.storage import LEDGER, traffic, write_json


class LedgerEntry(Record):
    """What one stage took: `ledger.json` in its artifact. Tokens are the model's or teacher's.

    started: in UTC. failed: why an attempt ended early; empty for one that succeeded. repeatable:
    whether another attempt may succeed, which it cannot where inputs or settings are wrong. parts:
    seconds of parts of the stage, with those of earlier attempts that it resumed. requests_failed:
    calls to a teacher that failed, by kind; they are not among `requests`, and most were repeated.
    bytes_fetched: of files that came from buckets and the hub.
    """

    stage: str
    seconds: float
    tokens_in: int
    tokens_out: int
    requests: int
    gpu: str
    gpu_count: int
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int
    cost: float | None
    prices_date: str
    started: AwareDatetime | None = None
    failed: str = ""
    repeatable: bool = True
    bytes_fetched: int = 0
    parts: dict[str, float] = Field(default_factory=dict)
    requests_failed: dict[str, int] = Field(default_factory=dict)


class RunLedger(Record):
    """A whole run: its stages and their sum. `cost` is null when any stage's is."""

    stages: list[LedgerEntry]
    seconds: float
    cost: float | None
    bytes_fetched: int = 0


class Ledger:
    """Measures a stage from now on, and writes `ledger.json` when it has succeeded.

    Use as `with Ledger("train", folder) as ledger: ...; ledger.count(tokens_in=12)`.

    failed: that of the stage that has failed last in this process, for the ledger of the attempt.
    """

    failed: ClassVar["Ledger | None"] = None

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.started = time.monotonic()
        self.tokens_in = self.tokens_out = self.requests = 0
        self.requests_failed: Counter[str] = Counter()
        self.parts: dict[str, float] = {}
        self._server_gpus: Gpus | None = None

    def own_server(self, gpus: Gpus) -> None:
        """The stage's requests go to a server of its own on these GPUs: their time is the cost."""
        self._server_gpus = gpus

    def count(self, *, tokens_in: int = 0, tokens_out: int = 0, requests: int = 0) -> None:
        """Add to the running totals. `requests` are calls to a teacher that someone charges for."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.requests += requests

    def so_far(self) -> dict[str, object]:
        """Requests, their price and tokens until now, for a progress bar; without zeros."""
        figures: dict[str, object] = {}
        if self.requests:
            figures = {"requests": self.requests}
        if self._paid_requests:
            figures |= {"cost": f"{cost_of(self._paid_requests):.2f} USD"}
        if tokens := self.tokens_in + self.tokens_out:
            figures["tokens"] = tokens
        return figures

    @property
    def _paid_requests(self) -> int:
        return self.requests if self._server_gpus is None else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            write_json(self.folder / LEDGER, self.entry())
        else:
            Ledger.failed = self

    def entry(self) -> LedgerEntry:
        """The entry so far."""
        seconds = time.monotonic() - self.started
        gpu, gpu_count, gpu_memory = _gpu()
        if self._server_gpus:
            gpu, gpu_count = self._server_gpus[0].name, len(self._server_gpus)
        kind = of_device(gpu)
        price = kind.price if kind and kind.price else table().teacher_request
        return LedgerEntry(
            stage=self.stage,
            started=datetime.now(UTC) - timedelta(seconds=seconds),
            seconds=round(seconds, 3),
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            requests=self.requests,
            gpu=gpu,
            gpu_count=gpu_count,
            peak_memory_bytes=_peak_memory(),
            peak_gpu_memory_bytes=gpu_memory,
            cost=cost_of(self._paid_requests, gpu, seconds * gpu_count),
            prices_date=price.date,
            bytes_fetched=traffic["fetched"],
            parts=self.parts,
            requests_failed=dict(self.requests_failed.most_common()),
        )


def cost_of(requests: int, gpu: str = "", gpu_seconds: float = 0.0) -> float | None:
    """The price of requests to a teacher and of GPU time in USD; None where it is unknown.

    A CPU machine is not priced; a stage that only calls a paid endpoint is.
    """
    paid = requests * table().teacher_request.usd
    if not gpu:
        return round(paid, 6) if requests else None
    kind = of_device(gpu)
    if kind is None or kind.price is None:
        return None
    return round(paid + gpu_seconds / 3600 * kind.price.usd, 6)


def total(stages: list[LedgerEntry]) -> RunLedger:
    """The ledger of a run, from those of its stages."""
    costs = [entry.cost for entry in stages if entry.cost is not None]
    return RunLedger(
        stages=stages,
        seconds=round(sum(entry.seconds for entry in stages), 3),
        cost=round(sum(costs), 6) if len(costs) == len(stages) else None,
        bytes_fetched=sum(entry.bytes_fetched for entry in stages),
    )


def peak_memory() -> int:
    """Peak memory of this process in bytes: of the GPU where there is one, else resident."""
    return _gpu()[2] or _peak_memory()


def _peak_memory() -> int:
    """As Linux reports it; 0 elsewhere. A child would inherit its parent's `ru_maxrss`."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak_line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak_line.split()[1]) * 1024
    return 0


def _gpu() -> tuple[str, int, int]:
    """Name, count and peak allocated bytes of the GPUs; asks torch only where a stage loaded it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "", 0, 0
    count = torch.cuda.device_count()
    return (
        torch.cuda.get_device_name(0),
        count,
        max(torch.cuda.max_memory_allocated(index) for index in range(count)),
    )
