"""Read the rows of a JSON file: a list, or one object a line, whatever the file's suffix."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

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
        file = path.open(encoding="utf-8-sig", newline="\n")
        try:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            file.seek(0)
            if first != "[":
                return "line", _lines(path, file, hint)
            with file:
                text = file.read()
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path, hint=hint) from None
    except UnicodeDecodeError:
        raise _not_text(path) from None
    try:
        rows = from_json(text)
    except ValueError as error:
        match = _LINE.search(str(error))
        line = int(match[1]) if match else None
        raise DataError(f"not JSON ({error})", path=path, line=line, hint=hint) from None
    return "row", enumerate(rows, start=1)


def fault_at(path: Path, kind: Kind, number: int, problem: str, *, hint: str = "") -> DataError:
    """An error about one entry."""
    if kind == "line":
        return DataError(problem, path=path, line=number, hint=hint)
    return DataError(f"row {number}: {problem}", path=path, hint=hint)


def _lines(path: Path, file: IO[str], hint: str) -> Iterator[tuple[int, object]]:
    # The file is open with newline="\n": U+2028 and the like in JSON text are no line ends here.
    with file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        row = from_json(line)
                    except ValueError as error:
                        raise fault_at(
                            path, "line", number, f"not JSON ({error})", hint=hint
                        ) from None
                    yield number, row
        except UnicodeDecodeError:
            raise _not_text(path) from None


def _not_text(path: Path) -> DataError:
    """The error about a file that is not UTF-8, which is read again to find the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(f"not UTF-8 text ({error.reason})", path=path, line=number)
    return DataError("not UTF-8 text", path=path)
