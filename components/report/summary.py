"""The summary of a run: each step's results, time and cost, and what did not finish.

Reads everything under the folders, at any depth: a run that failed half-way has a summary too. An
artifact counts once its manifest is written; attempts that failed left a ledger entry of their own
(`ledger.failed-….json`). Where several models were evaluated, a comparison page is added.

Writes `summary.md`, `ledger.json` (the whole run's `RunLedger`) and, for two evaluations or more,
`comparison.html`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from components.core.config import Settings, TextList, option
from components.core.describe import as_markdown, costs, describe, markdown_table, plain
from components.core.errors import DataError, StorageError
from components.core.ledger import LedgerEntry, RunLedger, total
from components.core.progress import headline, say
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    Run,
    TrainingRecord,
)
from components.core.storage import (
    LEDGER,
    MANIFEST,
    atomic_write,
    faults,
    find,
    seal,
    unseal,
    write_json,
)
from components.report import comparison

SUMMARY, COMPARISON = "summary.md", "comparison.html"
ORDER = ("generate", "train", "quantize-check", "eval")
KINDS: dict[str, type[BaseModel]] = {
    kind.FILE: kind for kind in (GenerationReport, TrainingRecord, QuantizationReport, Evaluation)
}
STEP_OF = dict(zip(KINDS, ORDER, strict=True))

R = TypeVar("R", bound=BaseModel)


class SummaryConfig(Settings):
    """The folders of a run in, one page out."""

    stage: ClassVar[str] = "summary"

    folders: TextList = (
        option(  # not Locations: a step of Kubeflow may have others, and reports them
            (),
            help="Folders (local or gs://) to read, at any depth, separated by commas: a run's, or "
            "single artifacts.",
            group="Inputs",
        )
    )
    status: str = option(
        "", help="How the run ended, as JSON with a state; Kubeflow gives it.", group="Inputs"
    )


class RunResults(NamedTuple):
    """Everything of a run that could be read.

    records: by path. failures: the last attempt of every step that never succeeded. notes: what
    could not be read, and why.
    """

    records: dict[str, BaseModel]
    entries: list[LedgerEntry]
    failures: list[LedgerEntry]
    notes: list[str]

    def of(self, kind: type[R]) -> list[R]:
        return [record for record in self.records.values() if isinstance(record, kind)]


def run(config: SummaryConfig) -> RunLedger:
    """Write the summary; a folder that cannot be read is a sentence in it, not an error.

    Raises:
        StorageError: there is nothing of a run, and no `status` of one.
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
    unseal(output, "summary")
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
    seal(output)
    say(f"  {len(results.records)} results, {len(results.entries)} ledger entries")
    return ledger


