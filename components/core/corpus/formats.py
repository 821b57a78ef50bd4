"""The text of one file: plain text, HTML, PDF, DOCX; of the latter, structure as Markdown."""

import re
import zipfile
from pathlib import Path
from typing import Any

from components.core.corpus.unreadable import Unreadable, damaged

MAX_UNPACKED_BYTES = 500_000_000
"""Of a .docx, which is a zip: a small one can unpack to fill any memory."""

BINARY = "\0"
NOT_CONTENT = (
    "script", "style", "nav", "header", "footer", "aside", "form", "noscript", "template", "svg",
    "iframe", "button", "select", "head",
)  # fmt: skip
WRAPPED = 40  # characters: a shorter line was ended on purpose


def clean(text: str) -> str:
    """Text with plain line ends, that can be written as UTF-8 (some PDFs hold half surrogates)."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def read_text(path: Path) -> str:
    """A text file in UTF-8."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Unreadable("not UTF-8 text", error.reason, line) from error
    if BINARY in text:
        line = text[: text.index(BINARY)].count("\n") + 1
        raise Unreadable("binary", "not text: it holds NUL bytes", line)
    return text


def read_html(path: Path) -> str:
    """The main part of a page."""
    with damaged("damaged HTML"):
        return to_markdown(path.read_bytes())


def to_markdown(html: bytes) -> str:
    """The page's main part as Markdown, without navigation, scripts and links."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(html, "lxml")
    if BINARY in page.get_text()[:1000]:
        raise Unreadable("binary", "not a page: it holds NUL bytes")
    body = page.find("main") or page.find("article") or page.body or page
    for element in body.find_all(NOT_CONTENT):
        element.decompose()
    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a", "img", "b", "strong", "i", "em"],
        escape_asterisks=False, escape_underscores=False, escape_misc=False,
    )  # fmt: skip
    text: str = converter.convert_soup(body)
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))


def read_pdf(path: Path) -> str:
    """The text of all pages, with lines joined that were broken to fit a column."""
    from pypdf import PdfReader

    with damaged("damaged PDF"):
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted PDF", "encrypted: it opens only with a password")
        pages = [page.extract_text() for page in reader.pages]
    if pages and not any(page.strip() for page in pages):
        raise Unreadable("PDF without text", "a scan: its pages are pictures; run OCR on it first")
    return "\n\n".join(map(_unwrapped, pages))


def _unwrapped(page: str) -> str:
    """Lines that end in mid-sentence are joined with the next; short ones end on purpose."""
    lines = [line.rstrip() for line in page.splitlines()]
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        ended = len(line) < WRAPPED or not following or line.endswith((".", ":", "!", "?"))
        if line.endswith("-") and following[:1].islower():
            text += line
        else:
            text += line + ("\n" if ended else " ")
    return text


def read_docx(path: Path) -> str:
    """Paragraphs and tables in their order, headings and lists as Markdown."""
    import docx
    from docx.table import Table

    with damaged("damaged DOCX"):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise Unreadable("too large", f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
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
