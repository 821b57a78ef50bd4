"""`raft merge`: the datasets of several shards become the one that a single run would have made.

Each shard asked about its own run of the chunks (`raft generate --shard 2/8`), so the rows follow
each other; a question that an earlier shard asked is dropped, as a single run drops it.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from components.core.config import ArtifactSettings, InputLocations, option
from components.core.describe import counted
from components.core.errors import DataError
from components.core.ledger import Ledger
from components.core.progress import headline, task
from components.core.records import GenerationReport, RaftRow, read_json, read_jsonl
from components.core.storage import begin_artifact, finish_artifact, provenance, verify
from components.generate.dataset import (
    ASKED_BEFORE,
    SPLITS,
    WHOLE,
    Dataset,
    by_count,
    say_rows,
    write_report,
)


class MergeConfig(ArtifactSettings):
    """Datasets of shards in, one dataset out."""

    stage: ClassVar[str] = "merge"

    shards: InputLocations = option(
        help="Datasets of all shards, as a,b or as JSON; their order does not matter.",
        group="Inputs",
    )


def run(config: MergeConfig) -> GenerationReport:
    """Write a dataset from those of all shards.

    Raises:
        DataError: a shard is missing, comes twice, is damaged, or belongs to another run.
    """
    output = Path(config.output)
    headline("merge", f"{counted(len(config.shards), 'shard')} → {output}")
    shards = _ordered([Path(folder) for folder in config.shards])
    begin_artifact(output, "merge", settings=provenance(config))
    dropped: Counter[str] = Counter()
    quotes: Counter[str] = Counter()
    for report in shards.values():
        dropped.update(report.dropped)
        quotes.update(report.quotes)
    total = sum(sum(report.rows.values()) for report in shards.values())
    with (
        Ledger("merge", output),  # the shards' own accounts hold what they cost
        Dataset.create(output) as dataset,
        task("merging", total, "rows") as progress,
    ):
        for folder in shards:
            for split, row in _in_order(folder):
                dropped[ASKED_BEFORE] += not dataset.write(row, split)
                progress.advance(1, rows=dataset.rows.total())
        if not dataset.rows["train"]:
            raise DataError(f"no training row; dropped: {dict(dropped)}", path=output)
        merged = next(iter(shards.values())).model_copy(
            update={
                "chunks_used": sum(report.chunks_used for report in shards.values()),
                "rows": {split: dataset.rows[split] for split in SPLITS},
                "dropped": by_count(+dropped),
                "rows_without_oracle": dataset.without_oracle,
                "quotes": dict(sorted(quotes.items())),
                "shard": WHOLE,
            }
        )
        write_report(output, merged)
    finish_artifact(output)
    say_rows(merged)
    return merged


def _ordered(folders: list[Path]) -> dict[Path, GenerationReport]:
    """Every shard with its report, first to last.

    Raises:
        DataError: see `run`.
    """
    shards: dict[int, tuple[Path, GenerationReport]] = {}
    for folder in folders:
        verify(folder, "--shards")
        report = read_json(folder / GenerationReport.FILE, GenerationReport)
        number, count = map(int, report.shard.split("/"))
        first = next((report for _, report in shards.values()), report)
        problem, hint = "", "Shards must differ in --shard alone."
        if _run_of(report) != _run_of(first):
            problem = f"shard {report.shard} belongs to another run than shard {first.shard}"
        elif number in shards:
            problem = f"is shard {report.shard}, and so is {shards[number][0]}"
            hint = "Pass every shard once."
        if problem:
            raise DataError(problem, path=folder, hint=hint)
        shards[number] = folder, report
    if missing := sorted(set(range(1, count + 1)) - set(shards)):
        raise DataError(
            f"shards of {count} are missing: {', '.join(map(str, missing))}", path=folders[0],
            hint="Run them, and pass all of them in --shards.",
        )  # fmt: skip
    return dict(shards[number] for number in sorted(shards))


def _run_of(report: GenerationReport) -> tuple[object, ...]:
    """What all shards of a run have in common."""
    return (
        report.shard.partition("/")[2], report.documents, report.chunks, report.split_by,
        report.teacher, report.seed,
    )  # fmt: skip


def _in_order(folder: Path) -> Iterator[tuple[str, RaftRow]]:
    """The rows of both files as they were written: ids count through the two."""

    def rows(split: str) -> Iterator[tuple[int, str, RaftRow]]:
        for row in read_jsonl(folder / f"{split}.jsonl", RaftRow):
            yield int(row.id.rpartition("_")[2]), split, row

    for _, split, row in heapq.merge(*map(rows, SPLITS), key=lambda item: item[0]):
        yield split, row
