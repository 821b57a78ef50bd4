"""Tables, sections and pages, as Markdown and as HTML.

Texts from models and data (a model's name, an error) are hostile: they are escaped, and characters
that could hide or reverse text are made visible.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

# Control characters but tab and line feed; soft hyphen, zero-width and invisible characters; marks
# that reverse or embed text; tags and other variation of nothing; lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)

MARKUP = "\\|`*_[]#"
"""What Markdown would read as its own."""


class Table(NamedTuple):
    """Rows of text under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Description(NamedTuple):
    """A result: a title, one sentence, and a table."""

    title: str
    sentence: str
    table: Table


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(plain(cell) for cell in cells) + " |"

    rule = "|" + "---|" * len(table.headings)
    return "\n".join([line(table.headings), rule, *map(line, table.rows)])


def plain(text: str) -> str:
    """Text on one line, escaped for Markdown."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{char}" if char in MARKUP else char for char in escaped)


def for_terminal(markdown: str) -> str:
    """Markdown without the escapes of `plain`, for who reads it as it is."""
    return html.unescape(re.sub(rf"\\([{re.escape(MARKUP)}])", r"\1", markdown))


def as_markdown(description: Description) -> str:
    """A section."""
    parts = [f"## {description.title}", plain(description.sentence)]
    if description.table.rows:
        parts.append(markdown_table(description.table))
    return "\n\n".join(parts) + "\n"


REPORT = "report.html"
"""The page of a stage, in its output folder."""

PAGES = {"generate": "dataset", "train": "adapter", "quantize-check": "4-bit check"}
"""What the pages of stages are called in links, by stage."""

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.3 }
h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #8886;
  vertical-align: top }
td { font-variant-numeric: tabular-nums }
th, td:first-child { overflow-wrap: normal }
a { color: inherit }
svg { display: block; width: 100%; max-width: 40rem; height: auto }
svg text { font: 13px system-ui, sans-serif; fill: currentColor }
.warning { border-left: 4px solid #c4622a; padding-left: .8rem }
"""


class Link(NamedTuple):
    """A link to another page of the run: relative, so that a copied run keeps its links."""

    text: str
    address: str


def links_to(output: Path, folders: Iterable[tuple[str, str]]) -> list[Link]:
    """Links from a page in `output` to those of stages, given with their folders.

    Only to folders next to it that have a page: elsewhere (a pod, a copy from a bucket) the folders
    of a run are not where its reader has them.
    """
    return [
        Link(PAGES[stage], f"../{quote(Path(folder).resolve().name)}/{REPORT}")
        for stage, folder in folders
        if folder
        and Path(folder).resolve().parent == output.resolve().parent
        and (Path(folder) / REPORT).exists()
    ]


def navigation(links: Iterable[Link]) -> str:
    """Links in HTML, in one paragraph; "" without any."""
    anchors = (f'<a href="{html.escape(to)}">{html.escape(text)}</a>' for text, to in links)
    line = " · ".join(anchors)
    return f"<p>Of this run: {line}</p>\n" if line else ""


def show_unseen(text: str) -> str:
    """A text in which characters that hide or reverse text are replaced by their code points."""
    return UNSEEN.sub(lambda match: f"\u27e8U+{ord(match.group()):04X}\u27e9", text)


def html_table(table: Table) -> str:
    """A table in HTML."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>\n<thead>{row(table.headings, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table>"


def page(title: str, body: str, style: str = "") -> str:
    """A self-contained HTML page around a body in HTML."""
    return show_unseen(
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )


def render_template(
    path: Path, filters: Mapping[str, Callable[..., object]] | None = None, **values: object
) -> str:
    """A page of jinja's, for what is more than a table: all that the template prints is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Only text that jinja still has to escape is changed.
        finalize=lambda value: show_unseen(value) if type(value) is str else value,
    )
    environment.filters |= filters or {}
    return environment.get_template(path.name).render(values)


def as_page(description: Description, links: Iterable[Link] = ()) -> str:
    """A page of its own."""
    body = f"{navigation(links)}<p>{html.escape(description.sentence)}</p>"
    if description.table.rows:
        body += "\n" + html_table(description.table)
    return page(description.title, body)
