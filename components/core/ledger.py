"""The ledger of a stage (time, tokens, requests, hardware, cost), and that of a run: their sum.

Costs come from dated prices (`gpus.yaml`, or the user's own table). What has no price there has an
unknown cost (null), never none.
"""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from pydantic import Field

from components.core.gpus import kinds, table
from components.core.records import Record, read_json
from components.core.storage import LEDGER, write_json


class Prices(Record):
    """A dated price table.

    gpu_hour: by the device's name as the driver reports it. gpu_dates: of GPU prices that have
    another date than the table.
    """

    date: str
    source: str
    currency: str
    gpu_hour: dict[str, float]
    teacher_request: float
    gpu_dates: dict[str, str] = Field(default_factory=dict)


def read_prices(path: str = "") -> Prices:
    """The price table at a path, or the prices of `gpus.yaml`."""
    if path:
        return read_json(Path(path), Prices)
    request = table().teacher_request
    gpu_hour = {gpu.device: gpu.price for gpu in kinds().values() if gpu.price}
    return Prices(
        date=request.date,
        source=request.source,
        currency="USD",
        gpu_hour={device: price.usd for device, price in gpu_hour.items()},
        teacher_request=request.usd,
        gpu_dates={device: price.date for device, price in gpu_hour.items()},
    )


class LedgerEntry(Record):
    """What one stage took: `ledger.json` in its artifact. Tokens are the model's or teacher's.

    failed: why an attempt ended early; empty for one that succeeded. parts: seconds of parts of
    the stage, with those of earlier attempts that it resumed. requests_failed: calls to a teacher
    that failed, by kind; they are not among `requests`, and most were repeated.
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
    currency: str
    prices_date: str
    failed: str = ""
    parts: dict[str, float] = Field(default_factory=dict)
    requests_failed: dict[str, int] = Field(default_factory=dict)


class RunLedger(Record):
    """A whole run: its stages and their sum. `cost` is null when any stage's is."""

    stages: list[LedgerEntry]
    seconds: float
    cost: float | None
    currency: str


class Ledger:
    """Measures a stage from now on, and writes `ledger.json` when it has succeeded.

    Use as `with Ledger("train", folder, prices) as ledger: ...; ledger.count(tokens_in=12)`.
    """

    def __init__(self, stage: str, folder: Path, prices: str = "") -> None:
        self.stage = stage
        self.folder = folder
        self.prices = read_prices(prices)
        self.started = time.monotonic()
        self.tokens_in = self.tokens_out = self.requests = 0
        self.requests_failed: Counter[str] = Counter()
        self.tokens_cached = self.tokens_cacheable = 0
        self.parts: dict[str, float] = {}

    def count(self, *, tokens_in: int = 0, tokens_out: int = 0, requests: int = 0) -> None:
        """Add to the running totals. `requests` are calls to a teacher that someone charges for."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.requests += requests

    def count_cached(self, tokens: int, *, of: int) -> None:
        """Add prompt tokens that a prefix cache served, of those that it could have served."""
        self.tokens_cached += tokens
        self.tokens_cacheable += of

    def so_far(self) -> dict[str, object]:
        """Requests, their price and tokens until now, for a progress bar; without zeros."""
        figures: dict[str, object] = {}
        if self.requests:
            cost = self.requests * self.prices.teacher_request
            figures = {"requests": self.requests, "cost": f"{cost:.2f} {self.prices.currency}"}
        if tokens := self.tokens_in + self.tokens_out:
            figures["tokens"] = tokens
        return figures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            write_json(self.folder / LEDGER, self.entry())

    def entry(self) -> LedgerEntry:
        """The entry so far."""
        seconds = time.monotonic() - self.started
        gpu, gpu_count, gpu_memory = _gpu()
        return LedgerEntry(
            stage=self.stage,
            seconds=round(seconds, 3),
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            requests=self.requests,
            gpu=gpu,
            gpu_count=gpu_count,
            peak_memory_bytes=_peak_memory(),
            peak_gpu_memory_bytes=gpu_memory,
            cost=self._cost(seconds, gpu, gpu_count),
            currency=self.prices.currency,
            prices_date=self.prices.gpu_dates.get(gpu, self.prices.date),
            parts=self.parts,
            requests_failed=dict(self.requests_failed.most_common()),
        )

    def _cost(self, seconds: float, gpu: str, gpu_count: int) -> float | None:
        requests = self.requests * self.prices.teacher_request
        if not gpu:
            # A CPU machine is not priced; a stage that only calls a paid endpoint is.
            return round(requests, 6) if self.requests else None
        if gpu not in self.prices.gpu_hour:
            return None
        return round(requests + seconds / 3600 * gpu_count * self.prices.gpu_hour[gpu], 6)


def merge(folders: list[Path]) -> RunLedger:
    """The ledger of a run, from its artifacts."""
    return total([read_json(folder / LEDGER, LedgerEntry) for folder in folders])


def total(stages: list[LedgerEntry]) -> RunLedger:
    """The ledger of a run, from those of its stages; several currencies have no sum."""
    costs = [entry.cost for entry in stages if entry.cost is not None]
    currencies = {entry.currency for entry in stages}
    return RunLedger(
        stages=stages,
        seconds=round(sum(entry.seconds for entry in stages), 3),
        cost=round(sum(costs), 6) if len(costs) == len(stages) and len(currencies) < 2 else None,
        currency=currencies.pop() if len(currencies) == 1 else "",
    )


def peak_memory() -> int:
    """Peak memory of this process in bytes: of the GPU where there is one, else resident."""
    return _gpu()[2] or _peak_memory()


def _peak_memory() -> int:
    # On Linux a child inherits its parent's ru_maxrss; /proc/self/status has the process's own.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak_line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak_line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Time a block; the list holds its seconds afterwards."""
    seconds: list[float] = []
    started = time.monotonic()
    yield seconds
    seconds.append(time.monotonic() - started)
