"""Read what a run has left: finished results, and the ledger of every attempt.

An artifact counts once it is finished; each failed attempt left a ledger of its own
(`ledger.failed-….json`). What cannot be read becomes a note, since a run that failed half-way has
results too.
"""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from components.core.errors import StorageError
from components.core.ledger import LedgerEntry, RunLedger
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    Run,
    TrainingRecord,
)
from components.core.storage import LEDGER, MANIFEST, faults, find

FAILED_LEDGER = "ledger.failed-"
STAGES = ("generate", "train", "quantize-check", "eval")
KINDS: dict[str, type[BaseModel]] = {
    kind.FILE: kind for kind in (GenerationReport, TrainingRecord, QuantizationReport, Evaluation)
}
STAGE_OF = dict(zip(KINDS, STAGES, strict=True))

R = TypeVar("R", bound=BaseModel)


class RunResults(NamedTuple):
    """Everything of a run that could be read.

    records: by path. entries: of the ledger, one for every attempt of every stage. failures: the
    last attempt of every step that never succeeded. notes: what could not be read.
    """

    records: dict[str, BaseModel]
    entries: list[LedgerEntry]
    failures: list[LedgerEntry]
    notes: list[str]


def read(folders: tuple[str, ...]) -> RunResults:
    """The finished results and all ledgers under the folders, in the order of the stages."""
    texts: dict[str, str] = {}
    notes = []
    for folder in folders:
        try:
            texts |= dict(find(folder, _is_read))
        except StorageError as error:
            notes.append(f"{error} {error.hint}".strip())
    texts, finished, damaged = _check(texts)
    notes += damaged
    records: dict[str, BaseModel] = {}
    ledgers: dict[str, LedgerEntry] = {}
    for path, text in sorted(texts.items(), key=lambda item: _stage_first(item[0])):
        folder, _, name = path.rpartition("/")
        if name.startswith(FAILED_LEDGER) or (name == LEDGER and folder in finished):
            entry = _parse(text, LedgerEntry)
            if entry is not None:
                ledgers[path] = entry
            elif _parse(text, RunLedger) is None:  # a summary writes one, too
                notes.append(f"{path} is not a {LedgerEntry.__name__}.")
        elif name in KINDS and folder in finished:
            record = _parse(text, KINDS[name])
            if record is None:
                notes.append(f"{path} is no {KINDS[name].__name__} that this version can read.")
            else:
                records[path] = record
    # The name of a failed attempt's ledger has its time, so attempts sort by it; success is last.
    attempts = sorted(ledgers, key=lambda path: _attempts_first(path, ledgers[path]))
    last = {path.rpartition("/")[0]: ledgers[path] for path in attempts}
    failures = [entry for entry in last.values() if entry.failed]
    return RunResults(
        _without_merged_shards(records), [ledgers[path] for path in attempts], failures, notes
    )


def _without_merged_shards(records: dict[str, BaseModel]) -> dict[str, BaseModel]:
    """Where shards were merged, only the merged dataset is a result."""
    shards = {
        path: record.is_shard
        for path, record in records.items()
        if isinstance(record, GenerationReport)
    }
    if all(shards.values()):
        return records
    return {path: record for path, record in records.items() if not shards.get(path)}


def _check(texts: dict[str, str]) -> tuple[dict[str, str], set[str], list[str]]:
    """The undamaged texts, the finished folders, and a note on each damaged file."""
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for path, text in texts.items():
        folder, _, name = path.rpartition("/")
        by_folder[folder][name] = text
    # A checkpoint has a manifest as well, but is no result.
    finished = {
        folder for folder, names in by_folder.items() if MANIFEST in names and Run.FILE not in names
    }
    damaged = {
        f"{folder}/{name}": fault
        for folder in sorted(finished)
        for name, fault in faults(by_folder[folder], _is_read).items()
    }
    return (
        {path: text for path, text in texts.items() if path not in damaged},
        {folder for folder in finished if f"{folder}/{MANIFEST}" not in damaged},
        [f"{path} {fault}." for path, fault in damaged.items()],
    )


def _is_read(name: str) -> bool:
    return name in (*KINDS, LEDGER, MANIFEST, Run.FILE) or name.startswith(FAILED_LEDGER)


def _stage_first(path: str) -> tuple[int, str]:
    return _rank(STAGE_OF.get(PurePosixPath(path).name, "")), path


def _attempts_first(path: str, entry: LedgerEntry) -> tuple[int, str, bool, str]:
    return _rank(entry.stage), str(PurePosixPath(path).parent), not entry.failed, path


def _rank(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _parse(text: str, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        return None
