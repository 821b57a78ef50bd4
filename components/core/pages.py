"""Tables, sections and pages, as Markdown and as HTML.

Texts from models and data (a model's name, an error) are escaped.
"""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple


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
    return "".join(f"\\{char}" if char in "\\|`*_[]#" else char for char in escaped)


def as_markdown(description: Description) -> str:
    """A section."""
    parts = [f"## {description.title}", plain(description.sentence)]
    if description.table.rows:
        parts.append(markdown_table(description.table))
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
"""


def html_table(table: Table) -> str:
    """A table in HTML."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>\n<thead>{row(table.headings, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table>"


def page(title: str, body: str, style: str = "") -> str:
    """A self-contained HTML page around a body in HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )


def as_page(description: Description) -> str:
    """A page of its own."""
    body = f"<p>{html.escape(description.sentence)}</p>"
    if description.table.rows:
        body += "\n" + html_table(description.table)
    return page(description.title, body)
