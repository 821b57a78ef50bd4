"""Cut documents into chunks of at most so many tokens, on headings, paragraphs and sentences."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.core.errors import ConfigError
from components.core.records import Chunk, Document
from components.generate.config import GenerateConfig

BLOCK = 100_000
"""Characters cut at a time: on a line of a million without a space, tokenizers take minutes."""

Chunker = Callable[[Document], list[Chunk]]


def make_chunker(config: GenerateConfig) -> Chunker:
    """A function that cuts one document, and leaves out what is shorter than a chunk may be.

    The documentation of an API call is one chunk, whole: half of it is of no use.

    Raises:
        ConfigError: no such tokenizer, or the overlap leaves no room.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    if config.chunk_overlap >= config.chunk_tokens:
        raise ConfigError(
            f"--chunk-overlap {config.chunk_overlap} leaves nothing of --chunk-tokens "
            f"{config.chunk_tokens}",
            hint="A tenth of --chunk-tokens is usual.",
        )
    size, overlap = config.chunk_tokens, config.chunk_overlap
    plain = _splitter(TextSplitter, config.tokenizer, size, overlap)
    marked = _splitter(MarkdownSplitter, config.tokenizer, size, overlap)
    # What fits in one piece of this splitter is too short.
    short = (
        _splitter(TextSplitter, config.tokenizer, config.min_chunk_tokens - 1, 0)
        if config.min_chunk_tokens > 1
        else None
    )

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
            hint="Give an OpenAI model name such as gpt-4, or a folder with tokenizer.json.",
        ) from None
