"""Documents as people really have them, by the number of the trouble: made here, read and cut."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from components.core.corpus.documents import find_documents, unreadable_document
from components.core.corpus.formats import Unreadable
from components.core.corpus.isolated_reader import CutDocument, read_all
from components.generate.config import GenerateConfig
from tests.faults.bombs import CONTENT, docx, paragraph, pdf, stream


class Case(NamedTuple):
    """A file, the texts that its chunks hold, and those that they do not."""

    name: str
    content: str | bytes
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()


# ---- 1: DOCX as Word shows it with all changes accepted -----------------------------------------


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def deleted(text: str) -> str:
    return f'<w:del w:id="1"><w:r><w:delText>{text}</w:delText></w:r></w:del>'


def styled(style: str, text: str) -> str:
    return f"<w:p><w:pPr><w:pStyle w:val='{style}'/></w:pPr>{run(text)}</w:p>"


def control(content: str) -> str:
    return f"<w:sdt><w:sdtPr/><w:sdtContent>{content}</w:sdtContent></w:sdt>"


def table(*rows: str) -> str:
    return f"<w:tbl>{''.join(rows)}</w:tbl>"


def row(*cells: str, properties: str = "") -> str:
    inner = "".join(f"<w:tc>{cell}</w:tc>" for cell in cells)
    return f"<w:tr><w:trPr>{properties}</w:trPr>{inner}</w:tr>"


def drawn_box(text: str) -> str:
    """A text box as Word writes it: as a drawing, and for old versions as VML."""
    content = f"<w:txbxContent>{paragraph(text)}</w:txbxContent>"
    return (
        '<w:r><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility'
        '/2006"><mc:Choice Requires="wps"><w:drawing><wps:txbx xmlns:wps="urn:wps">'
        f"{content}</wps:txbx></w:drawing></mc:Choice><mc:Fallback><w:pict>{content}</w:pict>"
        "</mc:Fallback></mc:AlternateContent></w:r>"
    )


def symbol(font: str, char: str) -> str:
    return f'<w:r><w:sym w:font="{font}" w:char="{char}"/></w:r>'


def note(kind: str, number: int, text: str) -> str:
    return f'<w:{kind} w:id="{number}">{paragraph(text)}</w:{kind}>'


NOTES = {
    "footnotes": note("footnote", 2, "Measured by Ulla Fenn.") + note("footnote", 3, "Unused."),
    "endnotes": note("endnote", 2, "See the deed of 1788."),
    "comments": note("comment", 2, "Is this so?"),
    "header": paragraph("CONFIDENTIAL"),
}
PAGE = b"<html><body><h2>Annex</h2><p>The annex names Piet Aal.</p></body></html>"

WORD = [
    Case(
        "insertions.docx",
        docx(
            f"<w:p>{run('The dam holds ')}{deleted('8')}<w:ins>{run('9')}</w:ins>{run(' tons')}"
            f"<w:ins>{deleted(' today')}</w:ins></w:p>"
            + table(row(paragraph("Crew"), f"<w:p><w:ins>{run('fourteen')}</w:ins></w:p>"))
        ),
        ("The dam holds 9 tons", "Crew | fourteen"),
        ("8", "today"),
    ),
    Case(
        "rows.docx",
        docx(
            table(
                row(paragraph("Kept"), properties='<w:ins w:id="1"/>'),
                row(f"<w:p>{deleted('Gone')}</w:p>", properties='<w:del w:id="2"/>'),
                control(row(paragraph("Controlled"), control(f"<w:tc>{paragraph('row')}</w:tc>"))),
            )
        ),
        ("Kept\n", "Controlled"),
        ("Gone",),
    ),
    Case(
        "moved.docx",
        docx(
            f"<w:moveFrom><w:p>{run('Old place.')}</w:p></w:moveFrom>"
            f"<w:p><w:moveFrom>{run('Old words.')}</w:moveFrom>{run('Between.')}</w:p>"
            f"<w:p><w:moveTo>{run('New place.')}</w:moveTo></w:p>"
        ),
        ("Between.", "New place."),
        ("Old",),
    ),
    Case(
        "joined.docx",
        docx(
            f"<w:p><w:pPr><w:rPr><w:del/></w:rPr></w:pPr>{run('The sluice opens ')}</w:p>"
            + paragraph("at noon.")
        ),
        ("The sluice opens at noon.",),
    ),
    Case(
        "controls.docx",
        docx(
            control(control(paragraph("Keeper: Ilse Tarn.")) + table(row(paragraph("Lock 7"))))
            + f"<w:p>{run('Depth ')}{control(control(run('31 feet')))}{run(' at low tide')}</w:p>"
        ),
        ("Keeper: Ilse Tarn.", "Lock 7", "Depth 31 feet at low tide"),
    ),
    Case(
        "fields.docx",
        docx(
            f"<w:p>{run('Owned by ')}<w:fldSimple w:instr=' AUTHOR '><w:hyperlink>"
            f"{run('the guild')}</w:hyperlink></w:fldSimple>{run(' since ')}"
            '<w:r><w:fldChar w:fldCharType="begin"/></w:r>'
            "<w:r><w:instrText>DATE</w:instrText></w:r>"
            f'<w:r><w:fldChar w:fldCharType="separate"/></w:r>{run("1644")}'
            '<w:r><w:fldChar w:fldCharType="end"/></w:r><w:smartTag><w:customXml>'
            f"{run(' in Orn')}</w:customXml></w:smartTag></w:p>"
        ),
        ("Owned by the guild since 1644 in Orn",),
        ("DATE", "AUTHOR"),
    ),
    Case(
        "nested.docx",
        docx(
            table(
                row(
                    paragraph("Pump"),
                    table(row(paragraph("wet"), table(row(paragraph("7 bar"))) + "<w:p/>"))
                    + paragraph("after"),
                )
            )
        ),
        ("Pump | wet | 7 bar after",),
    ),
    Case(
        "boxes.docx",
        docx(
            f"<w:p>{run('Read this.')}{drawn_box('Never smoke at the mill.')}</w:p>"
            + table(row(f"<w:p>{run('Cell')}{drawn_box('Boxed')}</w:p>"))
        ),
        ("Read this.\n\nNever smoke at the mill.", "Cell Boxed"),
        ("mill.\n\nNever", "Boxed Boxed"),
    ),
    Case(
        "notes.docx",
        docx(
            f"<w:p>{run('The well is 40 feet deep')}<w:r><w:footnoteReference w:id='2'/></w:r>"
            f"<w:r><w:commentReference w:id='2'/></w:r>{run(' and old')}"
            "<w:r><w:endnoteReference w:id='2'/></w:r></w:p>" + paragraph("The next one is dry."),
            parts=NOTES,
        ),
        ("40 feet deep and old\n\nMeasured by Ulla Fenn.\n\nSee the deed of 1788.\n\nThe next",),
        ("Is this so", "Unused", "CONFIDENTIAL"),
    ),
    Case(
        "characters.docx",
        docx(
            f"<w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs></w:pPr>{run('Heat')}<w:r><w:tab/>"
            f"</w:r>{run('to 90')}{symbol('Symbol', 'F0B0')}{run('C, ')}{symbol('Symbol', 'F06D')}"
            f"{run(' small')}<w:r><w:br/></w:r>{run('plant')}<w:r><w:noBreakHyphen/></w:r>"
            f"{run('room, tem')}<w:r><w:softHyphen/></w:r>{run('per&#xad;ature ')}"
            f"{symbol('Wingdings', 'F0FE')}{symbol('Wingdings', 'F0E9')}"
            f"{symbol('Arial', '00BD')}</w:p>"
        ),
        ("Heat\tto 90°C, μ small\nplant-room, temperature ☑½",),
    ),
    Case(
        "lists.docx",
        docx(
            "".join(
                f"<w:p><w:pPr><w:numPr><w:numId w:val='{number}'/></w:numPr></w:pPr>"
                f"{run(text)}</w:p>"
                for number, text in ((4, "Close the valve."), (0, "Wait."))
            )
        ),
        ("- Close the valve.\n\nWait.",),
        ("- Wait",),
    ),
    Case(
        "styles.docx",
        docx(
            control(styled("TOC1", "Weirs 7"))
            + "".join(map(styled, ("Titel1", "berschrift2", "Aufzhlung"), ("Weirs", "Oak", "old"))),
            parts={
                "styles": "".join(
                    f'<w:style w:type="paragraph" w:styleId="{id}">'
                    f'<w:name w:val="{name}"/></w:style>'
                    for id, name in (
                        ("TOC1", "toc 1"),
                        ("Titel1", "Title"),
                        ("berschrift2", "heading 2"),
                        ("Aufzhlung", "List Bullet"),
                    )
                )
            },
        ),
        ("# Weirs\n\n## Oak\n\n- old",),
        ("Weirs 7",),
    ),
    Case(
        "hidden.docx",
        docx(
            f"<w:p>{run('Shown')}<w:r><w:rPr><w:vanish/></w:rPr><w:t> unseen</w:t></w:r>"
            "<w:r><w:rPr><w:vanish w:val='0'/></w:rPr><w:t> as well</w:t></w:r></w:p>"
        ),
        ("Shown as well",),
    ),
    Case(
        "merged.docx",
        docx(
            table(
                row(
                    "<w:tcPr><w:vMerge w:val='restart'/></w:tcPr>" + paragraph("Hall"),
                    paragraph("a"),
                ),
                row("<w:tcPr><w:vMerge/></w:tcPr><w:p/>", paragraph("b")),
                row("<w:tcPr><w:gridSpan w:val='2000000000'/></w:tcPr>" + paragraph("wide")),
                row(*map(paragraph, "556")),
            )
        ),
        ("Hall | a\nHall | b\nwide\n5 | 5 | 6",),
    ),
    Case(
        "embedded.docx",
        docx(
            paragraph("Before.") + '<w:altChunk r:id="part0"/><w:altChunk r:id="part1"/>',
            parts={"text/html": PAGE, CONTENT: docx(paragraph("A letter of Ada Nyl."))},
        ),
        ("Before.\n\n## Annex\n\nThe annex names Piet Aal.\n\nA letter of Ada Nyl.",),
    ),
]

# ---- 3: HTML, all of its text and no navigation -------------------------------------------------

MENU = (
    "<ul><li><a href=/>Home</a></li><li><a href=/b>Blog</a></li><li><a href=/c>Jobs</a></li></ul>"
)
LINE = "The bridge of Aal carries forty carts a day, and no more than that in winter."

HTML = [
    Case(
        "form.html",
        f"<body><header>{MENU}</header><form id=f><div role=search><input><button>Go</button></div>"
        "<fieldset><legend>Tolls</legend><label>Cart</label><p>A cart pays 4 crowns.</p></fieldset>"
        f"<button>Send</button></form><footer>Imprint {MENU}</footer></body>",
        ("Tolls\n\nCart\n\nA cart pays 4 crowns.",),
        ("Home", "Go", "Send", "Imprint"),
    ),
    Case(
        "titled.html",
        f"<body><header><h1><a href=/p>Mills</a></h1>{MENU} Since 1790</header>{LINE}</body></html>"
        "<p>After the end.</p>",
        ("# Mills\n\nSince 1790", LINE, "After the end."),
        ("Home", "Jobs"),
    ),
    Case(
        "header.html",
        f"<body><header><h1>The bridge of Aal</h1><p>As of 1871.</p><nav>{MENU}</nav></header>"
        f"<main><p>{LINE}</p><section><header><h2>Tolls</h2></header><p>Four crowns.</p>"
        "<footer>Source: the town book.</footer></section></main>"
        f"<div class=sidebar>{MENU}</div><footer>Imprint</footer></body>",
        ("# The bridge of Aal\n\nAs of 1871.", LINE, "## Tolls", "Four crowns.", "the town book"),
        ("Home", "Imprint"),
    ),
    Case(
        "articles.html",
        "<body><main><article><h2>First</h2><p>Rope is 3 crowns.</p></article></main>"
        "<article><h2>Second</h2><p>Tar is 5 crowns.</p></article>"
        f"<aside class=note><p>{LINE}</p></aside><aside>{MENU}</aside></body>",
        ("## First", "Rope is 3 crowns.", "## Second", "Tar is 5 crowns.", LINE),
        ("Blog",),
    ),
    Case(
        "comments.html",
        "<body><div><h1>Mills</h1><p>Built in 1790.</p></div>"
        f"<div id=comments><article><p>{LINE}</p></article><article><p>So true.</p></article>",
        ("# Mills", "Built in 1790.", LINE, "So true."),
    ),
    Case(
        "beside-main.html",
        f"<body><main id=app>Loading</main><div id=root><h1>Locks</h1><p>{LINE}</p></div></body>",
        ("# Locks", LINE),
    ),
    Case(
        "roles.html",
        f"<body><div role=navigation>{MENU}</div><ul class='top-nav'>{MENU}</ul><div role=main>"
        f"<blockquote><p>{LINE}</p><footer>Odo Marn</footer></blockquote></div></body>",
        (LINE, "Odo Marn"),
        ("Home",),
    ),
    Case(
        "details.html",
        "<body><details><summary>How long?</summary>Two days.</details>"
        "<h3><button>Who?</button></h3><div hidden><p>The warden.</p></div>"
        "<table><tr><th>Good</th><th>Duty</th></tr><tr><td>Salt</td><td>2</td></tr></table>"
        "<pre>a = 1\n  b</pre>"
        "<dl><dt>Tare</dt><dd>The weight of the cart.</dd></dl></body>",
        (
            "How long?\n\nTwo days.",
            "### Who?",
            "The warden.",
            "| Good | Duty |",
            "| Salt | 2 |",
            "a = 1\n  b",
            "Tare\n:   The weight",
        ),
    ),
    Case(
        "template.html",
        f"<body><noscript>Enable scripts.</noscript><template>{MENU}</template><p>{LINE}</p>",
        (LINE,),
        ("Enable", "Home"),
    ),
    Case(
        "noscript.html",
        "<body><nav></nav><noscript><p>The ford is shut.</p></noscript></body>",
        ("The ford is shut.",),
    ),
    Case(
        "frames.html",
        "<html><frameset><frame src=a.html><noframes><p>The quay has six cranes.</p></noframes>"
        "</frameset></html>",
        ("The quay has six cranes.",),
    ),
    Case("links.html", f"<body><nav>{MENU}</nav></body>", ("Home", "Jobs")),
    Case(
        "cyrillic.html",
        "<meta charset=windows-1251><p>Мост построен в 1871 году.</p>".encode("cp1251"),
        ("Мост построен в 1871 году.",),
    ),
    Case(
        "japanese.html",
        "<meta charset=Shift_JIS><p>橋は①八年に建てられた。</p>".encode("cp932"),
        ("橋は①八年に建てられた。",),
    ),
    Case(
        "quotes.html",
        "<meta charset=iso-8859-1><p>“Zoë” costs 5 €.</p>".encode("cp1252"),
        ("“Zoë” costs 5 €.",),
    ),
    Case("saved.html", "<meta charset=gb2312><p>渡船七時開。</p>".encode(), ("渡船七時開。",)),
    Case("undeclared.html", "<p>Żółw lives in the Ner.</p>".encode(), ("Żółw lives",)),
    Case(
        "misdeclared.html",
        "<meta charset=utf-8><p>Der Käse kostet zwei Gulden.</p>".encode("latin-1"),
        ("Der Käse kostet",),
    ),
    Case("wide.html", "<p>Łódź has nine gates.</p>".encode("utf-16"), ("Łódź has nine gates.",)),
]


# ---- 8 and 9: PDF -------------------------------------------------------------------------------


def pages(*texts: str) -> bytes:
    """A PDF with a page for each text; its font has ligatures and a soft hyphen."""
    font = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding << /Type /Encoding "
        b"/Differences [1 /ff /fi /fl /ffi /ffl /softhyphen /uni2010] >> >>"
    )
    glyphs = str.maketrans("ﬀﬁﬂﬃﬄ\u00ad\u2010", "\1\2\3\4\5\6\7")
    objects = []
    for number, text in enumerate(texts):
        lines = [line.translate(glyphs).encode("latin-1") for line in text.split("\n")]
        operators = b" T* ".join(b"(%s) Tj" % line for line in lines)
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
            b"/Resources << /Font << /F 3 0 R >> >> >>" % (2 * number + 5),
            stream(b"", b"BT /F 10 Tf 12 TL 20 700 Td " + operators + b" ET"),
        ]
    kids = b" ".join(b"%d 0 R" % (2 * number + 4) for number in range(len(texts)))
    root = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(texts))
    return pdf([b"<< /Type /Catalog /Pages 2 0 R >>", root, font, *objects])


BODY = (
    "The harbour was dredged in 1911 by the brothers Holm.",
    "Its second basin took four years and two hundred men.",
    "A third basin was planned and given up for want of money.",
    "Since then the harbour has belonged to the town of Orn.",
    "The lighthouse at its mouth is manned in winter alone.",
)

HYPHENS = [
    Case(
        "cut.pdf",
        pages(
            "The steam engine is fed from a regu-\nlator that Odo Marn de-\nsigned, and with a "
            "Kessel\u00ad\nhaube of brass on top of its boiler.\nIts pres\u2010\nsure is nine."
        ),
        ("fed from a regulator that Odo Marn designed", "Kesselhaube", "Its pressure is nine."),
    ),
    Case(
        "compound.pdf",
        pages(
            "A well-known pump stood in the yard for years.\nIt was a well-\nknown thing in Velm, "
            "as the Anglo-\nSaxon one was, of 1990-\n1995, made of U-\nshaped pipe "
            "and hung on a wall, for short-\nand long-term use at the mill."
        ),
        ("a well-known thing", "Anglo-Saxon", "1990-1995", "U-shaped", "short- and long-term"),
    ),
    Case(
        "narrow.pdf",
        pages(
            "By inter-\nnation-\nal law and the RULES OF NAVI-\nGATION, see orn.example/a-\nb-c."
        ),
        ("By international law and the RULES OF NAVIGATION, see orn.example/a-b-c.",),
    ),
    Case(
        "across.pdf",
        pages("The town of Orn keeps the gate of its har-", "bour shut from ten at night to six."),
        ("its harbour shut",),
    ),
]

PDFS = [
    Case(
        "ligatures.pdf",
        pages("The oﬃce of the ﬁrst oﬀer is on the ﬂoor of the waﬄe house."),
        ("The office of the first offer is on the floor of the waffle house.",),
    ),
    Case("ligatures.txt", "The ﬁrst ﬆone of the ﬂoor.", ("The first stone of the floor.",)),
    Case(
        "heads.pdf",
        pages(*(f"Harbour manual\n{text}\nPage {n} of 5" for n, text in enumerate(BODY, start=1))),
        BODY,
        ("Harbour manual", "Page"),
    ),
    Case(
        "sides.pdf",
        pages(
            "The harbour of Orn",
            *(
                f"Part {n // 15}\n{f'{n} HARBOUR' if n % 2 else f'ORN {n}'}\n{text}\n- {n} -"
                for n, text in enumerate((*BODY, "It has no crane."), start=12)
            ),
        ),
        ("The harbour of Orn", *BODY, "It has no crane."),
        ("HARBOUR", "ORN", "- 1"),
    ),
    Case(
        "figures.pdf",
        pages("Tolls\nSalt 4 crowns", "Salt 4 crowns\n1911 dues", "Rope 9 crowns\n1954 dues"),
        ("Tolls\nSalt 4 crowns", "1911 dues", "1954 dues"),
    ),
    Case("forms.pdf", pages("The same on both.", "The same on both."), ("The same on both.",)),
]


# ---- 22 to 25: texts, Markdown, what is no document, tables -------------------------------------

MARKED = [
    Case("little.txt", "Żory has two wells.".encode("utf-16"), ("Żory has two wells.",)),
    Case(
        "big.md",
        "\ufeff# Łódź\n\nIt lies far off.".encode("utf-16-be"),
        ("# Łódź\n\nIt lies",),
    ),
    Case("four.txt", "Four bytes a letter.".encode("utf-32"), ("Four bytes a letter.",)),
    Case("eight.rst", "\ufeffTitle\n=====\n\nA text.".encode(), ("# Title\n\nA text.",)),
]

MARKDOWN = [
    Case(
        "page.mdx",
        "---\ntitle: Setup: the agent\ntags:\n  - a\n\n# a comment\n---\n"
        "import Tabs from '@theme/Tabs';\nimport {\n  One,\n  Two,\n} from \"../parts\"\n"
        "import './style.css'\n\nexport const year = {\n  a: 1,\n}\n\n# Setup\n\n"
        "import the certificate, then restart.\n\n"
        "```js\nimport x from 'y';\nexport default x;\n```\n",
        ("# Setup\n\nimport the certificate, then", "```js\nimport x from 'y';\nexport default x;"),
        ("title", "tags", "Tabs", "One", "style.css", "year"),
    ),
    Case(
        "hugo.md",
        '+++\r\ntitle = "Dams"\r\n+++\r\n\r\nThe dam stands.\r\n\r\n~~~\r\nimport a from "b"\r\n',
        ("The dam stands.", 'import a from "b"'),
        ("title",),
    ),
    Case(
        "words.md",
        "Use the\nexport class (a subclass) that\nyou registered.\n\nexport const is a keyword.\n",
        ("Use the\nexport class (a subclass) that\nyou registered.", "export const is a keyword."),
    ),
    Case(
        "shown.rst",
        "Dams\n====\n\n.. figure:: dam.png\n   :alt: A dam\n\n   The dam in 1911.\n\n"
        ".. autoclass:: orn.Dam\n   :members:\n\n   It holds water back.\n",
        ("The dam in 1911.", "It holds water back."),
        ("dam.png", "orn.Dam"),
    ),
    Case(
        "rule.md",
        "---\n\nNote: a line between rules is a text.\n\nIt stays here.\n\n---\n\nAnd this.\n",
        ("Note: a line between rules is a text.", "It stays here.", "And this."),
    ),
]

TABLES = [
    Case(
        "prices.csv",
        'good,price,note\nSalt,4,"by the barrel, dry"\nTar,5,"in ""casks""\nof oak"\n,,\n',
        ("good: Salt\nprice: 4\nnote: by the barrel, dry", "good: Tar", 'in "casks"\nof oak'),
    ),
    Case(
        "crew.tsv",
        "name\tage\nIlse Tarn\t41\nOdo\n",
        ("name: Ilse Tarn\nage: 41", "name: Odo"),
    ),
    Case(
        "raw.tsv",
        'id\tsaid\n1\t"Stop," she said.\n2\t6" of rope\n',
        ('said: "Stop," she said.', 'said: 6" of rope'),
    ),
    Case(
        "one.csv",
        '\ntext\nIt has a gate, and a wall.\n"Nine, in all."\n',
        ("text: It has a gate, and a wall.", "text: Nine, in all."),
    ),
    Case(
        "excel.csv",
        "\ufeffOrt;Größe\r\nVelm;3,5 ha\r\n".encode("utf-16"),
        ("Ort: Velm\nGröße: 3,5 ha",),
    ),
]

KINDS = {1: WORD, 3: HTML, 8: HYPHENS, 9: PDFS, 22: MARKED, 23: MARKDOWN, 25: TABLES}
Texts = dict[str, str | Unreadable]
"""What the chunks of a file hold, or why there are none."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Texts]:
    def all_of(cases: list[Case], **settings: str) -> Texts:
        folder = tmp_path_factory.mktemp("documents")
        for case in cases:
            data = case.content if isinstance(case.content, bytes) else case.content.encode()
            (folder / case.name).write_bytes(data)
        texts: Texts = {}
        settings = {"teacher": "extractive", "documents": str(folder), "output": "o", **settings}
        for path, part in read_all(GenerateConfig.parse(settings)):
            if isinstance(part, CutDocument):
                chunks = "\n\n".join(chunk.text for chunk in part.chunks)
                texts[path.name] = "\n\n".join(filter(None, (texts.get(path.name), chunks)))
            elif part is not None:
                texts[path.name] = part
        return texts

    return all_of


