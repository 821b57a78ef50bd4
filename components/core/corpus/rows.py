"""Documents in rows: JSON, as a list or one object a line, and tables in CSV or TSV.

A row is a document if `--text-field` names its text, or if it documents an API call in the
published RAFT form; a row with contexts in HotpotQA format is one document a paragraph. Questions
and answers are never looked at. A table's row is a document in any case, by default of all columns.
"""

import csv
import io
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.core.corpus.formats import BINARY, Unreadable, clean, read_text
from components.core.errors import DataError
from components.core.json_entries import Kind, fault_at, read_entries
from components.core.records import Document, Paragraphs, explain

MAX_API_CHARACTERS = 100_000
"""Of the documentation of one API call, which is one chunk."""

TABLES = (".csv", ".tsv")
ALL_COLUMNS = "text"

HINT = "--text-field names the field of the text; docs/documents.md lists the formats without one."


class Api(BaseModel):
    """The documentation of one API call, as the published RAFT code takes it."""

    model_config = ConfigDict(extra="allow")

    api_name: str
    api_call: str


def read_rows(path: Path, name: str, text_field: str) -> Iterator[Document]:
    """Stream the documents of a file; their ids begin with its name.

    Raises:
        Unreadable: a row is malformed, or there is none; names the line or row.
    """
    document = None
    try:
        kind: Kind = "line"
        if path.suffix.lower() in TABLES:
            rows = _table(path, text_field)
            text_field = text_field or ALL_COLUMNS
        else:
            kind, rows = read_entries(path, hint=HINT)
        for number, row in rows:
            try:
                documents = _documents(row, f"{name}#{number}", text_field)
            except ValueError as error:
                raise fault_at(path, kind, number, explain(error), hint=HINT) from error
            for document in documents:
                if BINARY in document.text:
                    raise Unreadable("binary", f"not text: {document.id} holds NUL bytes")
                yield document
    except DataError as error:
        raise Unreadable(
            "malformed rows", line=error.line, problem=error.problem, hint=error.hint
        ) from error
    if document is None:
        raise Unreadable("empty", "it holds no document")


def _table(path: Path, text_field: str) -> Iterator[tuple[int, object]]:
    """The rows of a table, whose first line names its columns: a title, and the text."""
    reader = _reader(read_text(path), tabs=path.suffix.lower() == ".tsv")
    line = 1
    try:
        names = [name.strip() for name in next(filter(None, reader), [])]
        if text_field and text_field not in names:
            raise Unreadable("malformed rows", f"no column {text_field!r} in {names[:20]}", line)
        while True:
            line = reader.line_num + 1
            if (cells := next(reader, None)) is None:
                return
            if any(cells[len(names) :]):
                detail = f"{len(cells)} columns, but {len(names)} names in the first line"
                raise Unreadable("malformed rows", detail, line)
            row = [(name, cell) for name, cell in zip(names, cells, strict=False) if cell.strip()]
            if row:
                columns = dict(reversed(row))
                everything = "\n".join(f"{name}: {cell}" if name else cell for name, cell in row)
                text = columns.get(text_field, "") if text_field else everything
                title = columns.get("title", "")
                yield line, {"title": title, text_field or ALL_COLUMNS: text}
    except csv.Error as error:
        raise Unreadable("malformed rows", str(error), line) from error


def _reader(text: str, *, tabs: bool) -> Any:
    """A reader of CSV; of values between tabs, which may be quoted or just hold quotation marks."""
    csv.field_size_limit(sys.maxsize)
    first = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    # Spreadsheets write what their country puts between the items of a list; one column has none.
    delimiter = "\t" if tabs else max(",;\t|", key=first.count)
    form: dict[str, Any] = {"delimiter": delimiter if delimiter in first else "\x1f"}
    form |= {"skipinitialspace": True, "strict": True}
    if tabs:
        try:
            deque(csv.reader(io.StringIO(text, newline=""), **form), maxlen=0)
        except csv.Error:
            form["quoting"] = csv.QUOTE_NONE
    return csv.reader(io.StringIO(text, newline=""), **form)


def _documents(row: object, id: str, text_field: str) -> list[Document]:
    if text_field:
        return [_text_row(row, id, text_field)]
    if isinstance(row, dict) and "api_call" in row:
        return [_api_row(Api.model_validate(row), id)]
    paragraphs = enumerate(Paragraphs.model_validate(row).context, start=1)
    return [
        Document(id=f"{id}.{place}", title=title, text=text)
        for place, (title, sentences) in paragraphs
        if (text := "".join(sentences).strip())
    ]


def _text_row(row: object, id: str, text_field: str) -> Document:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise ValueError(f"{text_field}: the row has no such text (--text-field)")
    text = clean(row[text_field])
    if not text:
        raise ValueError(f"{text_field}: is empty")
    title = row.get("title")
    return Document(id=id, title=title if isinstance(title, str) else "", text=text)


def _api_row(api: Api, id: str) -> Document:
    """The fields of an API's documentation, one a line, without questions that come with it."""
    fields = api.model_dump(exclude={"Questions", "questions", "user_name"})
    text = "\n".join(f"{key}: {_plain(value)}" for key, value in fields.items())
    if len(text) > MAX_API_CHARACTERS:
        raise ValueError(f"longer than {MAX_API_CHARACTERS:,} characters, and never cut")
    return Document(id=id, title=api.api_name, text=text, form="api")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value).strip()
