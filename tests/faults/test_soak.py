"""A short soak; the long one, of 100,000 rows, is tests/benchmarks/bench_soak.py."""

from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.bench_soak import EVERY, REFUSED, UNQUOTED, soak
from tests.faults.conftest import Tally

ROWS = 3000


@pytest.mark.fault(
    "Soak",
    "thousands of rows from an endpoint that fails in 4 % of its calls and at 2 % of the chunks",
    "rows and dropped make what was asked; the ledger counts the calls that the endpoint counted, "
    "by kind; memory is flat",
)
def test_a_long_run_counts_exactly_and_does_not_grow(tmp_path: Path, tally: Tally) -> None:
    result = soak(ROWS, tmp_path)
    assert result.dropped == {REFUSED: ROWS // EVERY, UNQUOTED: ROWS // EVERY}
    assert result.rows + sum(result.dropped.values()) == ROWS
    assert Counter(result.served) == Counter(result.failed) + Counter(good=result.requests)
    assert sum(result.failed.values()) > 0.02 * result.requests
    assert result.memory[3] < 1.1 * result.memory[1]
    tally.tried(ROWS)
    tally.note(f"{sum(result.failed.values())} of {sum(result.served.values())} calls failed")
