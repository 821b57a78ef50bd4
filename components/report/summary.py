"""The summary of a run: what each step found, what it took, and what did not finish.

Reads whatever lies under the folders it is given, at any depth: a run that failed half-way has a
summary too. An artifact counts once it is sealed; attempts that failed left an account of their
own (`ledger.failed-….json`). Where several models were evaluated, a comparison page is added.

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
    begin_artifact,
    faults,
    find,
    finish_artifact,
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

    folders: TextList = option(  # not Locations: a step of Kubeflow may have others, and says so
        (),
        help="Folders (local or gs://) to read, at any depth, separated by commas: a run's, or "
        "single artifacts.",
        group="Inputs",
    )
    status: str = option(
        "", help="How the run ended, as JSON with a state; Kubeflow gives it.", group="Inputs"
    )


class Found(NamedTuple):
    """Everything of a run that could be read."""

    records: dict[str, BaseModel]
    """By path."""
    accounts: list[LedgerEntry]
    failures: list[LedgerEntry]
    """The last attempt of every step that never succeeded."""
    notes: list[str]

    def of(self, kind: type[R]) -> list[R]:
        return [record for record in self.records.values() if isinstance(record, kind)]


def run(config: SummaryConfig) -> RunLedger:
    """Write the summary; a folder that cannot be read is a sentence in it, not an error.

    Raises:
        StorageError: nothing of a run was found, and no `status` says that there was one.
    """
    output = Path(config.output)
    headline("summary", f"{', '.join(config.folders) or 'nothing'} → {output}")
    found = read(config.folders)
    if not (found.records or found.accounts or config.status):
        raise StorageError(
            " ".join(found.notes)
            or f"--folders {','.join(config.folders)}: nothing of a run there",
            hint="Give folders that stages have written, separated by commas: "
            "--folders run/dataset,run/adapter",
        )
    begin_artifact(output, "summary")
    account = total(found.accounts)
    write_json(output / LEDGER, account)
    trials = comparison.trials(found.records)
    if trials:
        with atomic_write(output / COMPARISON) as file:
            file.write(comparison.render(trials))
    else:
        (output / COMPARISON).unlink(missing_ok=True)
    with atomic_write(output / SUMMARY) as file:
        file.write(render(found, account, config.status))
    finish_artifact(output)
    say(f"  {len(found.records)} results, {len(found.accounts)} accounts")
    return account


def compare(folders: tuple[str, ...], output: Path) -> list[comparison.Trial]:
    """Write `comparison.html` and `comparison.md`: the evaluations of finished runs side by side.

    Args:
        folders: runs or evaluations, local or `gs://`, read at any depth.
        output: a folder; what else lies in it stays.

    Raises:
        DataError: a folder holds no finished evaluation, or cannot be read.
    """
    trials = []
    for folder in folders:
        found = read((folder,))
        here = comparison.trials(found.records)
        if not here:
            raise DataError(
                " ".join(["holds no finished evaluation", *found.notes]),
                path=folder,
                hint="Give the folder that raft eval wrote, or one above it.",
            )
        trials += here
        for note in found.notes:
            say(f"  {note}")
    with atomic_write(output / COMPARISON) as file:
        file.write(comparison.render(trials))
    with atomic_write(output / COMPARISON.replace(".html", ".md")) as file:
        file.write(comparison.render_markdown(trials))
    return trials


# ---- reading -----------------------------------------------------------------------------------


def read(folders: tuple[str, ...]) -> Found:
    """The sealed results and all accounts under the folders, in the order of the steps."""
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
    accounts: list[tuple[int, str, LedgerEntry]] = []
    for path, text in sorted(texts.items(), key=lambda item: _place(item[0])):
        folder, _, name = path.rpartition("/")
        if name.startswith("ledger.failed-") or (name == LEDGER and folder in sealed):
            entry = _parse(text, LedgerEntry)
            if entry is not None:
                accounts.append((_rank(entry.stage), path, entry))
            elif _parse(text, RunLedger) is None:  # a summary's own
                notes.append(f"{path} is not a {LedgerEntry.__name__}.")
        elif name in KINDS and folder in sealed:
            record = _parse(text, KINDS[name])
            if record is None:
                notes.append(f"{path} is no {KINDS[name].__name__} that this version can read.")
            else:
                records[path] = record
    reports = [found for found in records.values() if isinstance(found, GenerationReport)]
    if not all(report.is_shard for report in reports):
        # The shards that were merged are told by their accounts alone.
        records = {
            path: found
            for path, found in records.items()
            if not (isinstance(found, GenerationReport) and found.is_shard)
        }
    # A failed attempt's name carries its time, and sorts before the one that succeeded.
    accounts.sort(key=_attempts_first)
    last = {path.rpartition("/")[0]: entry for _, path, entry in accounts}
    failures = [entry for entry in last.values() if entry.failed]
    return Found(records, [entry for _, _, entry in accounts], failures, notes)


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


def _attempts_first(account: tuple[int, str, LedgerEntry]) -> tuple[int, str, bool, str]:
    rank, path, entry = account
    return rank, str(PurePosixPath(path).parent), not entry.failed, path


def _rank(step: str) -> int:
    return ORDER.index(step) if step in ORDER else len(ORDER)


def _parse(text: str, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        return None


# ---- writing -----------------------------------------------------------------------------------


def render(found: Found, account: RunLedger, status: str) -> str:
    """The summary in Markdown."""
    parts = ["# RAFT run", *_outcome(found, status)]
    own = {path: record for path, record in found.records.items() if not _is_copy(path, found)}
    trials = comparison.trials(found.records)
    if len(trials) > 1:
        parts += ["## comparison", markdown_table(comparison.table(trials))]
    else:
        parts += [
            as_markdown(description).rstrip()
            for record in own.values()
            if (description := describe(record)) is not None
        ]
    if account.stages:
        parts += ["## time and cost", markdown_table(costs(account))]
        if account.cost is None:
            parts.append(
                "*Not priced*: the price table has no entry for that hardware; a step's "
                "`--prices` replaces the table."
            )
    parts += [f"> {plain(note)}" for note in found.notes]
    return "\n\n".join(parts) + "\n"


def _is_copy(path: str, found: Found) -> bool:
    """Whether a training record lies beside the evaluation that quotes it."""
    folder, _, name = path.rpartition("/")
    return name == TrainingRecord.FILE and f"{folder}/{Evaluation.FILE}" in found.records


def _outcome(found: Found, status: str) -> Iterator[str]:
    state, message = _state(status)
    done: defaultdict[str, int] = defaultdict(int)
    for entry in found.accounts:
        done[entry.stage] += not entry.failed
    if state:
        yield f"**{plain(state.capitalize())}.**" + (f" {plain(message)}" if message else "")
    for entry in found.failures:
        yield f"**{entry.stage} failed:** {plain(entry.failed)}"
    closed = any(report.decision == "stop" for report in found.of(QuantizationReport))
    if closed and not done["eval"]:
        yield (
            "**The gate is closed:** quantize-check failed and `gate` is `stop`, so eval did not "
            "run. The adapter is there. To evaluate it all the same, run again with `gate` set to "
            "`warn`."
        )
    missing = [step for step in ORDER if not done[step] and not (closed and step == "eval")]
    if missing and found.accounts:
        yield f"Without a result: {', '.join(missing)}."


def _state(status: str) -> tuple[str, str]:
    """State and error message of Kubeflow's final status; spelled differently by its runners."""
    try:
        told = json.loads(status or "{}")
    except json.JSONDecodeError:
        return "", ""
    if not isinstance(told, dict):
        return "", ""
    error = told.get("error")
    message = error.get("message", "") if isinstance(error, dict) else ""
    return str(told.get("state", "")), str(message)
