"""Settings of what reads documents, for the config class of a stage that does."""

from typing import Literal

from pydantic import BaseModel

from components.core.config import InputLocation, option


class CorpusOptions(BaseModel):
    """Which documents are read, within which limits, and how they are cut."""

    documents: InputLocation = option(
        help="Folder or file: .txt, .md, .rst, .html, .pdf, .docx; .json and .jsonl with texts, "
        "contexts in HotpotQA format or API documentation.",
        group="Documents",
    )
    text_field: str = option(
        "", help="Field of JSON rows that holds a document's text.", group="Documents"
    )
    on_bad_document: Literal["stop", "skip"] = option(
        "stop", help="On an unreadable document: stop, or skip and count it.", group="Documents"
    )
    max_document_mb: int = option(
        50,
        ge=1,
        le=100_000,
        help="Maximum size in MB of a document and of its extracted text.",
        group="Documents",
    )
    document_timeout: float = option(
        120.0, gt=0, le=86_400, help="Per-document timeout, seconds.", group="Documents"
    )
    document_memory_mb: int = option(
        4000,
        ge=256,
        le=1_000_000,
        help="Maximum memory in MB of the process that reads documents.",
        group="Documents",
    )

    chunk_tokens: int = option(
        512, ge=16, le=32_768, help="Maximum tokens in a chunk.", group="Chunks"
    )
    chunk_overlap: int = option(
        0, ge=0, le=16_384, help="Overlap between consecutive chunks, tokens.", group="Chunks"
    )
    min_chunk_tokens: int = option(
        0, ge=0, le=16_384, help="Chunks with fewer tokens are skipped.", group="Chunks"
    )
    tokenizer: str = option(
        "gpt-4",
        help="Tokenizer that counts chunk tokens: an OpenAI model name, or a folder with "
        "tokenizer.json.",
        group="Chunks",
    )
