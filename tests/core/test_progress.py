"""Progress in a pod's log, and on a terminal (a real pseudo-terminal)."""

import os
import pty
import re
import subprocess
import sys

import pytest

from components.core import progress

SCRIPT = """
import time
from components.core.progress import headline, say, task
headline("train", "[not markup]")
with task("training", 4, "steps") as bar:
    for step in range(4):
        time.sleep(0.3)
        bar.advance(loss=1 / (step + 1))
say("done [/nor this]")
"""


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    progress.console.cache_clear()
    with progress.task("training", 2, "steps") as bar:
        bar.advance(loss=0.5)
        bar.advance(loss=0.25)
    lines = capsys.readouterr().err.splitlines()
    progress.console.cache_clear()
    assert lines[0].startswith("  training: 1/2 steps, ") and "s left loss=0.5" in lines[0]
    assert lines[-1].startswith("  training: 2/2 steps, ") and lines[-1].endswith("loss=0.25")


def test_a_slow_task_that_resumes_counts_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.task("training", 100, "steps", before=90) as bar:
        assert bar.words() == ""
        now += 40
        bar.advance(2, loss=0.5)
        assert bar.words() == "20 s/step 160 s left loss=0.5"
        bar.advance(8)
        assert bar.done == bar.total and bar.words() == "4 s/step loss=0.5"


def on_a_terminal(columns: int, script: str = SCRIPT) -> str:
    """What a script writes on a terminal so wide."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)},
    )
    os.close(follower)
    output = b""
    try:
        while block := os.read(leader, 65536):
            output += block
    except OSError:  # the terminal's other end is closed: Linux's way to say end of file
        pass
    assert child.wait() == 0
    return output.decode()


def test_a_bar_with_rate_and_time_left_on_a_terminal() -> None:
    text = on_a_terminal(140)
    for part in ("train", "[not markup]", "training", "4/4", "steps/s", "left", "loss=0.25",
                 "done [/nor this]"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("columns", "end"), [(80, "…"), (100, "…"), (140, "cost=12.34 USD tokens=1234567")]
)
def test_a_bar_stays_on_one_line(columns: int, end: str) -> None:
    script = """
import time
from components.core.progress import task
with task("asking the teacher", 2400, "chunks") as bar:
    time.sleep(0.1)
    bar.advance(1200, rows=2880, dropped=1600, requests=5000, cost="12.34 USD", tokens=1234567)
"""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(columns, script))
    frames = [line for line in re.split(r"[\r\n]+", text) if line]
    assert all("1200/2400" in frame or "0/2400" in frame for frame in frames), "none is a rest"
    assert max(map(len, frames)) <= columns
    assert "rows=" in frames[-1] and frames[-1].rstrip().endswith(end)


@pytest.mark.parametrize(
    ("done", "words"),
    [(0, r""), (1, r"10\d s/step \d+ s left"), (9, r"1\d s/step 1\d s left"),
     (1000, r"\d+\.\d steps/s")],
)  # fmt: skip
def test_slow_work_shows_seconds_a_step(done: int, words: str) -> None:
    task = progress.Task(10, "steps", lambda _: None)
    task.started -= 100
    task.done = done
    assert re.fullmatch(words, task.words())
