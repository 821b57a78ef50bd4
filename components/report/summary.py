"""The summary of a run: each stage's result, what it took, and what did not finish.

A run that failed half-way has a summary too. Where several models were evaluated, a comparison
page is added.

Writes `summary.md`, `ledger.json` (the whole run's `RunLedger`) and, for two evaluations or more,
`comparison.html`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from components.core.config import Settings, TextList, option
from components.core.describe import describe, ledger_table
from components.core.errors import DataError, StorageError
from components.core.ledger import RunLedger, total
from components.core.pages import as_markdown, markdown_table, plain
from components.core.progress import headline, say
from components.core.records import Evaluation, QuantizationReport, TrainingRecord
from components.core.storage import (
    LEDGER,
    atomic_write,
    begin_artifact,
    finish_artifact,
    write_json,
)
from components.report import comparison
from components.report.results import STAGES, RunResults, read

SUMMARY, COMPARISON = "summary.md", "comparison.html"


class SummaryConfig(Settings):
    """The folders of a run in, one page out."""

    stage: ClassVar[str] = "summary"

    folders: TextList = option(  # not Locations: a step of Kubeflow may have others, with a note
        (),
        help="Folders (local or gs://) to read, at any depth, separated by commas: a run's, or "
        "single artifacts.",
        group="Inputs",
    )
    status: str = option(
        "", help="How the run ended, as JSON with a state; Kubeflow gives it.", group="Inputs"
    )


def run(config: SummaryConfig) -> RunLedger:
    """Write the summary; a folder that cannot be read is a sentence in it, not an error.

    Raises:
        StorageError: nothing of a run was found, and no `status` says that there was one.
    """
    output = Path(config.output)
    headline("summary", f"{', '.join(config.folders) or 'nothing'} → {output}")
    results = read(config.folders)
    if not (results.records or results.entries or config.status):
        raise StorageError(
            " ".join(results.notes)
            or f"--folders {','.join(config.folders)}: nothing of a run there",
            hint="Give folders that stages have written, separated by commas: "
            "--folders run/dataset,run/adapter",
        )
    begin_artifact(output, "summary")
    ledger = total(results.entries)
    write_json(output / LEDGER, ledger)
    trials = comparison.find_trials(results.records)
    if trials:
        with atomic_write(output / COMPARISON) as file:
            file.write(comparison.render(trials))
    else:
        (output / COMPARISON).unlink(missing_ok=True)
    with atomic_write(output / SUMMARY) as file:
        file.write(render(results, ledger, config.status))
    finish_artifact(output)
    say(f"  {len(results.records)} results, {len(results.entries)} ledger entries")
    return ledger


def compare(folders: tuple[str, ...], output: Path) -> list[comparison.Trial]:
    """Write `comparison.html` and `comparison.md`: the evaluations of finished runs side by side.

    Args:
        folders: runs or evaluations, local or `gs://`, read at any depth.
        output: a folder, of which only these two files are replaced.

    Raises:
        DataError: a folder holds no finished evaluation, or cannot be read.
    """
    trials = []
    for folder in folders:
        results = read((folder,))
        here = comparison.find_trials(results.records)
        if not here:
            raise DataError(
                " ".join(["holds no finished evaluation", *results.notes]),
                path=folder,
                hint="Give the folder that raft eval wrote, or one above it.",
            )
        trials += here
        for note in results.notes:
            say(f"  {note}")
    with atomic_write(output / COMPARISON) as file:
        file.write(comparison.render(trials))
    with atomic_write(output / COMPARISON.replace(".html", ".md")) as file:
        file.write(comparison.render_markdown(trials))
    return trials


def render(results: RunResults, ledger: RunLedger, status: str) -> str:
    """The summary in Markdown."""
    parts = ["# RAFT run", *_outcome(results, status)]
    trials = comparison.find_trials(results.records)
    if len(trials) > 1:
        parts += ["## comparison", *map(plain, comparison.best(trials))]
        parts.append(markdown_table(comparison.table(trials)))
    else:
        parts += [
            as_markdown(description).rstrip()
            for path, record in results.records.items()
            if not _is_copy(path, results) and (description := describe(record)) is not None
        ]
    if ledger.stages:
        parts += ["## time and cost", markdown_table(ledger_table(ledger))]
        if ledger.cost is None:
            parts.append(
                "*Not priced*: the price table has no entry for that hardware; a step's "
                "`--prices` replaces the table."
            )
    parts += [f"> {plain(note)}" for note in results.notes]
    return "\n\n".join(parts) + "\n"


def _is_copy(path: str, results: RunResults) -> bool:
    """Whether this is the copy of a training record that an evaluation contains."""
    folder, _, name = path.rpartition("/")
    return name == TrainingRecord.FILE and f"{folder}/{Evaluation.FILE}" in results.records


def _outcome(results: RunResults, status: str) -> Iterator[str]:
    """How the run ended, as far as its artifacts, its ledgers and Kubeflow prove it."""
    state, message = _state(status)
    done = Counter(entry.stage for entry in results.entries if not entry.failed)
    closed = any(
        isinstance(record, QuantizationReport) and record.decision == "stop"
        for record in results.records.values()
    )
    missing = [stage for stage in STAGES if not done[stage] and not (closed and stage == "eval")]
    if state:
        yield _heading(state, missing, done) + (f" {plain(message)}" if message else "")
    for entry in results.failures:
        yield f"**{entry.stage} failed:** {plain(entry.failed)}"
    if closed and not done["eval"]:
        yield (
            "**The gate is closed:** quantize-check failed and `gate` is `stop`, so eval did not "
            "run. The adapter is finished. To evaluate it anyway, run again with `gate` set to "
            "`warn`."
        )
    if missing and results.entries:
        yield f"Without a result: {', '.join(missing)}."


def _heading(state: str, missing: list[str], done: Counter[str]) -> str:
    """The first words of the summary.

    Kubeflow reports FAILED only where a step's launcher did. Where a driver failed, the gate is
    closed, or the run was terminated, it still reports RUNNING, and before version 2.17 so it does
    for a success: then the results decide.
    """
    if state != "RUNNING":
        return f"**{plain(state.capitalize())}.**"
    if missing:
        return (
            f"**Ended early, before {missing[0]} had a result.** The run's page shows whether a "
            "step failed or somebody terminated the run."
        )
    if done["eval"] > 1:  # of a study, whose number of trials no artifact tells
        return f"**{done['eval']} trials are finished.**"
    return "**Complete.**"


def _state(status: str) -> tuple[str, str]:
    """State and error message of Kubeflow's final status, which its runners spell differently."""
    try:
        final = json.loads(status or "{}")
    except json.JSONDecodeError:
        return "", ""
    if not isinstance(final, dict):
        return "", ""
    error = final.get("error")
    message = error.get("message", "") if isinstance(error, dict) else ""
    return str(final.get("state", "")), str(message)
