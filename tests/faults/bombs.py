"""Documents that are bombs, or broken on purpose; each with the reason for which it is omitted.

Small here; `pages` and the like say how large they are when they are unpacked.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Callable

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
CONTENT = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)


# ---- PDF ---------------------------------------------------------------------------------------


def pdf(objects: list[bytes]) -> bytes:
    """A PDF of these objects; the first is the root."""
    data, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return data + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n"
        b"%%%%EOF\n" % (len(objects) + 1, table, len(objects) + 1, len(data))
    )


def stream(entries: bytes, data: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(data), data)


def page(content: bytes, *more: bytes, fonts: bytes = b"/Font << /F 5 0 R >>") -> bytes:
    """A PDF of one page with this content stream; `more` are objects from 6 on."""
    return pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << "
        + fonts + b" /XObject << /X 6 0 R >> >> >>",
        content,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *more,
    ])  # fmt: skip


def deflated(block: bytes, times: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(block) for _ in range(times)) + packer.flush()


def form(content: bytes, inner: int) -> bytes:
    """A form that can show another one as X."""
    resources = b"/Resources << /XObject << /X %d 0 R >> >>" % inner
    return stream(b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] " + resources, content)


def page_tree(depth: int) -> bytes:
    """Two to the power of `depth` pages, which are all the same."""
    nodes = [
        b"<< /Type /Pages /Count %d /Kids [%d 0 R %d 0 R] >>" % (2 ** (depth - n), n + 3, n + 3)
        for n in range(depth)
    ]
    return pdf([b"<< /Type /Catalog /Pages 2 0 R >>", *nodes, b"<< /Type /Page >>"])


# ---- DOCX --------------------------------------------------------------------------------------


def docx(
    body: str,
    *,
    before: str = "",
    document: str = "",
    types: str = "",
    parts: dict[str, str | bytes] | None = None,
) -> bytes:
    """A DOCX with this body; `before` stands between its declaration and its root.

    `parts` are notes and comments (`footnotes` and the like: XML), and embedded documents (their
    type: bytes); their ids are part0, part1 and so on.
    """
    document = document or (
        f'<?xml version="1.0"?>{before}<w:document xmlns:w="{WORD}" xmlns:r="{RELATIONS}"><w:body>'
        f"{body}</w:body></w:document>"
    )
    files: dict[str, tuple[str, str | bytes]] = {"word/document.xml": (CONTENT, document)}
    relations = ""
    for number, (kind, content) in enumerate((parts or {}).items()):
        target, relation = f"part{number}", "aFChunk"
        if isinstance(content, bytes):
            files[f"word/{target}"] = (kind, content)
        else:
            root, relation = f'<w:{kind} xmlns:w="{WORD}">{content}</w:{kind}>', kind
            files[f"word/{target}"] = (CONTENT.replace("document.main", kind), root)
        relations += relationship(target, f"{RELATIONS}/{relation}", target)
    types = types or (
        f'<?xml version="1.0"?><Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        + "".join(
            f'<Override PartName="/{name}" ContentType="{kind}"/>'
            for name, (kind, _) in files.items()
        )
        + "</Types>"
    )
    main = relationship("rId1", f"{RELATIONS}/officeDocument", "word/document.xml")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", types)
        for name, inner in (("_rels/.rels", main), ("word/_rels/document.xml.rels", relations)):
            declared = f'<?xml version="1.0"?><Relationships xmlns="{PACKAGE}/relationships">'
            archive.writestr(name, f"{declared}{inner}</Relationships>")
        for name, (_, content) in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def relationship(id: str, kind: str, target: str) -> str:
    return f'<Relationship Id="{id}" Type="{kind}" Target="{target}"/>'


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def cell(text: str, *, properties: str = "") -> str:
    inner = f"<w:tcPr>{properties}</w:tcPr>" if properties else ""
    return f"<w:tbl><w:tr><w:tc>{inner}{paragraph(text)}</w:tc></w:tr></w:tbl>"


def merged_rows(text: str, rows: int) -> str:
    """A table of one column, all of it one cell."""
    first = (
        f'<w:tr><w:tc><w:tcPr><w:vMerge w:val="restart"/></w:tcPr>{paragraph(text)}</w:tc></w:tr>'
    )
    more = "<w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/></w:tc></w:tr>"
    return f"<w:tbl>{first}{more * rows}</w:tbl>"


def unpacks_to(megabytes: int) -> bytes:
    data = io.BytesIO()
    with (
        zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as file,
    ):
        for _ in range(megabytes):
            file.write(b" " * 1_000_000)
    return data.getvalue()


def patched(data: bytes, marks: tuple[bytes, int, int], value: int) -> bytes:
    """A zip with one byte set in every header: (local and central signatures' offsets, value)."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", marks[1]), (b"PK\x01\x02", marks[2])):
        place = changed.find(signature)
        while place >= 0:
            changed[place + offset] = value
            place = changed.find(signature, place + 4)
    return bytes(changed)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    # gigabytes in a few kilobytes
    "deflate.pdf": (
        lambda: page(stream(b"/Filter /FlateDecode", deflated(b"(A) Tj " * 150_000, 300))),
        "damaged PDF",
    ),
    "filters.pdf": (
        lambda: page(
            stream(
                b"/Filter [/FlateDecode /FlateDecode /FlateDecode]",
                zlib.compress(zlib.compress(deflated(b" " * 1_000_000, 300), 9), 9),
            )
        ),
        "damaged PDF",
    ),
    "runs.pdf": (
        lambda: page(
            stream(
                b"/Filter [/FlateDecode /RunLengthDecode]", zlib.compress(b"\x81A" * 5_000_000, 9)
            )
        ),
        "damaged PDF",
    ),
    "predictor.pdf": (
        lambda: page(
            stream(
                b"/Filter /FlateDecode /DecodeParms << /Predictor 12 /Columns 1 >>",
                deflated(b"\2" * 1_000_000, 70),
            )
        ),
        "takes too long",
    ),
    "characters.pdf": (
        lambda: page(
            stream(b"", b"BT /F 9 Tf (hello) Tj ET"),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>",
            stream(
                b"",
                b"1 begincodespacerange <00000000> <ffffffff> endcodespacerange "
                b"1 beginbfrange <00000000> <0fffffff> <0000> endbfrange endcmap",
            ),
            fonts=b"/Font << /F 6 0 R >>",
        ),
        "damaged PDF",
    ),
    # things that hold each other, or themselves
    "form-in-itself.pdf": (
        lambda: page(stream(b"", b"/X Do"), form(b"/X Do /X Do", 6)), "PDF without text",
    ),
    "pages.pdf": (lambda: page_tree(24), "damaged PDF"),
    "pages-in-themselves.pdf": (
        lambda: pdf([
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 2 /Kids [2 0 R 2 0 R] >>",
        ]),
        "damaged PDF",
    ),
    "brackets.pdf": (
        lambda: pdf([b"<< /Type /Catalog /Pages " + b"[" * 99_999 + b"]" * 99_999 + b" >>"]),
        "damaged PDF",
    ),
    "noise.pdf": (lambda: b"%PDF-1.4\n" + os.urandom(1_000_000), "damaged PDF"),
    "objects.pdf": (lambda: b"%PDF-1.4\n" + b"1 0 obj\n" * 200_000, "damaged PDF"),
    # DOCX
    "zip.docx": (lambda: unpacks_to(501), "too large"),
    "laughs.docx": (lambda: docx(paragraph("&j;"), before=LAUGHS), "damaged DOCX"),
    "laughs-in-types.docx": (
        lambda: docx(paragraph("a"), types=f'<?xml version="1.0"?>{LAUGHS}<Types>&j;</Types>'),
        "damaged DOCX",
    ),
    "quadratic.docx": (
        lambda: docx(
            paragraph("&a;" * 3000), before=f'<!DOCTYPE a [<!ENTITY a "{"A" * 1_000_000}">]>'
        ),
        "damaged DOCX",
    ),
    "tables.docx": (
        lambda: docx("<w:tbl><w:tr><w:tc>" * 5000 + "</w:tc></w:tr></w:tbl>" * 5000),
        "damaged DOCX",
    ),
    "spans.docx": (
        lambda: docx(cell("a", properties=f'<w:gridSpan w:val="{"9" * 5000}"/>')), "damaged DOCX",
    ),
    "rows.docx": (
        lambda: docx(merged_rows("a" * 100_000, 20_000)),
        "takes too long or needs too much memory",
    ),
    "no-body.docx": (
        lambda: docx("", document=f'<w:document xmlns:w="{WORD}"/>'), "damaged DOCX",
    ),
    "other-root.docx": (lambda: docx("", document="<a/>"), "damaged DOCX"),
    "no-xml.docx": (lambda: docx("", document="not XML"), "damaged DOCX"),
    "encrypted.docx": (
        lambda: patched(docx(paragraph("a")), (b"", 6, 8), 1), "damaged DOCX",
    ),
    "compression.docx": (
        lambda: patched(docx(paragraph("a")), (b"", 8, 10), 99), "damaged DOCX",
    ),
    # HTML
    "nested.html": (lambda: b"<div>" * 5000 + b"a" + b"</div>" * 5000, "too deeply nested"),
    "lists.html": (lambda: b"<ul><li>" * 200 + b"a" + b"</li></ul>" * 200, "too deeply nested"),
    # texts
    "large.txt": (lambda: b"abc def. " * 300_000, "too large"),
    "same.txt": (lambda: "漢".encode() * 600_000, "takes too long"),
    "latin.txt": (lambda: b"caf\xe9", "not UTF-8 text"),
    "utf-16.txt": (lambda: "Ada Voss was born.".encode("utf-16")[:-1], "not UTF-16 text"),
    "utf-16-bare.txt": (lambda: "Ada Voss was born.".encode("utf-16-le"), "not UTF-8 text"),
    "nul.md": (lambda: b"Ada Voss\0 was born.", "binary"),
    # JSON
    "nested.json": (lambda: b"[" * 100_000 + b"]" * 100_000, "malformed rows"),
    "integer.json": (lambda: b'[{"context": ' + b"9" * 100_000 + b"}]", "malformed rows"),
    "half.jsonl": (lambda: b'{"context": [["T\\ud800", ["a"]]]}', "malformed rows"),
    "scalars.jsonl": (lambda: b"1\nnull\n", "malformed rows"),
    "utf-16.json": (lambda: "[]".encode("utf-16"), "malformed rows"),
    "nul.jsonl": (lambda: b'{"context": [["T", ["Ada\\u0000 Voss"]]]}', "binary"),
    "title.jsonl": (
        lambda: b'{"context": [["' + b"T" * 2000 + b'", ["a"]]]}', "malformed rows",
    ),
    "call.json": (
        lambda: b'[{"api_name": "a", "api_call": "' + b"f" * 200_000 + b'"}]', "malformed rows",
    ),
    "line.jsonl": (lambda: b'{"context": [["T", ["' + b"a " * 1_500_000 + b'"]]]}', "too large"),
    "nothing.json": (lambda: b" ", "empty"),
}  # fmt: skip
"""Name: what makes its bytes, and why it is omitted with at most 2 MB and 4 seconds.

`a or b` where it depends on the machine which limit is met first.
"""
