"""Read the documents of a corpus, one at a time.

Texts (`.txt`, `.md`, `.rst`), pages (`.html`), `.pdf` and `.docx` are one document a file. JSON
(`.json`, `.jsonl`: a list, or one object a line) gives one document a row where `--text-field`
names its text or where it is the documentation of an API call in the published RAFT form, and one
a paragraph where it has contexts in HotpotQA form; questions and answers are never looked at.

Documents are hostile: confined.py runs what is here in a process that may be killed.
"""

import os
import re
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.describe import counted
from components.core.errors import DataError, printable
from components.core.records import Document, Paragraphs, explain
from components.core.rows import fault_at, read_entries
from components.generate.restructured import to_html

MOST_UNPACKED_BYTES = 500_000_000
"""Of a .docx, which is a zip: a small one can unpack to fill any memory."""

MOST_OF_AN_API = 100_000
"""Characters of the documentation of one API call, which is one chunk."""

_BINARY = "\0"
_NOT_CONTENT = (
    "script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template", "svg",
    "iframe", "button", "select", "head",
)  # fmt: skip
_WRAPPED = 40  # characters: a shorter line was ended on purpose


class Bad(Exception):
    """A document cannot be used; the message is the reason that the report counts."""

    def __init__(self, reason: str, detail: str = "", line: int | None = None) -> None:
        super().__init__(reason)
        self.detail = detail
        self.line = line


class Api(BaseModel):
    """The documentation of one API call, as the published RAFT code takes it."""

    model_config = ConfigDict(extra="allow")

    api_name: str
    api_call: str


def find_documents(source: Path) -> Iterator[Path]:
    """All that lies in a corpus, in the order of the paths; what is hidden is passed over.

    Links are not followed, and what is no file is given too: reading it says why it cannot be.

    Raises:
        DataError: the source is missing or empty.
    """
    if not source.exists():
        raise DataError("no such file or folder", path=source, hint="Check --documents.")
    if not source.is_dir():
        yield source
        return
    found = False
    under_way = [_entries(source)]
    while under_way:
        path, is_folder = next(under_way[-1], (None, False))
        if path is None:
            under_way.pop()
        elif is_folder:
            try:
                under_way.append(_entries(path))
            except OSError:
                found = True
                yield path
        else:
            found = True
            yield path
    if not found:
        raise DataError("no documents in this folder", path=source, hint=_kinds())


def _entries(folder: Path) -> Iterator[tuple[Path, bool]]:
    """What lies in a folder, sorted, and whether it is a folder itself."""
    with os.scandir(folder) as entries:
        names = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if not entry.name.startswith(".")
        )
    return ((folder / name, is_folder) for name, is_folder in names)


def read_document(
    path: Path, root: Path, text_field: str = "", *, most_bytes: int = sys.maxsize
) -> Iterator[Document]:
    """Stream the documents of one file.

    Args:
        path: the file.
        root: the folder that ids are relative to, and that no link may leave.
        text_field: field of JSON rows that holds the text; "" for the other JSON forms.
        most_bytes: of a file that is one document, and of a document's text in UTF-8.

    Raises:
        Bad: the file cannot be used; says why.
        DataError: a row of a JSON file is malformed; names the file, and the line or row.
    """
    name = printable(path.relative_to(root).as_posix())
    suffix = path.suffix.lower()
    try:
        size = _size(path, root)
        if suffix in ROWS:
            empty = True
            for document in _read_rows(path, name, text_field):
                empty = False
                _check_length(len(document.text.encode()), most_bytes)
                if _BINARY in document.text:
                    raise Bad("binary", f"not text: {document.id} holds NUL bytes")
                yield document
            if empty:
                raise Bad("empty", "it gives no document")
            return
        if suffix not in READERS:
            kind = suffix_of(path) or "files without a suffix"
            raise Bad("of an unknown kind", f"cannot read {kind}")
        _check_length(size, most_bytes)
        read, form = READERS[suffix]
        text = _clean(read(path))
    except OSError as error:
        raise Bad("cannot be read", error.strerror or str(error)) from None
    if not text:
        raise Bad("empty", "the file is empty")
    _check_length(len(text.encode()), most_bytes)
    title = printable(path.stem.replace("_", " "))
    yield Document(id=name, title=title, text=text, form=form)