def compare(folders: tuple[str, ...], output: Path) -> list[comparison.Trial]:
    """Write `comparison.html` and `comparison.md`: the evaluations of finished runs side by side.

    Args:
        folders: runs or evaluations, local or `gs://`, read at any depth.
        output: a folder; its other files stay.

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


# ---- reading -----------------------------------------------------------------------------------


def read(folders: tuple[str, ...]) -> RunResults:
    """The finished results and all ledger entries under the folders, in the order of the steps."""
    texts: dict[str, str] = {}
    notes = []
    for folder in folders:
        try:
            texts |= dict(find(folder, _is_read))
        except StorageError as error:
            notes.append(f"{error} {error.hint}".strip())
    texts, sealed, wrong = _whole(texts)
    notes += wrong
    records: dict[str, BaseModel] = {}
    entries: list[tuple[int, str, LedgerEntry]] = []
    for path, text in sorted(texts.items(), key=lambda item: _place(item[0])):
        folder, _, name = path.rpartition("/")
        if name.startswith("ledger.failed-") or (name == LEDGER and folder in sealed):
            entry = _parse(text, LedgerEntry)
            if entry is not None:
                entries.append((_rank(entry.stage), path, entry))
            elif _parse(text, RunLedger) is None:  # a summary's own
                notes.append(f"{path} is not a {LedgerEntry.__name__}.")
        elif name in KINDS and folder in sealed:
            record = _parse(text, KINDS[name])
            if record is None:
                notes.append(f"{path} is no {KINDS[name].__name__} that this version can read.")
            else:
                records[path] = record
    reports = [record for record in records.values() if isinstance(record, GenerationReport)]
    if not all(report.is_shard for report in reports):
        # Of shards that were merged, only the ledger entries are reported.
        records = {
            path: record
            for path, record in records.items()
            if not (isinstance(record, GenerationReport) and record.is_shard)
        }
    # A failed attempt's name carries its time, and sorts before the one that succeeded.
    entries.sort(key=_attempts_first)
    last = {path.rpartition("/")[0]: entry for _, path, entry in entries}
    failures = [entry for entry in last.values() if entry.failed]
    return RunResults(records, [entry for _, _, entry in entries], failures, notes)


def _whole(texts: dict[str, str]) -> tuple[dict[str, str], set[str], list[str]]:
    """The texts that are what their manifests say, the sealed folders, and what is wrong."""
    held: dict[str, dict[str, str]] = defaultdict(dict)
    for path, text in texts.items():
        folder, _, name = path.rpartition("/")
        held[folder][name] = text
    # A checkpoint is sealed too, and is no result.
    sealed = {
        folder for folder, names in held.items() if MANIFEST in names and Run.FILE not in names
    }
    wrong = {
        f"{folder}/{name}": fault
        for folder in sorted(sealed)
        for name, fault in faults(held[folder], _is_read).items()
    }
    return (
        {path: text for path, text in texts.items() if path not in wrong},
        {folder for folder in sealed if f"{folder}/{MANIFEST}" not in wrong},
        [f"{path} {fault}." for path, fault in wrong.items()],
    )


def _is_read(name: str) -> bool:
    return (
        name in KINDS or name in (LEDGER, MANIFEST, Run.FILE) or name.startswith("ledger.failed-")
    )


def _place(path: str) -> tuple[int, str]:
    return _rank(STEP_OF.get(PurePosixPath(path).name, "")), path


def _attempts_first(item: tuple[int, str, LedgerEntry]) -> tuple[int, str, bool, str]:
    rank, path, entry = item
    return rank, str(PurePosixPath(path).parent), not entry.failed, path


def _rank(step: str) -> int:
    return ORDER.index(step) if step in ORDER else len(ORDER)


def _parse(text: str, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        return None


# ---- writing -----------------------------------------------------------------------------------


def render(results: RunResults, ledger: RunLedger, status: str) -> str:
    """The summary in Markdown."""
    parts = ["# RAFT run", *_outcome(results, status)]
    own = {path: record for path, record in results.records.items() if not _is_copy(path, results)}
    trials = comparison.find_trials(results.records)
    if len(trials) > 1:
        parts += ["## comparison", markdown_table(comparison.table(trials))]
    else:
        parts += [
            as_markdown(description).rstrip()
            for record in own.values()
            if (description := describe(record)) is not None
        ]
    if ledger.stages:
        parts += ["## time and cost", markdown_table(costs(ledger))]
        if ledger.cost is None:
            parts.append(
                "*Not priced*: the price table has no entry for that hardware; a step's "
                "`--prices` replaces the table."
            )
    parts += [f"> {plain(note)}" for note in results.notes]
    return "\n\n".join(parts) + "\n"


def _is_copy(path: str, results: RunResults) -> bool:
    """Whether a training record is in the folder of an evaluation, which has copied it."""
    folder, _, name = path.rpartition("/")
    return name == TrainingRecord.FILE and f"{folder}/{Evaluation.FILE}" in results.records


def _outcome(results: RunResults, status: str) -> Iterator[str]:
    state, message = _state(status)
    done: defaultdict[str, int] = defaultdict(int)
    for entry in results.entries:
        done[entry.stage] += not entry.failed
    if state:
        yield f"**{plain(state.capitalize())}.**" + (f" {plain(message)}" if message else "")
    for entry in results.failures:
        yield f"**{entry.stage} failed:** {plain(entry.failed)}"
    closed = any(report.decision == "stop" for report in results.of(QuantizationReport))
    if closed and not done["eval"]:
        yield (
            "**The gate is closed:** quantize-check failed and `gate` is `stop`, so eval did not "
            "run. The adapter is there. To evaluate it anyway, run again with `gate` set to "
            "`warn`."
        )
    missing = [step for step in ORDER if not done[step] and not (closed and step == "eval")]
    if missing and results.entries:
        yield f"Without a result: {', '.join(missing)}."


def _state(status: str) -> tuple[str, str]:
    """State and error message of Kubeflow's final status; spelled differently by its runners."""
    try:
        final = json.loads(status or "{}")
    except json.JSONDecodeError:
        return "", ""
    if not isinstance(final, dict):
        return "", ""
    error = final.get("error")
    message = error.get("message", "") if isinstance(error, dict) else ""
    return str(final.get("state", "")), str(message)
