"""Find the documents of a corpus and read them, one at a time.

Texts (`.txt`, `.md`, `.rst`), pages (`.html`), `.pdf` and `.docx` are one document a file. JSON
(`.json`, `.jsonl`) and tables (`.csv`, `.tsv`) give one document a row or paragraph, see `rows`.
Documents are hostile: `isolated_reader` runs this in a process that may be killed.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from components.core.corpus import formats, rst
from components.core.corpus.formats import Unreadable
from components.core.corpus.html import read_html
from components.core.corpus.pdf import read_pdf
from components.core.corpus.rows import TABLES, read_rows
from components.core.corpus.word import read_docx
from components.core.errors import DataError, printable
from components.core.records import Document

READERS: dict[str, tuple[Callable[[Path], str], str]] = {
    ".txt": (formats.read_text, "text"),
    ".rst": (rst.read_rst, "markdown"),
    ".md": (formats.read_markdown, "markdown"),
    ".mdx": (formats.read_markdown, "markdown"),
    ".markdown": (formats.read_markdown, "markdown"),
    ".html": (read_html, "markdown"),
    ".htm": (read_html, "markdown"),
    ".pdf": (read_pdf, "text"),
    ".docx": (read_docx, "markdown"),
}
"""Suffix to reader, and the form of the text."""

ROWS = (".json", ".jsonl", *TABLES)

NOT_DOCUMENTS = re.compile(r"\.|~\$|(?:eh)?thumbs\.db$|desktop\.ini$", re.IGNORECASE)
"""Hidden files, the locks that Office leaves, and what Windows keeps about a folder."""


def find_documents(source: Path) -> Iterator[Path]:
    """The files of a corpus by name, a folder's own before those of its folders; no hidden ones.

    Links are not followed, and what is no file is named too: reading it reports why it cannot be.

    Raises:
        DataError: the source is missing or empty.
        PermissionError: the source cannot be listed.
    """
    if not source.exists():
        raise DataError("no such file or folder", path=source, hint="Check --documents.")
    if source.is_dir():
        os.scandir(source).close()  # --documents itself, where this user may not list it
    path = None
    for path in _walk(source) if source.is_dir() else [source]:
        yield path
    if path is None:
        raise DataError("no documents in this folder", path=source, hint=_kinds())


def _walk(source: Path) -> Iterator[Path]:
    errors: list[OSError] = []
    for folder, subfolders, files in os.walk(source, onerror=errors.append):
        # Path.is_symlink raises at a path that is too long.
        links = {name for name in subfolders if os.path.islink(f"{folder}/{name}")}  # noqa: PTH114
        for name in sorted({*files, *links}):
            if not NOT_DOCUMENTS.match(name):
                yield Path(folder) / name
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    yield from (Path(os.fsdecode(error.filename)) for error in errors)


def read_document(
    path: Path, root: Path, text_field: str = "", *, max_bytes: int = sys.maxsize
) -> Iterator[Document]:
    """Stream the documents of one file.

    Args:
        path: the file.
        root: the folder that ids are relative to, and that no link may leave.
        text_field: field of JSON rows that holds the text; "" for the other JSON forms.
        max_bytes: of a file that is one document, and of a document's text in UTF-8.

    Raises:
        Unreadable: the file cannot be used; states why.
    """
    name = printable(path.relative_to(root).as_posix())
    suffix = path.suffix.lower()
    try:
        size = _size(path, root)
        if suffix in ROWS:
            for document in read_rows(path, name, text_field):
                _check_length(len(document.text.encode()), max_bytes)
                yield document
            return
        if suffix not in READERS:
            kind = printable(path.suffix)[:100] or "files without a suffix"
            raise Unreadable("of an unknown kind", f"cannot read {kind}")
        _check_length(size, max_bytes)
        read, form = READERS[suffix]
        text = formats.clean(read(path))
    except (Unreadable, MemoryError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise Unreadable("cannot be read", error.strerror or str(error)) from error
    except RecursionError:
        raise Unreadable("too deeply nested", "the reader's depth limit is exceeded") from None
    except Exception as error:  # at bad files, libraries fail in any way
        message = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        raise Unreadable(f"damaged {suffix[1:].upper()}", message) from error
    if not text:
        raise Unreadable("empty", "the file is empty")
    _check_length(len(text.encode()), max_bytes)
    title = printable(path.stem.replace("_", " "))
    yield Document(id=name, title=title, text=text, form=form)


def _size(path: Path, root: Path) -> int:
    """The bytes of a file in the corpus; a pipe or device may block, or never end.

    Raises:
        Unreadable: no file, or a link to one elsewhere.
        OSError: it cannot be looked at.
    """
    status = path.stat()
    if path.is_symlink():
        if stat.S_ISDIR(status.st_mode):
            raise Unreadable("a link to a folder", "links to folders are not followed")
        if path != root and root.resolve() not in path.resolve().parents:
            raise Unreadable("a link out of the folder", "it leads out of --documents")
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # only one that cannot be listed comes here
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("no file", "a pipe, a socket, a device or the like")
    return status.st_size


def _check_length(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        allowed = f"--max-document-mb allows {max_bytes / 1e6:,.0f}"
        raise Unreadable("too large", f"{size / 1e6:,.1f} MB; {allowed}")


def unreadable_documents(source: Path, first: list[DataError], count: int) -> DataError:
    """The error that stops a run: the first bad documents, and how many there are."""
    if count == 1:
        return first[0]
    lines = [f"{count:,} documents cannot be used", *map(str, first)]
    if count > len(first):
        lines.append(f"and {count - len(first):,} more")
    hint = f"Correct them, move them away, or pass --on-bad-document skip. {_kinds()}"
    return DataError("\n  ".join(lines), path=source, hint=hint)


def unreadable_document(path: Path, error: Unreadable) -> DataError:
    """The error about one bad document."""
    hint = error.hint or f"Correct it, move it away, or pass --on-bad-document skip. {_kinds()}"
    return DataError(error.problem, path=path, line=error.line, hint=hint)


def digest(text: str) -> bytes:
    """The same for texts whose words are the same, whatever their case and white space."""
    words = " ".join(text.split()).casefold().encode("utf-8", "replace")
    return blake2b(words, digest_size=8).digest()


def _kinds() -> str:
    return f"--documents takes {', '.join((*READERS, *ROWS))} files."
