"""Read what a run has left: finished results, and the ledger of every attempt.

An artifact counts once it is finished; each failed attempt left a ledger of its own
(`ledger.failed-….json`). What cannot be read becomes a note, since a run that failed half-way has
results too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from components.core.errors import StorageError
from components.core.kubeflow import results_folder
from components.core.ledger import LedgerEntry, RunLedger
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    Record,
    Run,
    TrainingRecord,
)
from components.core.storage import LEDGER, MANIFEST, faults, find, is_artifact, put

FAILED_LEDGER = "ledger.failed-"
STAGES = ("generate", "train", "quantize-check", "eval")
KINDS: dict[str, TypeAdapter[Any]] = {
    GenerationReport.FILE: TypeAdapter(GenerationReport),
    TrainingRecord.FILE: TypeAdapter(TrainingRecord),
    QuantizationReport.FILE: TypeAdapter(QuantizationReport),
    Evaluation.FILE: TypeAdapter(Evaluation),
    LEDGER: TypeAdapter(LedgerEntry | RunLedger),
}
"""What is read of a finished artifact: the results in the order of their stages."""


class RunResults(NamedTuple):
    """Everything of a run that could be read.

    records: by path. entries: of the ledger, one for every attempt of every stage. failures: the
    last attempt of every step that never succeeded. notes: what could not be read.
    """

    records: dict[str, Record]
    entries: list[LedgerEntry]
    failures: list[LedgerEntry]
    notes: list[str]


def read_runs(folders: Iterable[str], state: str) -> RunResults:
    """The same as `read`, of runs whose results may be copies below `state`."""
    return read({results_folder(folder, state) or folder: folder for folder in folders})


def copy_results(artifact: Path, target: str) -> None:
    """Copy what `read` reads of a finished artifact, its manifest last."""
    if is_artifact(str(artifact)):
        for name in (*KINDS, MANIFEST):
            if (artifact / name).is_file():
                put((artifact / name).read_text(encoding="utf-8"), f"{target}/{name}")


def read(folders: Iterable[str] | Mapping[str, str]) -> RunResults:
    """The finished results and all ledgers under the folders, in the order of the stages.

    Args:
        folders: local or `gs://`, read at any depth; of a copy, with the folder it is a copy of,
            whose name the results have.
    """
    named = folders if isinstance(folders, Mapping) else {folder: folder for folder in folders}
    by_folder: defaultdict[str, dict[str, str]] = defaultdict(dict)
    notes = []
    for location, known_as in named.items():
        try:
            for path, text in find(location, _is_read):
                inside, _, name = path.removeprefix(location.rstrip("/")).rpartition("/")
                by_folder[known_as.rstrip("/") + inside][name] = text
        except StorageError as error:
            where = f"The results are below {location}. " if "://" in location else ""
            notes.append(f"{where}{error} {error.hint}".strip())
    results: list[tuple[int, str, Record]] = []
    attempts: list[tuple[int, str, bool, str, LedgerEntry]] = []
    for folder, texts in sorted(by_folder.items()):
        # A checkpoint has a manifest as well, but is no result.
        finished = MANIFEST in texts and Run.FILE not in texts
        damaged = faults(texts, _is_read) if finished else {}
        notes += [f"{folder}/{name} {fault}." for name, fault in damaged.items()]
        kinds = KINDS if finished and MANIFEST not in damaged else {}
        for name in sorted(texts.keys() - damaged.keys()):
            failed = name.startswith(FAILED_LEDGER)
            kind = KINDS[LEDGER] if failed else kinds.get(name)
            try:
                record = kind.validate_json(texts[name]) if kind else None
            except ValidationError:
                notes.append(f"{folder}/{name} is of a form that this version cannot read.")
                continue
            if isinstance(record, LedgerEntry):
                attempts.append((_rank(record.stage), folder, not failed, name, record))
            elif record and not isinstance(record, RunLedger):  # a summary's
                results.append(([*KINDS].index(name), f"{folder}/{name}", record))
    # The name of a failed attempt's ledger has its time, so attempts sort by it; success is last.
    attempts.sort(key=lambda attempt: attempt[:4])
    last = {folder: entry for _, folder, _, _, entry in attempts}
    records = {path: record for _, path, record in sorted(results, key=lambda result: result[:2])}
    failures = [entry for entry in last.values() if entry.failed]
    return RunResults(records, [entry for *_, entry in attempts], failures, notes)


def _is_read(name: str) -> bool:
    return name in (*KINDS, MANIFEST, Run.FILE) or name.startswith(FAILED_LEDGER)


def _rank(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
