"""Read what a run has left: finished results, and the ledger of every attempt.

An artifact counts once it is finished; each failed attempt left a ledger of its own
(`ledger.failed-….json`). What cannot be read becomes a note, since a run that failed half-way has
results too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

Kind = TypeVar("Kind", bound=Record)

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

    def of(self, kind: type[Kind]) -> dict[str, Kind]:
        """The records of one kind, by their folders."""
        records = self.records.items()
        return {path.rpartition("/")[0]: one for path, one in records if isinstance(one, kind)}


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
    records: dict[str, Record] = {}
    attempts: list[tuple[str, LedgerEntry]] = []
    for folder, texts in sorted(by_folder.items()):
        # A checkpoint has a manifest as well, but is no result.
        finished = MANIFEST in texts and Run.FILE not in texts
        damaged = faults(texts, _is_read) if finished else {}
        notes += [f"{folder}/{name} {fault}." for name, fault in damaged.items()]
        kinds = KINDS if finished and MANIFEST not in damaged else {}
        # Failed attempts come in the order of the times that their names have, before the success.
        for name in sorted(texts.keys() - damaged.keys()):
            kind = KINDS[LEDGER] if name.startswith(FAILED_LEDGER) else kinds.get(name)
            try:
                record = kind.validate_json(texts[name]) if kind else None
            except ValidationError:
                notes.append(f"{folder}/{name} is of a form that this version cannot read.")
                continue
            if isinstance(record, LedgerEntry):
                attempts.append((folder, record))
            elif record and not isinstance(record, RunLedger):  # a summary's
                records[f"{folder}/{name}"] = record
    ranks = {stage: rank for rank, stage in enumerate(STAGES)}
    attempts.sort(key=lambda attempt: ranks.get(attempt[1].stage, len(ranks)))
    failures = [entry for entry in dict(attempts).values() if entry.failed]
    by_stage = sorted(records, key=lambda path: [*KINDS].index(path.rpartition("/")[2]))
    in_order = {path: records[path] for path in by_stage}
    return RunResults(in_order, [entry for _, entry in attempts], failures, notes)


def _is_read(name: str) -> bool:
    return name in (*KINDS, MANIFEST, Run.FILE) or name.startswith(FAILED_LEDGER)
