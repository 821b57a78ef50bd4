"""Write a dataset: rows into two files, a report and a card."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import IO, Self

from components.core.describe import by_rules, counted, few_rows
from components.core.pages import REPORT
from components.core.progress import say
from components.core.records import Dropped, GenerationReport, RaftRow
from components.core.redaction import redact
from components.core.storage import atomic_write, put, write_json
from components.generate import page
from components.generate.dropped import MAX_EXAMPLES
from components.generate.teachers import OVER_COST

CARD = Path(__file__).with_name("card.md")
SPLITS = ("train", "validation")
NO_VALIDATION = (
    "No row is held out for validation: training cannot see overfitting, the 4-bit check is "
    "inconclusive, and an evaluation needs questions of its own (--questions)."
)
REASONS_LOGGED = 3
"""The report has all."""


class Dataset:
    """The rows of a dataset while they are written; see `create`.

    Attributes:
        rows: rows written, by split.
        dropped: drafts without a row, by reason; `examples` are the first of them.
        without_oracle: rows that do not show their oracle.
        lengths: of each row's prompt and answer, in characters.
    """

    def __init__(self, files: dict[str, IO[str]]) -> None:
        self.rows: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: list[Dropped] = []
        self.without_oracle = 0
        self.lengths: list[int] = []
        self._files = files

    @classmethod
    @contextmanager
    def create(cls, folder: Path) -> Iterator[Self]:
        """A dataset in a folder; its files are there once the block succeeds.

        What was dropped is there in any case.
        """
        with ExitStack() as stack:
            paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
            files = {split: stack.enter_context(atomic_write(p)) for split, p in paths.items()}
            dropped = (folder / Dropped.FILE).open("w", encoding="utf-8")
            yield cls(files | {Dropped.FILE: stack.enter_context(dropped)})

    def write(self, row: RaftRow, split: str) -> None:
        """Append a row, with the next id."""
        row = row.model_copy(update={"id": f"seed_task_{self.rows.total()}"})
        self._files[split].write(row.model_dump_json() + "\n")
        self.rows[split] += 1
        self.without_oracle += row.oracle_index is None
        self.lengths.append(len(row.instruction) + len(row.cot_answer))

    def drop(self, dropped: Dropped) -> None:
        """Append a draft that became no row."""
        self.dropped[dropped.reason] += 1
        self.examples += [dropped] * (len(self.examples) < MAX_EXAMPLES)
        self._files[Dropped.FILE].write(redact(dropped.model_dump_json()) + "\n")


def write_report(folder: Path, report: GenerationReport, dataset: Dataset) -> None:
    """Write `report.json`, the dataset card and the page."""
    write_json(folder / GenerationReport.FILE, report)
    figures = report.model_dump() | report.rows
    tables = ("dropped", "chunks_left_out", "documents_bad", "quotes")
    figures |= {name: _rows(getattr(report, name)) for name in tables}
    figures["warnings"] = "".join(f"> **Warning.** {text}\n>\n" for text in report.warnings)
    card = Template(CARD.read_text(encoding="utf-8"))
    put(card.substitute(figures), folder / "README.md")
    put(page.render(report, dataset.lengths), folder / REPORT)


def warnings(
    rows: Mapping[str, int], dropped: Mapping[str, int], teacher: str, gold_questions: str
) -> list[str]:
    """What a reader of the rows, and of all that is made of them, must know."""
    sentences = by_rules(teacher, gold_questions)
    if unasked := sum(count for reason, count in dropped.items() if OVER_COST in reason):
        sentences.append(
            f"--teacher-max-cost was reached: {counted(unasked, 'question')} or chunks were not "
            "asked about, so the dataset is smaller than the settings want"
        )
    if not rows["validation"]:
        sentences.append(NO_VALIDATION)
    return sentences + few_rows(rows["train"])


def say_rows(report: GenerationReport, validation_fraction: float) -> None:
    """How many rows there are, why others were dropped, and whether validation has too many."""
    for text in report.warnings:
        say(f"  WARNING: {text}")
    train, validation = (report.rows[split] for split in SPLITS)
    say(f"  {train:,} training and {counted(validation, 'validation row')}")
    if report.dropped:
        first = list(report.dropped.items())[:REASONS_LOGGED]
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in first)
        say(f"  {counted(sum(report.dropped.values()), 'draft')} dropped: {reasons}")
    share = validation / (train + validation)
    if share > min(0.5, 2 * validation_fraction):
        say(
            f"  note: validation has {share:.0%} of the rows: whole {report.split_by}s are held "
            "out; give more of them, or another --seed"
        )


def _rows(counts: dict[str, int]) -> str:
    return "\n".join(f"| {name} | {count} |" for name, count in counts.items()) or "| (none) | 0 |"
