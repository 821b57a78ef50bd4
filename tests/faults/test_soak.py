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
    found = soak(ROWS, tmp_path)
    assert found.dropped == {REFUSED: ROWS // EVERY, UNQUOTED: ROWS // EVERY}
    assert found.rows + sum(found.dropped.values()) == ROWS
    assert Counter(found.served) == Counter(found.failed) + Counter(good=found.requests)
    assert sum(found.failed.values()) > 0.02 * found.requests
    assert found.memory[3] < 1.1 * found.memory[1]
    tally.tried(ROWS)
    tally.note(f"{sum(found.failed.values())} of {sum(found.served.values())} calls failed")
