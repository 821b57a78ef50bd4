"""What counts as a quote, and as one that a document really holds."""

import pytest

from components.core import quotes
from components.core.quotes import QuoteCounts

DOCUMENTS = ["Bram bakes bread. Kelden", "Ada was born in Kelden. She paints.", "No."]


def quoting(*texts: str) -> str:
    return "So " + " and ".join(f"##begin_quote##{text}##end_quote##" for text in texts)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Kelden", QuoteCounts(0, 0, 0)),
        (quoting("Ada was born in Kelden."), QuoteCounts(1, 1, 1)),
        (quoting(" Bram bakes bread. "), QuoteCounts(1, 1, 0)),
        (
            quoting("Ada was born in Kelden.", "Ada flew.", "Bram bakes bread."),
            QuoteCounts(3, 2, 1),
        ),
        (quoting("Kelden"), QuoteCounts(1, 0, 0)),  # one word stands in any text
        (quoting("No."), QuoteCounts(1, 1, 0)),  # but this is all of a document
        (quoting("", "  "), QuoteCounts(0, 0, 0)),
        ("##begin_quote##Ada was born in Kelden.", QuoteCounts(0, 0, 0)),
        ("Ada was born in Kelden.##end_quote##", QuoteCounts(0, 0, 0)),
        ("##end_quote##x" + quoting("Ada was born in Kelden."), QuoteCounts(1, 1, 1)),
        ("##begin_quote##open " + quoting("Ada was born in Kelden."), QuoteCounts(1, 0, 0)),
    ],
)
def test_quotes_are_held_against_the_documents(text: str, counts: QuoteCounts) -> None:
    assert quotes.check(text, DOCUMENTS, [1]) == counts


def test_without_an_oracle_nothing_quotes_it() -> None:
    assert quotes.check(quoting("Ada was born in Kelden."), DOCUMENTS, []) == QuoteCounts(1, 1, 0)


@pytest.mark.parametrize("text", ["", "plain", "a##begin_quote##b##end_quote##c##begin_quote##d"])
def test_the_pieces_are_the_text(text: str) -> None:
    pieces = quotes.split(text)
    assert len(pieces) % 2 == 1
    marked = [
        f"##begin_quote##{piece}##end_quote##" if index % 2 else piece
        for index, piece in enumerate(pieces)
    ]
    assert "".join(marked) == text
