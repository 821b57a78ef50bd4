"""The page of a dataset: how many rows and how long, and what was dropped."""

import html
import math
from collections import Counter
from collections.abc import Sequence

from components.core.chart import WIDTH, svg
from components.core.describe import counted
from components.core.pages import Table, html_table, page
from components.core.records import GenerationReport

BARS = 12
BAR, LEFT = 20, 110
FILES = {
    "train.jsonl": "rows to train on",
    "validation.jsonl": "rows held out",
    "dropped.jsonl": "drafts that became no row, with the teacher's replies",
    "README.md": "the dataset card",
}
STYLE = "rect { fill: #2a7fc4 }"


def render(report: GenerationReport, lengths: Sequence[int]) -> str:
    """The page as text.

    Args:
        report: counts and warnings.
        lengths: of each row's prompt and answer, in characters.
    """
    written = " and ".join(f"{count:,} {split}" for split, count in report.rows.items())
    parts = [
        f"<p>{written} rows from {counted(report.documents, 'document')} and "
        f"{counted(report.chunks_used, 'chunk')}, written by {html.escape(report.teacher)}. "
        f"{report.rows_without_oracle:,} rows do not show their oracle.</p>",
        *(f'<p class="warning">{html.escape(text)}</p>' for text in report.warnings),
        "<h2>Files</h2>\n<ul>",
        *(f'<li><a href="{name}">{name}</a>: {text}</li>' for name, text in FILES.items()),
        "</ul>\n<p>A page to read and review them: "
        "<code>raft rows DATASET --output rows.html</code></p>",
        "<h2>Length of the rows</h2>\n<p>Prompt and answer, in characters; English has about four "
        "to a token. Rows above the --max-tokens of train are skipped there.</p>",
        histogram(lengths),
    ]
    tables = {
        "Drafts dropped": ("because", "drafts", report.dropped),
        "Quotes, by how they match their oracle": ("match", "quotes", report.quotes),
        "Chunks skipped": ("because", "chunks", report.chunks_left_out),
        "Documents skipped": ("because", "documents", report.documents_bad),
    }
    for title, (heading, noun, counts) in tables.items():
        if counts:
            rows = [(name, f"{count:,}") for name, count in counts.items()]
            parts += [f"<h2>{title}</h2>", html_table(Table((heading, noun), rows))]
    return page("Dataset", "\n".join(parts), STYLE)


def histogram(lengths: Sequence[int]) -> str:
    """How many rows have which length, as bars in SVG, one line each; "" without rows."""
    if not lengths:
        return ""
    width = _round_up((max(lengths) + 1) / BARS)
    counts = Counter(length // width for length in lengths)
    bins = range(min(counts), max(counts) + 1)
    scale = (WIDTH - LEFT - 60) / max(counts.values())
    lines = [
        f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{number * width:,} – '
        f"{(number + 1) * width - 1:,}</text>"
        f'<rect x="{LEFT}" y="{y + 2}" width="{counts[number] * scale:.1f}" height="{BAR - 4}"/>'
        f'<text x="{LEFT + counts[number] * scale + 6:.1f}" y="{y + 14}">{counts[number]:,}</text>'
        for y, number in zip(range(0, BAR * len(bins), BAR), bins, strict=True)
    ]
    return svg(BAR * len(bins), "Rows by length in characters", lines)


def _round_up(number: float) -> int:
    """To two digits, so that the ends of bins are easy to read."""
    power = int(10 ** max(0, math.floor(math.log10(max(number, 1))) - 1))
    return math.ceil(number / power) * power
