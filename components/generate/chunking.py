"""Cut documents into chunks of at most so many tokens, on headings, paragraphs and sentences."""

from collections.abc import Callable
from pathlib import Path

from components.errors import ConfigError
from components.records import Chunk, Document

Chunker = Callable[[Document], list[Chunk]]


def make_chunker(tokenizer: str, chunk_tokens: int) -> Chunker:
    """A function that cuts one document; lengths are counted with `tokenizer`.

    Args:
        tokenizer: an OpenAI model name (its vocabulary ships with the splitter), or a folder
            with `tokenizer.json`.
        chunk_tokens: most tokens in a chunk.

    Raises:
        ConfigError: no such tokenizer.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    file = Path(tokenizer) / "tokenizer.json"
    try:
        if file.is_file():
            plain = TextSplitter.from_huggingface_tokenizer_file(str(file), chunk_tokens)
            marked = MarkdownSplitter.from_huggingface_tokenizer_file(str(file), chunk_tokens)
        else:
            plain = TextSplitter.from_tiktoken_model(tokenizer, chunk_tokens)
            marked = MarkdownSplitter.from_tiktoken_model(tokenizer, chunk_tokens)
    except Exception as error:  # the splitter raises bare Exception for an unknown name
        raise ConfigError(
            f"--tokenizer {tokenizer!r}: {error}",
            hint="Give an OpenAI model name such as gpt-4, or a folder with tokenizer.json.",
        ) from None

    def cut(document: Document) -> list[Chunk]:
        splitter = marked if document.id.endswith((".md", ".markdown")) else plain
        return [
            Chunk(
                id=f"{document.id}#{number}",
                document_id=document.id,
                title=document.title,
                text=text,
                start=start,
                end=start + len(text),
            )
            for number, (start, text) in enumerate(splitter.chunk_indices(document.text))
        ]

    return cut
