"""Cut documents into chunks of at most so many tokens, on headings, paragraphs and sentences."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.core.corpus.options import CorpusOptions
from components.core.errors import ConfigError
from components.core.records import Chunk, Document

BLOCK = 100_000
"""Characters cut at a time: on a line of a million without a space, tokenizers take minutes."""

Chunker = Callable[[Document], list[Chunk]]


def make_chunker(options: CorpusOptions) -> Chunker:
    """A function that cuts one document, and skips chunks that are too short.

    The documentation of an API call is one chunk, whole: half of it is useless.

    Raises:
        ConfigError: no such tokenizer, or the overlap leaves no room.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    size, overlap, minimum = options.chunk_tokens, options.chunk_overlap, options.min_chunk_tokens
    if overlap >= size:
        raise ConfigError(
            f"--chunk-overlap {overlap} must be less than --chunk-tokens {size}",
            hint="A tenth of --chunk-tokens is usual.",
        )
    plain = _splitter(TextSplitter, options.tokenizer, size, overlap)
    marked = _splitter(MarkdownSplitter, options.tokenizer, size, overlap)
    # A text that fits in one piece of this splitter is too short.
    short = _splitter(TextSplitter, options.tokenizer, minimum - 1, 0) if minimum > 1 else None

    def cut(document: Document) -> list[Chunk]:
        if document.form == "api":
            pieces = [(0, document.text)]
        else:
            splitter = marked if document.form == "markdown" else plain
            pieces = [
                (offset + start, text)
                for offset, block in _blocks(document.text)
                for start, text in splitter.chunk_indices(block)
            ]
        return [
            Chunk(
                id=f"{document.id}#{number}",
                document_id=document.id,
                title=document.title,
                text=text,
                start=start,
                end=start + len(text),
                type="api call" if document.form == "api" else "general",
            )
            for number, (start, text) in enumerate(pieces)
            if short is None or len(short.chunks(text)) > 1
        ]

    return cut


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """A long text in parts, with their offsets; parts end at paragraphs, lines or words."""
    start = 0
    while len(text) - start > BLOCK:
        ends = (text.rfind(gap, start + BLOCK // 2, start + BLOCK) for gap in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > 0), start + BLOCK)
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _splitter(kind: Any, tokenizer: str, size: int, overlap: int) -> Any:
    """A splitter that counts with an OpenAI model's vocabulary, or with a folder's tokenizer."""
    file = Path(tokenizer) / "tokenizer.json"
    try:
        if file.is_file():
            return kind.from_huggingface_tokenizer_file(str(file), size, overlap)
        return kind.from_tiktoken_model(tokenizer, size, overlap)
    except Exception as error:  # the splitter raises bare Exception for an unknown name
        raise ConfigError(
            f"--tokenizer {tokenizer!r}: {error}",
            hint="Pass an OpenAI model name such as gpt-4, or a folder with tokenizer.json.",
        ) from error
