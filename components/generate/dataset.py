"""Write a dataset: rows into two files, and what is said about them."""

from collections import Counter
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from string import Template
from types import TracebackType
from typing import IO, Self

from components.generate.digests import Digests
from components.generate.text import normalized
from components.records import GenerationReport, RaftRow
from components.storage import atomic_write, write_json

CARD = Path(__file__).with_name("card.md")
SPLITS = ("train", "validation")
WHOLE = "1/1"
"""The shard that is all of a run."""

ASKED_BEFORE = "question asked before"


class Dataset:
    """The rows of a dataset while they are written; use as a context manager.

    Attributes:
        rows: rows written, by split.
        without_oracle: rows that do not show their oracle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: Counter[str] = Counter()
        self.without_oracle = 0
        self._asked = Digests()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            for split in SPLITS:
                path = self.folder / f"{split}.jsonl"
                self._files[split] = held.enter_context(atomic_write(path))
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    def write(self, row: RaftRow, split: str) -> bool:
        """Append a row, with the next id; False if its question was written before.

        Questions are equal when they differ in case and punctuation alone.
        """
        words = normalized(row.question).encode()
        if not self._asked.add(blake2b(words, digest_size=8).digest()):
            return False
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


def _rows(counts: dict[str, int]) -> str:
    return "\n".join(f"| {name} | {count} |" for name, count in counts.items()) or "| (none) | 0 |"
