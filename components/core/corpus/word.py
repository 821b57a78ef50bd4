"""The text of a DOCX as Word shows it with all changes accepted, structure as Markdown.

python-docx opens the file and knows its styles; its own text lacks what is in tracked changes,
content controls, fields, text boxes and notes, so the XML is read here, element by element.
Headers, footers, comments and the table of contents are not read.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from components.core.corpus.formats import Unreadable
from components.core.corpus.html import to_markdown

MAX_UNPACKED_BYTES = 500_000_000
"""Of a .docx, which is a zip: a small one can unpack to fill any memory."""

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
NOT_SHOWN = {
    f"{W}del", f"{W}moveFrom", f"{W}pPr", f"{W}rPr", f"{W}sdtPr", f"{W}rt",
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
}  # fmt: skip
"""Deleted text, text before it was moved, properties, reading aids, and what comes twice."""

CHARACTERS = {
    f"{W}tab": "\t", f"{W}ptab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-",
}  # fmt: skip

SYMBOLS = {
    "Symbol": dict(
        zip(
            b"ABGDEZHQIKLMNXOPRSTUFCYWabgdezhqiklmnxoprstufcyw\xa3\xa5\xae\xb0\xb1\xb3\xb4\xb8\xb9\xbb",
            "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩαβγδεζηθικλμνξοπρστυφχψω≤∞→°±≥×÷≠≈",
            strict=True,
        )
    ),
    "Wingdings": dict(zip(b"\x6f\xa8\xe0\xfc\xfe", "☐☐→✓☑", strict=True)),
}
"""The commonest characters of fonts that are no Unicode."""


def read_docx(file: Path | IO[bytes]) -> str:
    """Paragraphs and tables in their order, headings and lists as Markdown."""
    import docx
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.part import Part, PartFactory

    # Embedded documents are files, which the library would take for XML; pictures are not read.
    PartFactory.part_class_selector = lambda content, relation: (
        Part if relation == RELATIONSHIP_TYPE.A_F_CHUNK else None
    )
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
            raise Unreadable("too large", f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    document = docx.Document(str(file) if isinstance(file, Path) else file)
    reader = _Reader(document)
    return "\n\n".join([*reader.blocks(document.element.body), reader.begun])


class _Reader:
    """Reads one document: knows its styles, its notes, and a paragraph whose end was deleted."""

    def __init__(self, document: Any) -> None:
        from docx.oxml import parse_xml

        self.parts = document.part.rels
        self.styles = {style.style_id: style for style in document.styles}
        self.notes: dict[tuple[str, str | None], Any] = {}
        self.begun = ""
        for relation in self.parts.values():
            kind = relation.reltype.rpartition("/")[2]
            if kind in ("footnotes", "endnotes"):
                for note in parse_xml(relation.target_part.blob):
                    self.notes[f"{W}{kind[:-1]}Reference", note.get(f"{W}id")] = note

    def blocks(self, parent: Any, *, plain: bool = False) -> Iterator[str]:
        """The paragraphs and tables in an element that have text; `plain`: without Markdown."""
        for element in parent:
            if element.tag == f"{W}p":
                yield from self._paragraph(element, plain=plain)
            elif element.tag == f"{W}tbl":
                yield from filter(None, ["\n".join(self._rows(element))])
            elif element.tag == f"{W}altChunk":
                yield self._embedded(element)
            elif element.tag not in NOT_SHOWN:
                yield from self.blocks(element, plain=plain)

    def _paragraph(self, element: Any, *, plain: bool) -> Iterator[str]:
        """A paragraph, then the text boxes and notes that are anchored in it."""
        inner: list[Any] = []
        text = self.begun + "".join(self._text(element, inner))
        self.begun = ""
        if _has(element, "pPr", "rPr", "del") or _has(element, "pPr", "rPr", "moveFrom"):
            self.begun = text  # the next paragraph continues it
        elif text.strip() and not self._style(element).startswith("toc "):
            yield text.strip() if plain else self._styled(element, text.strip())
        for box in inner:
            yield from self.blocks(box, plain=plain)

    def _text(self, parent: Any, inner: list[Any]) -> Iterator[str]:
        for element in parent:
            tag = element.tag
            if tag in NOT_SHOWN or (tag == f"{W}r" and _has(element, "rPr", "vanish")):
                continue
            if tag == f"{W}t":
                yield element.text or ""
            elif tag == f"{W}sym":
                yield _symbol(element)
            elif tag == f"{W}txbxContent":
                inner.append(element)
            elif (note := self.notes.pop((tag, element.get(f"{W}id")), None)) is not None:
                inner.append(note)  # once: a note may refer to itself
            elif tag in CHARACTERS:
                yield CHARACTERS[tag]
            else:
                yield from self._text(element, inner)

    def _style(self, element: Any) -> str:
        named = element.find(f"{W}pPr/{W}pStyle")
        style = self.styles.get(named.get(f"{W}val")) if named is not None else None
        return style.name or "" if style is not None else ""

    def _styled(self, element: Any, text: str) -> str:
        name = self._style(element)
        if name == "Title":
            return f"# {text}"
        if heading := re.fullmatch(r"Heading (\d)", name):
            return f"{'#' * min(6, int(heading[1]))} {text}"
        listed = _has(element, "pPr", "numPr", "numId") or name.startswith("List")
        return f"- {text}" if listed else text

    def _rows(self, table: Any) -> Iterator[str]:
        """One line a row; a cell that spans columns comes once, one that spans rows in each."""
        above: dict[int, str] = {}
        for row in _inside(table, "tr"):
            if _has(row, "trPr", "del"):
                continue
            column, texts = 0, []
            for cell in _inside(row, "tc"):
                merged = cell.find(f"{W}tcPr/{W}vMerge")
                if merged is None or merged.get(f"{W}val") == "restart":
                    blocks = self.blocks(cell, plain=True)
                    above[column] = " ".join(" ".join(block.split()) for block in blocks)
                texts.append(above.setdefault(column, ""))
                span = cell.find(f"{W}tcPr/{W}gridSpan")
                column += int(span.get(f"{W}val")) if span is not None else 1
            if any(texts):
                yield " | ".join(texts)

    def _embedded(self, element: Any) -> str:
        """Another document, which Word shows in this place."""
        part = self.parts[element.get(RELATION)].target_part
        if "html" in part.content_type:
            return to_markdown(part.blob)
        if "wordprocessingml" in part.content_type:
            return read_docx(io.BytesIO(part.blob))
        raise Unreadable(
            "embedded document of an unknown kind", f"{part.content_type}; save it in Word first"
        )


def _has(element: Any, *names: str) -> bool:
    """Whether a property is there and not switched off."""
    switch = element.find("/".join(f"{W}{name}" for name in names))
    return switch is not None and switch.get(f"{W}val") not in ("0", "false", "off")


def _inside(parent: Any, name: str) -> Iterator[Any]:
    """Rows of a table or cells of a row; content controls and the like may stand around them."""
    for element in parent:
        if element.tag == f"{W}{name}":
            yield element
        elif element.tag not in NOT_SHOWN:
            yield from _inside(element, name)


def _symbol(element: Any) -> str:
    """A character of a symbol font; empty if we do not know it."""
    code = int(element.get(f"{W}char"), 16)
    if not 0xF000 <= code <= 0xF0FF:
        return chr(code)
    code -= 0xF000
    known = SYMBOLS.get(element.get(f"{W}font"), {})
    return known.get(code, chr(code) if code < 0x7F else "")
