"""Settings of what reads documents, for the config class of a stage that does."""

from typing import Literal

from pydantic import BaseModel

from components.core.config import option_group
from components.core.locations import InputLocation

document_option = option_group("Documents")
chunk_option = option_group("Chunks")


class CorpusOptions(BaseModel):
    """Which documents are read, within which limits, and how they are cut."""

    documents: InputLocation = document_option(
        help="Folder or file: .txt, .md, .rst, .html, .pdf, .docx; .csv and .tsv; .json and .jsonl "
        "with texts, contexts in HotpotQA format or API documentation."
    )
    text_field: str = document_option(
        "", help="Field of JSON rows, or column of a table, that holds a document's text."
    )
    on_bad_document: Literal["stop", "skip"] = document_option(
        "stop", help="On an unreadable document: stop, or skip and count it."
    )
    max_document_mb: int = document_option(
        50, ge=1, le=100_000, help="Maximum size in MB of a document and of its extracted text."
    )
    document_timeout: float = document_option(
        120.0, gt=0, le=86_400, help="Per-document timeout, seconds."
    )
    document_memory_mb: int = document_option(
        4000, ge=256, le=1_000_000, help="Maximum memory in MB of the process that reads documents."
    )

    chunk_tokens: int = chunk_option(512, ge=16, le=32_768, help="Maximum tokens in a chunk.")
    chunk_overlap: int = chunk_option(
        0, ge=0, le=16_384, help="Overlap between consecutive chunks, tokens."
    )
    min_chunk_tokens: int = chunk_option(
        0, ge=0, le=16_384, help="Chunks with fewer tokens are skipped."
    )
    tokenizer: str = chunk_option(
        "gpt-4",
        help="Tokenizer that counts chunk tokens: an OpenAI model name, or a folder with "
        "tokenizer.json.",
    )
