"""What every fault's test shares: how often it is tried, and the record of what happened.

A test declares the row of the table that it fills, and counts:

    @pytest.mark.fault("Killed anywhere", "SIGKILL in training, gs://", "the same weights")
    def test_killed_in_training(tally: Tally) -> None:
        for number in tally.tries(3):    # three in CI; FAULT_TRIES=50 makes it 50
            ...                          # asserts
        tally.note("2.1 steps lost on average")

Without `tally` a test, or each of its parameter sets, counts as one try. With FAULT_RECORD=1 the
counts go to results.json, from which `python -m tests.faults.table` writes the table in README.md.
"""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import pytest

from tests.faults import table

Leave = Callable[..., tuple[int, str]]
"""Runs `raft` with these arguments: its exit code, and everything that it printed."""


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Leave:
    """The command in this process."""
    from components.core.progress import console
    from pipelines.cli import main

    monkeypatch.setenv("COLUMNS", "1000")

    def run_raft(*arguments: object) -> tuple[int, str]:
        console.cache_clear()
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        return int(end.value.code or 0), "".join(capfd.readouterr())

    return run_raft


def refused(result: tuple[int, str], *names: object) -> str:
    """Hold a result to be a mistake of the user's, and its error to name these; what was printed.

    Of names in a tuple one is enough.
    """
    code, text = result
    assert code == 2 and "Traceback" not in text and "bug in raft" not in text, text
    assert all(char.isprintable() or char == "\n" for char in text)
    error = text[text.index("error: ") :].replace("\n", " ")
    for name in names:
        among = name if isinstance(name, tuple) else (name,)
        assert any(str(one) in error for one in among), text
    return text


@dataclass
class Tally:
    """How often one test tried its fault, and what it has to say.

    Attributes:
        count: tries so far.
        notes: short remarks with figures, for the table.
    """

    count: int = 0
    notes: list[str] = field(default_factory=list)

    def tries(self, default: int) -> Iterator[int]:
        """Count up: `default` tries, or as many as FAULT_TRIES says."""
        for number in range(int(os.environ.get("FAULT_TRIES", default))):
            yield number
            self.count += 1

    def tried(self, times: int) -> None:
        """Count tries that the test draws by itself, such as the rows of a soak."""
        self.count += times

    def note(self, text: str) -> None:
        """Say something with a figure in the table."""
        self.notes.append(text)


TALLY = pytest.StashKey[Tally]()
TRIED = pytest.StashKey[dict[str, table.Row]]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """The count of this test's tries."""
    return request.node.stash.setdefault(TALLY, Tally())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    marker = item.get_closest_marker("fault")
    if marker is None or report.skipped or (report.when != "call" and not report.failed):
        return
    rows = item.config.stash.setdefault(TRIED, {})
    name = item.nodeid.split("[")[0].removeprefix("tests/faults/")
    row = rows.setdefault(name, table.Row(*marker.args, tried=0, failed=0, notes=[]))
    counted = item.stash.get(TALLY, None)
    row.tried += counted.count if counted and counted.count else 1
    row.failed += report.failed
    row.notes += counted.notes if counted else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows = session.config.stash.get(TRIED, {})
    if rows and os.environ.get("FAULT_RECORD"):
        table.save(table.load() | rows)
