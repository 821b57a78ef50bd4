"""Documents in JSON: a list, or one object a line.

A row is a document if `--text-field` names its text, or if it documents an API call in the
published RAFT form; a row with contexts in HotpotQA format is one document a paragraph. Questions
and answers are never looked at.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.corpus.formats import BINARY, clean
from components.core.corpus.unreadable import Unreadable
from components.core.errors import DataError
from components.core.records import Document, Paragraphs, explain
from components.core.rows import fault_at, read_entries

MAX_API_CHARACTERS = 100_000
"""Of the documentation of one API call, which is one chunk."""

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
        for document in _documents(path, name, text_field):
            if BINARY in document.text:
                raise Unreadable("binary", f"not text: {document.id} holds NUL bytes")
            yield document
    except DataError as error:
        raise Unreadable(
            "malformed rows", line=error.line, problem=error.problem, hint=error.hint
        ) from error
    if document is None:
        raise Unreadable("empty", "it holds no document")


def _documents(path: Path, name: str, text_field: str) -> Iterator[Document]:
    titles: Counter[str] = Counter()
    kind, rows = read_entries(path, hint=HINT)
    for number, row in rows:
        try:
            if text_field:
                yield _text_row(row, f"{name}#{number}", text_field)
            elif isinstance(row, dict) and "api_call" in row:
                yield _api_row(Api.model_validate(row), f"{name}#{number}")
            else:
                yield from _paragraphs(Paragraphs.model_validate(row), name, titles)
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=HINT) from error
        except ValueError as error:
            raise fault_at(path, kind, number, str(error)) from error


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


def _paragraphs(row: Paragraphs, name: str, titles: Counter[str]) -> Iterator[Document]:
    """One document a paragraph; a title that comes back gets a numbered id."""
    for title, sentences in row.context:
        text = "".join(sentences).strip()
        if not text:
            continue
        unused = f"{name}#{title}"
        while titles[unused]:
            titles[f"{name}#{title}"] += 1
            unused = f"{name}#{title}~{titles[f'{name}#{title}']}"
        titles[unused] = 1
        yield Document(id=unused, title=title, text=text)
