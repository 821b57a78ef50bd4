"""Show progress: a bar on a terminal, plain lines in a pod's log.

Everything goes to standard error, so standard output stays free for results.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from components.core.errors import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0


@cache
def console() -> "Console":
    """The one console of the process, on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one line of plain text (markup in it is not interpreted)."""
    console().print(for_terminal(message), markup=False, soft_wrap=True)


def headline(title: str, detail: str = "") -> None:
    """Announce a stage."""
    line = f"▸ {title}  {for_terminal(detail)}".rstrip()
    console().print(line, style="bold cyan", markup=False, soft_wrap=True)


class Task:
    """A piece of work under way, which `show` shows after every step.

    before: units that an earlier attempt has done; they count for neither rate nor time left.
    """

    def __init__(
        self, total: int, unit: str, show: Callable[["Task"], None], before: int = 0
    ) -> None:
        self.total, self.unit, self.show = total, unit, show
        self.done = self.before = before
        self.figures: dict[str, object] = {}
        self.started = time.monotonic()

    def advance(self, count: int = 1, **figures: object) -> None:
        """Count finished units; `figures` (such as loss=0.3) are shown with them."""
        self.done += count
        self.figures |= figures
        self.show(self)

    def words(self) -> str:
        """The rate, the time left, and the latest figures."""
        done = self.done - self.before
        a_unit = (time.monotonic() - self.started) / max(done, 1)
        words = []
        if done:
            slow = f"{a_unit:.0f} s/{self.unit.removesuffix('s')}"
            words.append(slow if a_unit > 1 else f"{1 / max(a_unit, 1e-9):.1f} {self.unit}/s")
        if done and self.done < self.total:
            words.append(f"{(self.total - self.done) * a_unit:.0f} s left")
        words += [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.figures.items()
        ]
        return " ".join(words)


@contextmanager
def task(title: str, total: int, unit: str, before: int = 0) -> Iterator[Task]:
    """Track `total` units of work under a title, of which so many were done `before`."""
    with (_bar if console().is_terminal else _lines)(title, total, unit, before) as running:
        yield running


@contextmanager
def _bar(title: str, total: int, unit: str, before: int) -> Iterator[Task]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # of a line, however narrow
    with Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", table_column=rest, markup=False),
        console=console(),
        expand=True,
    ) as bar:
        row = bar.add_task(title, total=total, completed=before, words="")

        def show(task: Task) -> None:
            bar.update(row, completed=task.done, words=task.words())

        yield Task(total, unit, show, before)


@contextmanager
def _lines(title: str, total: int, unit: str, before: int) -> Iterator[Task]:
    """Lines of a log, at most one every few seconds, and one at the end."""
    spoken = time.monotonic()

    def show(task: Task, least: float = SECONDS_BETWEEN_LINES) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= least:
            spoken = time.monotonic()
            say(f"  {title}: {task.done}/{total} {unit}, {task.words()}".removesuffix(", "))

    running = Task(total, unit, show, before)
    yield running
    show(running, 0)
