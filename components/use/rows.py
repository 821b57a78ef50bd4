"""`raft rows`: the rows of a dataset as a page, to be read before they are trained on.

Each row with its question, its answer, and its quotes marked in the answer and in the chunks shown;
then the drafts that became no row, and why. What is ticked is saved by the page as a file for
`raft train --exclude`. All texts are hostile: jinja escapes them, and no script runs but the page's
own, which its content security policy names by its hash.
"""

import base64
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from components.core.describe import counted
from components.core.errors import DataError
from components.core.pages import STYLE, render_template
from components.core.progress import say
from components.core.quotes import marked
from components.core.records import Dropped, RaftRow, read_jsonl
from components.core.storage import put, verify
from components.use.config import RowsConfig

FOLDER = Path(__file__).parent
SPLITS = {"train": "training", "validation": "validation"}
Pieces = list[tuple[str, str]]
"""A text in parts, each with its mark: "" for none, `found`, or `lost` for a quote in no chunk."""


class Entry(NamedTuple):
    """A row on the page, or a draft that became none.

    kinds: what it can be filtered by. line: of the file for `--exclude`; "" of a draft. chunks: of
    each the title, the text, and whether it is the oracle.
    """

    name: str
    kinds: Sequence[str]
    line: str
    question: str
    answer: Pieces
    chunks: Sequence[tuple[str, Pieces, bool]] = ()


def run(config: RowsConfig) -> None:
    """Write the page.

    Raises:
        DataError: there is no dataset, or it is damaged.
    """
    dataset, output = Path(config.dataset), Path(config.output)
    verify(dataset, "DATASET")
    if not (dataset / "train.jsonl").is_file():
        raise DataError("no train.jsonl", path=dataset, hint="Give a folder of raft generate.")
    everything = _read(dataset)
    entries = [*itertools.islice(everything, config.max_rows)]
    more = sum(1 for _ in everything)
    script = (FOLDER / "rows.js").read_text(encoding="utf-8")
    text = render_template(
        FOLDER / "rows.html.jinja",
        entries=entries,
        kinds=Counter(kind for entry in entries for kind in entry.kinds),
        more=more,
        style=STYLE,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    put(text, output)
    say(f"{counted(len(entries), 'row')}: {output}")
    if more:
        say(f"  {more:,} more are not on it: --max-rows {config.max_rows}")


def _read(dataset: Path) -> Iterable[Entry]:
    for name, split_name in SPLITS.items():
        if (path := dataset / f"{name}.jsonl").is_file():
            yield from (_entry(row, split_name) for row in read_jsonl(path, RaftRow))
    if (path := dataset / Dropped.FILE).is_file():
        for draft in read_jsonl(path, Dropped):
            reason = f"dropped: {draft.reason}"
            yield Entry(f"{reason} ({draft.chunk_id})", [reason], "", draft.question,
                        [(draft.reply, "")])  # fmt: skip


def _entry(row: RaftRow, split_name: str) -> Entry:
    documents = row.documents
    titles = row.context.title[0] if row.context.title else []
    answer = marked(row.cot_answer, documents)
    quotes = {quote for piece, mark in answer if mark and (quote := piece.strip())}
    absent = row.oracle_index is None and row.oracle_context not in documents
    return Entry(
        name=f"{row.id}, {split_name}",
        kinds=[split_name, *["oracle not shown"] * absent],
        line=f"{row.id}\t{' '.join(row.question.split())}",
        question=row.question,
        answer=answer,
        chunks=[
            (title, _with_quotes(text, quotes), text == row.oracle_context)
            for title, text in itertools.zip_longest(
                titles[: len(documents)], documents, fillvalue=""
            )
        ],
    )


def _with_quotes(text: str, quotes: Iterable[str]) -> Pieces:
    """A chunk with the quotes in it marked; of two that overlap, one is."""
    if not quotes:
        return [(text, "")]
    longest_first = sorted(quotes, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [(piece, "found" if place % 2 else "") for place, piece in enumerate(pieces)]
