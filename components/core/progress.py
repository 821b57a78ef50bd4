"""Show progress: a bar on a terminal, plain lines in a pod's log.

Everything goes to standard error, so standard output stays free for results.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Protocol

from components.core.errors import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
MIN_WIDTH_OF_BAR = 120  # columns; a narrower terminal shows the figures instead


class Task(Protocol):
    """A piece of work under way."""

    def advance(self, count: int = 1, **figures: object) -> None:
        """Count finished units; `figures` (such as loss=0.3) are shown next to the bar."""


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
    from rich.text import Text

    console().print(
        Text.assemble(("▸ " + title, "bold cyan"), ("  " + for_terminal(detail), "dim")),
        soft_wrap=True,
    )


@contextmanager
def task(title: str, total: int, unit: str) -> Iterator[Task]:
    """Track `total` units of work under a title."""
    if console().is_terminal:
        with _bar(title, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(title, total, unit)
        yield lines
        lines.finish()


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Task]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as RichTask
    from rich.table import Column
    from rich.text import Text

    class FiguresColumn(ProgressColumn):
        """The one column that shrinks: a column with `no_wrap` would keep its width."""

        def render(self, task: RichTask) -> Text:
            return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")

    class RateColumn(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else f"– {unit}/s", style="magenta")

    whole = Column(no_wrap=True)
    wide = console().width >= MIN_WIDTH_OF_BAR
    bar = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=20)] if wide else []),
        MofNCompleteColumn(table_column=whole),
        RateColumn(table_column=whole),
        *([TimeElapsedColumn(table_column=whole)] if wide else []),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
        FiguresColumn(),
        console=console(),
    )
    with bar:
        row = bar.add_task(title, total=total, figures="")

        class Bar:
            def advance(self, count: int = 1, **figures: object) -> None:
                bar.advance(row, count)
                if figures:
                    bar.update(row, figures=_words(figures))

        yield Bar()


@dataclass
class _Lines:
    """Progress as log lines, at most one every few seconds."""

    title: str
    total: int
    unit: str
    done: int = 0
    figures: dict[str, object] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    def advance(self, count: int = 1, **figures: object) -> None:
        self.done += count
        self.figures.update(figures)
        if time.monotonic() - self.spoken >= SECONDS_BETWEEN_LINES:
            self._speak()

    def finish(self) -> None:
        self._speak()

    def _speak(self) -> None:
        self.spoken = time.monotonic()
        seconds = max(self.spoken - self.started, 1e-9)
        rate = self.done / seconds
        left = (
            f", {(self.total - self.done) / rate:.0f} s left" if 0 < self.done < self.total else ""
        )
        say(
            f"  {self.title}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, "
            f"{seconds:.0f} s{left} {_words(self.figures)}".rstrip()
        )


def _words(figures: dict[str, object]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in figures.items()
    )