def _size(path: Path, root: Path) -> int:
    """The bytes of a file in the corpus; what is none may wait for ever, or never end.

    Raises:
        Bad: no file, or a link to one elsewhere.
        OSError: it cannot be looked at.
    """
    found = path.stat()
    if path.is_symlink():
        if stat.S_ISDIR(found.st_mode):
            raise Bad("a link to a folder", "what lies there is not read")
        if path != root and root.resolve() not in path.resolve().parents:
            raise Bad("a link out of the folder", "it leads out of --documents")
    if stat.S_ISDIR(found.st_mode):
        os.scandir(path).close()  # only one that cannot be listed comes here
    if not stat.S_ISREG(found.st_mode):
        raise Bad("no file", "a pipe, a socket, a device or the like")
    return found.st_size


def _check_length(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise Bad(
            "too large", f"{size / 1e6:,.1f} MB; --max-document-mb allows {most_bytes / 1e6:,.0f}"
        )


def bad_document(path: Path, bad: Bad) -> DataError:
    """The error about a bad document."""
    problem = f"{bad} ({bad.detail})" if bad.detail and bad.detail != str(bad) else str(bad)
    hint = f"Mend it, move it away, or give --on-bad-document skip. {_kinds()}"
    return DataError(problem, path=path, line=bad.line, hint=hint)


def bad_documents(source: Path, first: list[DataError], suffixes: Counter[str]) -> DataError:
    """The error that stops a run: the first bad documents, how many there are, of which kinds."""
    count = suffixes.total()
    if count == 1:
        return first[0]
    lines = [f"{count:,} documents cannot be used", *map(str, first)]
    if count > len(first):
        lines.append(f"and {count - len(first):,} more")
    kinds = [
        counted(number, f"{suffix} file" if suffix else "file") + " without a suffix" * (not suffix)
        for suffix, number in suffixes.most_common(5)
    ]
    if len(suffixes) > len(kinds):
        kinds.append("others")
    hint = (
        f"Mend them, move them away, or give --on-bad-document skip ({', '.join(kinds)}). "
        f"{_kinds()}"
    )
    return DataError("\n  ".join(lines), path=source, hint=hint)


def suffix_of(path: Path) -> str:
    """The kind of a file, as a message may show it."""
    return printable(path.suffix)[:100]


def _kinds() -> str:
    return f"--documents takes {', '.join((*READERS, *ROWS))} files."


# ---- one document a file -----------------------------------------------------------------------


def _clean(text: str) -> str:
    """Text with plain line ends, that can be written as UTF-8 (some PDFs hold half surrogates)."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Bad("not UTF-8 text", f"not UTF-8 text: {error.reason}", line) from None
    if _BINARY in text:
        line = text[: text.index(_BINARY)].count("\n") + 1
        raise Bad("binary", "not text: it holds NUL bytes", line)
    return text


def _read_rst(path: Path) -> str:
    source = _read_text(path)
    with _whatever_it_raises("damaged RST"):
        return _markdown(to_html(source))


def _read_html(path: Path) -> str:
    with _whatever_it_raises("damaged HTML"):
        return _markdown(path.read_bytes())


def _markdown(html: bytes) -> str:
    """The page's main part as Markdown, without navigation, scripts and links."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(html, "lxml")
    if _BINARY in page.get_text()[:1000]:
        raise Bad("binary", "not a page: it holds NUL bytes")
    body = page.find("main") or page.find("article") or page.body or page
    for element in body.find_all(_NOT_CONTENT):
        element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a", "img", "b", "strong", "i", "em"],
        escape_asterisks=False, escape_underscores=False, escape_misc=False,
    )  # fmt: skip
    text: str = converter.convert_soup(body)
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))


def _read_pdf(path: Path) -> str:
    """The text of all pages, with lines joined that were broken to fit a column."""
    from pypdf import PdfReader

    with _whatever_it_raises("damaged PDF"):
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Bad("encrypted PDF", "encrypted: it opens only with a password")
        pages = [page.extract_text() for page in reader.pages]
    if pages and not any(page.strip() for page in pages):
        raise Bad("PDF without text", "a scan: its pages are pictures; run OCR on it first")
    return "\n\n".join(_unwrapped(page) for page in pages)


@contextmanager
def _whatever_it_raises(reason: str) -> Iterator[None]:
    """What a library raises at a file is the file's fault: in bad ones, they fail in any way."""
    try:
        yield
    except (Bad, OSError, MemoryError, ModuleNotFoundError):
        raise
    except RecursionError:
        raise Bad("too deeply nested", "it holds too many things in each other") from None
    except Exception as error:
        said = printable(" ".join(str(error).split())[:200])
        raise Bad(reason, said or type(error).__name__) from None


