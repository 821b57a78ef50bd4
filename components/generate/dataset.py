"""Write a dataset: rows into two files, a report and a card."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from string import Template
from typing import IO, Self

from components.core.describe import counted
from components.core.progress import say
from components.core.records import GenerationReport, RaftRow
from components.core.storage import atomic_write, write_json
from components.generate.text import normalized

CARD = Path(__file__).with_name("card.md")
SPLITS = ("train", "validation")
REASONS_LOGGED = 3
"""The report has all."""

WHOLE = "1/1"
"""The shard that is all of a run."""

ASKED_BEFORE = "question asked before"


class Dataset:
    """The rows of a dataset while they are written; see `create`.

    Attributes:
        rows: rows written, by split.
        without_oracle: rows that do not show their oracle.
    """

    def __init__(self, files: dict[str, IO[str]]) -> None:
        self.rows: Counter[str] = Counter()
        self.without_oracle = 0
        self._files = files
        self._questions: set[bytes] = set()

    @classmethod
    @contextmanager
    def create(cls, folder: Path) -> Iterator[Self]:
        """A dataset in a folder; its files are there once the block succeeds."""
        with ExitStack() as stack:
            paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
            yield cls({split: stack.enter_context(atomic_write(p)) for split, p in paths.items()})

    def write(self, row: RaftRow, split: str) -> bool:
        """Append a row, with the next id; False if its question was written before.

        Questions are equal when they differ in case and punctuation alone.
        """
        digest = blake2b(normalized(row.question).encode(), digest_size=8).digest()
        if digest in self._questions:
            return False
        self._questions.add(digest)
        row = row.model_copy(update={"id": f"seed_task_{self.rows.total()}"})
        self._files[split].write(row.model_dump_json() + "\n")
        self.rows[split] += 1
        self.without_oracle += row.oracle_index is None
        return True


def by_count(counts: Counter[str]) -> dict[str, int]:
    """Reasons with their counts, the most frequent first, whatever order they came in."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_report(folder: Path, report: GenerationReport) -> None:
    """Write `report.json` and the dataset card."""
    write_json(folder / GenerationReport.FILE, report)
    figures = report.model_dump() | report.rows
    tables = ("dropped", "chunks_left_out", "documents_bad", "quotes")
    figures |= {name: _rows(getattr(report, name)) for name in tables}
    card = Template(CARD.read_text(encoding="utf-8"))
    with atomic_write(folder / "README.md") as file:
        file.write(card.substitute(figures))


def say_rows(report: GenerationReport, validation_fraction: float | None = None) -> None:
    """How many rows there are, why others were dropped, and whether validation has too many.

    Args:
        report: of the rows.
        validation_fraction: the share of documents that was to be held out, where that is known.
    """
    train, validation = (report.rows[split] for split in SPLITS)
    say(f"  {train:,} training and {counted(validation, 'validation row')}")
    if report.dropped:
        first = list(report.dropped.items())[:REASONS_LOGGED]
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in first)
        rest = ", …" * (len(report.dropped) > REASONS_LOGGED)
        say(f"  {counted(sum(report.dropped.values()), 'draft')} dropped: {reasons}{rest}")
    share = validation / max(1, train + validation)
    most = 0.5 if validation_fraction is None else min(0.5, 2 * validation_fraction)
    if report.shard == WHOLE and share > most:
        wanted = (
            "" if validation_fraction is None else f", asked for were {validation_fraction:.0%}"
        )
        say(
            f"  note: validation has {share:.0%} of the rows{wanted}: whole {report.split_by}s are "
            "held out, at least one, and some give many rows; give more of them, or another --seed"
        )


def _rows(counts: dict[str, int]) -> str:
    return "\n".join(f"| {name} | {count} |" for name, count in counts.items()) or "| (none) | 0 |"
