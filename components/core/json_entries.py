"""Read the entries of a JSON file: a list, or one object a line, whatever the file's suffix."""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic_core import from_json

from components.core.errors import DataError

Kind = Literal["row", "line"]
"""What a file's entries are called: rows of a list, or lines."""

_LINE = re.compile(r"line (\d+)")


def read_entries(
    path: Path, *, hint: str = "", bad: list[DataError] | None = None, keyed: bool = False
) -> tuple[Kind, Iterator[tuple[int, object]]]:
    """What a file's entries are, and each entry with its number, counted from 1.

    A file that begins with `[` is a list and is read at once; any other is read line by line.

    Args:
        path: the file.
        hint: of errors.
        bad: takes the errors of lines that are not JSON, if they are not to be raised.
        keyed: the file may be one object of rows by their id, which becomes a field of each.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or not JSON; names the line.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if _content(line)), b"")
            listed = _content(first).startswith(b"[")
            if not listed and not (keyed and _begins_keyed_rows(_content(first))):
                return "line", _lines(path, hint, bad)
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path, hint=hint) from error
    entries = _parse(path, data, hint)
    if isinstance(entries, dict):
        values = entries.items()
        entries = [{"id": key, **row} if isinstance(row, dict) else row for key, row in values]
    return "row", enumerate(entries, start=1)


def _begins_keyed_rows(line: bytes) -> bool:
    """Whether a first line begins an object of rows, and is no row itself."""
    try:
        row = from_json(line)
    except ValueError:  # it goes on in the next line
        return True
    return isinstance(row, dict) and all(isinstance(value, dict) for value in row.values())


def fault_at(path: Path, kind: Kind, number: int, problem: str, *, hint: str = "") -> DataError:
    """An error about one entry."""
    if kind == "line":
        return DataError(problem, path=path, line=number, hint=hint)
    return DataError(f"row {number}: {problem}", path=path, hint=hint)


def _lines(path: Path, hint: str, bad: list[DataError] | None) -> Iterator[tuple[int, object]]:
    # As bytes: the lines of text would also end at U+2028 and the like, which JSON may contain.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not _content(line):
                continue
            try:
                entry = _parse(path, line, hint, number)
            except DataError as error:
                if bad is None:
                    raise
                bad.append(error)
            else:
                yield number, entry


def _content(line: bytes) -> bytes:
    return line.removeprefix(BOM_UTF8).strip()


def _parse(path: Path, data: bytes, hint: str, line: int | None = None) -> Any:
    try:
        return from_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = line or data.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 text ({error.reason})", path=path, line=line) from error
    except ValueError as error:
        match = _LINE.search(str(error))
        line = line or (int(match[1]) if match else None)
        raise DataError(f"not JSON ({error})", path=path, line=line, hint=hint) from error