def _unwrapped(page: str) -> str:
    """Lines that end in mid-sentence are joined with the next; short ones end on purpose."""
    lines = [line.rstrip() for line in page.splitlines()]
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        ended = len(line) < _WRAPPED or not following or line.endswith((".", ":", "!", "?"))
        if line.endswith("-") and following[:1].islower():
            text += line
        else:
            text += line + ("\n" if ended else " ")
    return text


def _read_docx(path: Path) -> str:
    """Paragraphs and tables in their order, headings and lists as Markdown."""
    import docx
    from docx.table import Table

    with _whatever_it_raises("damaged DOCX"):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_UNPACKED_BYTES:
                raise Bad("too large", f"unpacks to more than {MOST_UNPACKED_BYTES:,} bytes")
        blocks = docx.Document(str(path)).iter_inner_content()
        parts = [
            _table(block) if isinstance(block, Table) else _paragraph(block) for block in blocks
        ]
    return "\n\n".join(filter(None, parts))


def _paragraph(block: Any) -> str:
    style = (block.style.name if block.style is not None else "") or ""
    text = str(block.text).strip()
    if not text:
        return ""
    if style == "Title":
        return f"# {text}"
    if heading := re.fullmatch(r"Heading (\d)", style):
        return f"{'#' * min(6, int(heading[1]))} {text}"
    return f"- {text}" if style.startswith("List") else text


def _table(block: Any) -> str:
    """One line a row; a cell that spans columns comes once."""
    rows = [{id(cell._tc): " ".join(cell.text.split()) for cell in row.cells} for row in block.rows]
    return "\n".join(" | ".join(cells.values()) for cells in rows if any(cells.values()))


READERS: dict[str, tuple[Callable[[Path], str], str]] = {
    ".txt": (_read_text, "text"),
    ".rst": (_read_rst, "markdown"),
    ".md": (_read_text, "markdown"),
    ".markdown": (_read_text, "markdown"),
    ".html": (_read_html, "markdown"),
    ".htm": (_read_html, "markdown"),
    ".pdf": (_read_pdf, "text"),
    ".docx": (_read_docx, "markdown"),
}
"""Suffix to reader, and the form of what it gives."""

ROWS = (".json", ".jsonl")


# ---- rows of JSON ------------------------------------------------------------------------------


def _read_rows(path: Path, name: str, text_field: str) -> Iterator[Document]:
    seen: Counter[str] = Counter()
    hint = "--text-field names the field of the text; see the README for the forms without one."
    kind, rows = read_entries(path, hint=hint)
    for number, row in rows:
        try:
            if text_field:
                yield _text_row(row, name, number, text_field)
            elif isinstance(row, dict) and "api_call" in row:
                yield _api_row(Api.model_validate(row), name, number)
            else:
                yield from _paragraphs(Paragraphs.model_validate(row), name, seen)
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=hint) from None
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise fault_at(path, kind, number, str(error)) from None


def _text_row(row: object, name: str, number: int, text_field: str) -> Document:
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise ValueError(f"{text_field}: the row has no such text (--text-field)")
    text = _clean(row[text_field])
    if not text:
        raise ValueError(f"{text_field}: is empty")
    title = row.get("title")
    return Document(id=f"{name}#{number}", title=title if isinstance(title, str) else "", text=text)


def _api_row(api: Api, name: str, number: int) -> Document:
    """The fields of an API's documentation, one a line, without questions that come with it."""
    fields = api.model_dump(exclude={"Questions", "questions", "user_name"})
    text = "\n".join(f"{key}: {_plain(value)}" for key, value in fields.items())
    if len(text) > MOST_OF_AN_API:
        raise ValueError(f"longer than {MOST_OF_AN_API:,} characters, and never cut")
    return Document(id=f"{name}#{number}", title=api.api_name, text=text, form="api")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value).strip()


def _paragraphs(row: Paragraphs, name: str, seen: Counter[str]) -> Iterator[Document]:
    """One document a paragraph; a title that comes back gets a numbered id."""
    for title, sentences in row.context:
        text = "".join(sentences).strip()
        if not text:
            continue
        unused = f"{name}#{title}"
        while seen[unused]:
            seen[f"{name}#{title}"] += 1
            unused = f"{name}#{title}~{seen[f'{name}#{title}']}"
        seen[unused] = 1
        yield Document(id=unused, title=title, text=text)
