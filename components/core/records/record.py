"""The base of all records, and how they are read from JSON and JSON Lines files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.errors import DataError

OTHER_FIELDS = (
    "docs/artifacts.md shows the format. If another version of raft-pipelines wrote it, read it "
    "with that one."
)


class Record(BaseModel):
    """A record on disk: unknown fields and non-finite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


R = TypeVar("R", bound=Record)


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Stream the records of a JSON Lines file; blank lines are skipped.

    Raises:
        DataError: a line is not JSON or not a `kind`; names file and line.
    """
    try:
        lines = path.open("rb")  # pydantic decodes, and says where a line is not UTF-8
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, kind, path, number)


def read_json(path: Path, kind: type[R]) -> R:
    """Read one record from a JSON file.

    Raises:
        DataError: the file is missing, not JSON or not a `kind`.
    """
    try:
        return _parse(path.read_bytes(), kind, path)
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error


def explain(error: ValueError) -> str:
    """An error in one line; of pydantic's, the first faults by field name, without its links."""
    if not isinstance(error, ValidationError):
        return str(error)
    faults = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    rest = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + rest


def _parse(data: bytes, kind: type[R], path: Path, line: int | None = None) -> R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fields = {"extra_forbidden", "missing"} & {fault["type"] for fault in error.errors()}
        hint = OTHER_FIELDS if fields else ""
        raise DataError(explain(error), path=path, line=line, hint=hint) from error