@pytest.fixture(scope="module")
def texts(read: Callable[..., Texts]) -> dict[int, Texts]:
    return {number: read(cases) for number, cases in KINDS.items()}


@pytest.mark.parametrize(
    ("number", "case"),
    [
        pytest.param(number, case, id=f"{number}-{case.name}")
        for number, cases in KINDS.items()
        for case in cases
    ],
)
def test_the_text_of_a_document_is_in_its_chunks(
    texts: dict[int, Texts], number: int, case: Case
) -> None:
    text = texts[number][case.name]
    assert isinstance(text, str), vars(text)
    assert [wanted for wanted in case.present if wanted not in text] == [], text
    assert [unwanted for unwanted in case.absent if unwanted in text] == [], text


REMEDIES = {
    "latin.txt": ("Zoë lives here.".encode("latin-1"), "Latin-1: iconv -f LATIN1 -t UTF-8"),
    "latin.csv": ("a,b\nZoë,1\n".encode("cp1252"), "Latin-1: iconv -f LATIN1 -t UTF-8"),
    "bare.txt": ("Łódź has gates.".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "bare.html": ("<p>Łódź has gates.".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
}


@pytest.mark.parametrize("name", REMEDIES, ids=lambda name: f"22-{name}")
def test_what_cannot_be_decoded_is_named_with_the_remedy(
    read: Callable[..., Texts], name: str
) -> None:
    content, remedy = REMEDIES[name]
    fault = read([Case(name, content, ())])[name]
    assert isinstance(fault, Unreadable)
    assert fault.reason == "not UTF-8 text"
    assert remedy in str(unreadable_document(Path(name), fault))


def test_24_what_office_and_windows_leave_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    leftovers = "~$manual.docx Thumbs.db desktop.ini .DS_Store inner/~$a.md inner/THUMBS.DB"
    for name in (*leftovers.split(), "manual.txt", "inner/thumbs.db.txt"):
        (tmp_path / name).write_bytes(b"\xff\0")
    documents = [path.relative_to(tmp_path).as_posix() for path in find_documents(tmp_path)]
    assert documents == ["manual.txt", "inner/thumbs.db.txt"]


NAMED = [
    Case("pages.csv", "id,title,body\n1,Orn,It has a gate.\n2,Velm,It has none.\n", ()),
    Case("pages.tsv", 'body\ttitle\n"It is\nfar, ""far"" off."\tHask\n', ()),
    Case("none.csv", "id,text\n1,Orn\n", ()),
    Case("blank.csv", "id,body\n1,Gate\n\n2, \n", ()),
    Case("wide.csv", "id,body\n1,One gate, or two\n", ()),
    Case("quote.csv", 'id,body\n1,Gate\n2,"never closed\n', ()),
    Case("names.csv", "id,body\n", ()),
]
PROBLEMS = {
    "none.csv": (1, "malformed rows (no column 'body' in ['id', 'text'])"),
    "blank.csv": (4, "body: is empty"),
    "wide.csv": (2, "malformed rows (3 columns, but 2 names in the first line)"),
    "quote.csv": (3, "malformed rows (unexpected end of data)"),
    "names.csv": (None, "empty (it holds no document)"),
}


def test_25_a_column_can_be_the_text(read: Callable[..., Texts]) -> None:
    texts = read(NAMED, text_field="body")
    assert texts["pages.csv"] == "It has a gate.\n\nIt has none."
    assert texts["pages.tsv"] == 'It is\nfar, "far" off.'
    faults = {name: text for name, text in texts.items() if isinstance(text, Unreadable)}
    assert {name: (fault.line, fault.problem) for name, fault in faults.items()} == PROBLEMS
