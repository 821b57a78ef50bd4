"""Read records from JSON and JSON Lines files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from components.core.errors import DataError, printable
from components.core.records.record import explain
from components.core.records.rows import RaftRow

R = TypeVar("R", bound=BaseModel)

FOREIGN = 3
"""A row that lacks this many required fields is another tool's, such as HotpotQA's, not damaged."""


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Stream the records of a JSON Lines file; blank lines are skipped.

    Raises:
        DataError: a line is not JSON or not a `kind`; names file and line.
    """
    try:
        lines = path.open("rb")  # pydantic decodes, and says where a line is not UTF-8
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = kind.model_validate_json(line)
                except ValidationError as error:
                    raise _malformed(error, path, kind, number) from None
                yield record


def read_json(path: Path, kind: type[R]) -> R:
    """Read one record from a JSON file.

    Raises:
        DataError: the file is missing, not JSON or not a `kind`.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from None
    except ValidationError as error:
        raise _malformed(error, path, kind) from None


def _malformed(
    error: ValidationError, path: Path, kind: type[BaseModel], line: int | None = None
) -> DataError:
    """The error for a record; unknown or missing fields may be those of another version."""
    missing = [fault for fault in error.errors() if fault["type"] == "missing"]
    if kind is RaftRow and len(missing) >= FOREIGN and isinstance(missing[0]["input"], dict):
        columns = [printable(name)[:40] for name in missing[0]["input"]]
        expected = [name for name, field in kind.model_fields.items() if field.is_required()]
        return DataError(
            f"these are not RAFT rows (found: {', '.join(columns[:8])}"
            f"{', …' * (len(columns) > 8)}; expected: {', '.join(expected)})",
            path=path,
            line=line,
            hint="raft generate writes such rows; docs/artifacts.md shows their format.",
        )
    fields = {"extra_forbidden", "missing"} & {fault["type"] for fault in error.errors()}
    hint = "If another version of raft-pipelines wrote it, read it with that one." * bool(fields)
    return DataError(explain(error), path=path, line=line, hint=hint)
