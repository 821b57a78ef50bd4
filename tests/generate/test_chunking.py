from pathlib import Path

import pytest

from components.errors import ConfigError
from components.generate.chunking import make_chunker
from components.generate.documents import read_documents


def test_chunks_keep_to_the_limit_and_know_their_place(shared_data: Path) -> None:
    from semantic_text_splitter import TextSplitter

    document = next(read_documents(shared_data / "documents" / "trl_sft_trainer.md"))
    chunks = make_chunker("gpt-4", 128)(document)
    assert len(chunks) > 20
    one_piece = TextSplitter.from_tiktoken_model("gpt-4", 128)
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert len(one_piece.chunks(chunk.text)) == 1, "longer than 128 tokens"
    # Markdown is cut at headings, not in mid-section.
    assert sum(chunk.text.startswith("#") for chunk in chunks) > 5


def test_a_model_folder_can_count(demo_model: Path, texts: Path) -> None:
    document = next(read_documents(texts))
    assert len(make_chunker(str(demo_model), 16)(document)) > 1


def test_unknown_tokenizer() -> None:
    with pytest.raises(ConfigError, match="--tokenizer 'gpt-17'"):
        make_chunker("gpt-17", 128)
