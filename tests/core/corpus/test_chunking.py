from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from components.core.corpus.chunking import Chunker, make_chunker
from components.core.corpus.documents import read_document
from components.core.errors import ConfigError
from components.core.records import Document
from tests.conftest import by_rules


def chunker(**settings: Any) -> Chunker:
    return make_chunker(by_rules("d", **settings))


def test_chunks_keep_to_the_limit_and_know_their_place(documents: Path) -> None:
    from semantic_text_splitter import TextSplitter

    path = documents / "guide.md"
    (document,) = read_document(path, path.parent)
    chunks = chunker(chunk_tokens=128)(document)
    assert len(chunks) > 20
    one_piece = TextSplitter.from_tiktoken_model("gpt-4", 128)
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert len(one_piece.chunks(chunk.text)) == 1, "longer than 128 tokens"
    # Markdown is cut at headings, not in mid-section.
    assert sum(chunk.text.startswith("#") for chunk in chunks) > 5


def test_chunks_overlap_and_keep_their_place() -> None:
    text = " ".join(f"Sentence number {number} is here." for number in range(100))
    document = Document(id="d", title="", text=text)
    chunks = chunker(chunk_tokens=64, chunk_overlap=16)(document)
    apart = chunker(chunk_tokens=64)(document)
    assert len(chunks) > len(apart) > 5
    for before, after in pairwise(chunks):
        assert after.start < before.end
        assert text[after.start : after.end] == after.text


def test_short_chunks_are_left_out_and_numbers_stay() -> None:
    text = "# A\n\n" + "word " * 60 + "\n\n# B\n"
    document = Document(id="d.md", title="", text=text, form="markdown")
    all_of_them = chunker(chunk_tokens=64)(document)
    long = chunker(chunk_tokens=64, min_chunk_tokens=10)(document)
    assert all_of_them[-1].text == "# B"
    assert long == all_of_them[:-1]


def test_the_documentation_of_an_api_stays_whole() -> None:
    document = Document(id="d", title="", text="api_call: f()\n" * 200, form="api")
    (chunk,) = chunker(chunk_tokens=32)(document)
    assert chunk.text == document.text and chunk.type == "api call"


@pytest.mark.parametrize("unit", ["a", "word ", "# Head\n\nA paragraph. And more.\n\n", "你好"])
def test_long_texts_are_cut_in_parts_and_keep_their_places(unit: str) -> None:
    text = (unit * 300_000)[:250_000].strip()
    chunks = chunker(tokenizer="gpt-4", chunk_tokens=2000)(
        Document(id="d", title="", text=text, form="markdown")
    )
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text


def test_a_model_folder_can_count(demo_model: Path, texts: Path) -> None:
    (document,) = read_document(texts / "Towna.txt", texts)
    assert len(chunker(tokenizer=str(demo_model), chunk_tokens=16)(document)) > 1


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="--tokenizer 'gpt-17'"):
        chunker(tokenizer="gpt-17")
    with pytest.raises(ConfigError, match="--chunk-overlap 64 must be less than --chunk-tokens 64"):
        chunker(chunk_tokens=64, chunk_overlap=64)
