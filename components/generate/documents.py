"""Read the documents of a corpus, one at a time.

Texts (`.txt`, `.md`) are one document a file. JSON in HotpotQA form (`.json`, `.jsonl`) gives one
document a paragraph; its questions and answers are never looked at.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from components.errors import DataError
from components.records import Document, Paragraphs, explain

TEXTS = (".txt", ".md", ".markdown")
CONTEXTS = (".json", ".jsonl")


def read_documents(source: Path) -> Iterator[Document]:
    """Stream the documents of a file, or of a folder in the order of their paths.

    Hidden files are passed over.

    Raises:
        DataError: the source is missing or empty, or a file is of an unknown kind, not UTF-8, or
            not in HotpotQA form; names the file, and the line or row.
    """
    if source.is_dir():
        files = [
            path
            for path in sorted(source.rglob("*"))
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(source).parts)
        ]
        root = source
    else:
        files, root = [source], source.parent
    if not source.exists():
        raise DataError("no such file or folder", path=source, hint="Check --documents.")
    if not files:
        raise DataError(
            "no documents in this folder",
            path=source,
            hint=f"--documents takes {', '.join((*TEXTS, *CONTEXTS))} files.",
        )
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in TEXTS:
            yield _read_text(path, name)
        elif path.suffix.lower() in CONTEXTS:
            yield from _read_contexts(path, name)
        else:
            raise DataError(
                f"cannot read {path.suffix or 'files without a suffix'}",
                path=path,
                hint=f"--documents takes {', '.join((*TEXTS, *CONTEXTS))}; move this file away.",
            )


def _read_text(path: Path, name: str) -> Document:
    text = _decode(path).strip()
    if not text:
        raise DataError("the file is empty", path=path, hint="Remove it or fill it.")
    return Document(id=name, title=path.stem.replace("_", " "), text=text)


def _read_contexts(path: Path, name: str) -> Iterator[Document]:
    """One document a paragraph; a title that comes back with other text gets a numbered id."""
    seen: set[str] = set()
    for paragraphs in _rows(path):
        for title, sentences in paragraphs.context:
            text = "".join(sentences).strip()
            if not text:
                continue
            ids = (f"{name}#{title}" + (f"~{n}" if n > 1 else "") for n in itertools.count(1))
            unused = next(id for id in ids if id not in seen)
            seen.add(unused)
            yield Document(id=unused, title=title, text=text)


def _rows(path: Path) -> Iterator[Paragraphs]:
    """The rows of a JSON list or of JSON lines, with the place of a fault in the message."""
    text = _decode(path)
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield Paragraphs.model_validate_json(line)
                except ValidationError as error:
                    raise DataError(explain(error), path=path, line=number) from None
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg})", path=path, line=error.lineno) from None
    if not isinstance(rows, list):
        raise DataError("not a JSON list of rows in HotpotQA form", path=path)
    for number, row in enumerate(rows, start=1):
        try:
            yield Paragraphs.model_validate(row)
        except ValidationError as error:
            raise DataError(f"row {number}: {explain(error)}", path=path) from None


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"not UTF-8 text ({error.reason})", path=path, line=line) from None
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from None
