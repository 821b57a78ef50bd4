"""The quotes of a generation, and whether the documents contain them.

RAFT's point is reasoning from the documents: an answer quotes them between `##begin_quote##` and
`##end_quote##`. Knows nothing of models or pages.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from components.core.raft_form import QUOTE_BEGIN, QUOTE_END

SHORTEST = 8
"""Characters; shorter texts occur in any document."""


class QuoteCounts(NamedTuple):
    """Quotes of one generation: all, those that a document contains, those of an oracle one."""

    quotes: int
    verbatim: int
    oracle: int


def split(text: str) -> list[str]:
    """A text cut at its quotes: plain, quoted, plain, …; an unclosed marker stays plain text.

    Takes time in proportion to the text, however many markers are left open in it.
    """
    pieces: list[str] = []
    rest = 0
    while True:
        begin = text.find(QUOTE_BEGIN, rest)
        end = text.find(QUOTE_END, begin) if begin >= 0 else -1
        if end < 0:
            return [*pieces, text[rest:]]
        pieces += [text[rest:begin], text[begin + len(QUOTE_BEGIN) : end]]
        rest = end + len(QUOTE_END)


def quoted(text: str) -> list[str]:
    """What a text quotes, without empty quotes."""
    return [quote for piece in split(text)[1::2] if (quote := piece.strip())]


def check(text: str, documents: Sequence[str], oracles: Collection[int]) -> QuoteCounts:
    """Look the quotes of a generation up in the documents that were shown."""
    verbatim = oracle = 0
    found = quoted(text)
    for quote in found:
        numbers = places(quote, documents)
        verbatim += bool(numbers)
        oracle += not set(oracles).isdisjoint(numbers)
    return QuoteCounts(len(found), verbatim, oracle)


def marked(text: str, documents: Sequence[str]) -> list[tuple[str, str]]:
    """A text cut at its quotes, for a page: each part is plain (""), or a quote `found` or `lost`.

    Found is what any document contains, however short.
    """
    marks = {True: "found", False: "lost"}
    return [
        (piece, marks[any(piece.strip() in one for one in documents)] if number % 2 else "")
        for number, piece in enumerate(split(text))
    ]


def places(quote: str, documents: Sequence[str]) -> list[int]:
    """Which documents contain a quote; one shorter than `SHORTEST` must be a whole document."""
    quote = quote.strip()
    return [
        number
        for number, document in enumerate(documents)
        if (quote in document if len(quote) >= SHORTEST else quote == document.strip())
    ]
