"""Read the rows of a JSON file: a list, or one object a line, whatever the file's suffix."""

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


def read_entries(path: Path, *, hint: str = "") -> tuple[Kind, Iterator[tuple[int, object]]]:
    """What a file's entries are, and each entry with its number, counted from 1.

    A file that begins with `[` is a list and is read at once; any other is read line by line.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or not JSON; names the line.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if _content(line)), b"")
            if not _content(first).startswith(b"["):
                return "line", _lines(path, hint)
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path, hint=hint) from None
    return "row", enumerate(_parse(path, data, hint), start=1)


def fault_at(path: Path, kind: Kind, number: int, problem: str, *, hint: str = "") -> DataError:
    """An error about one entry."""
    if kind == "line":
        return DataError(problem, path=path, line=number, hint=hint)
    return DataError(f"row {number}: {problem}", path=path, hint=hint)


def _lines(path: Path, hint: str) -> Iterator[tuple[int, object]]:
    # As bytes: the lines of text would also end at U+2028 and the like, which JSON may contain.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if _content(line):
                yield number, _parse(path, line, hint, number)


def _content(line: bytes) -> bytes:
    return line.removeprefix(BOM_UTF8).strip()


def _parse(path: Path, data: bytes, hint: str, line: int | None = None) -> Any:
    try:
        return from_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = line or data.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 text ({error.reason})", path=path, line=line) from None
    except ValueError as error:
        match = _LINE.search(str(error))
        line = line or (int(match[1]) if match else None)
        raise DataError(f"not JSON ({error})", path=path, line=line, hint=hint) from None
