"""Settings of the generate stage."""

from typing import ClassVar, Literal

from components.config import InputLocation, StageConfig, option


class GenerateConfig(StageConfig):
    """Documents in, RAFT rows out."""

    stage: ClassVar[str] = "generate"

    documents: InputLocation = option(
        help="Folder or file: .txt and .md texts, .json contexts in HotpotQA form.",
        group="Documents",
    )

    chunk_tokens: int = option(
        512, ge=16, le=32_768, help="Most tokens in a chunk.", group="Chunks"
    )
    tokenizer: str = option(
        "gpt-4",
        help="What counts chunk tokens: an OpenAI model name, or a folder with tokenizer.json.",
        group="Chunks",
    )
    max_chunks: int = option(
        100,
        ge=0,
        help="Ask about at most this many chunks, sampled by seed; 0 asks about all.",
        group="Chunks",
    )

    teacher: Literal["extractive", "openai"] = option(
        "extractive",
        help="Who writes questions and answers: rules without a model, or an "
        "OpenAI-compatible endpoint.",
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "",
        help="Base URL of the endpoint, such as http://teacher:8000/v1. The key is read from "
        "OPENAI_API_KEY.",
        group="Teacher",
    )
    teacher_model: str = option("", help="Model name to ask the endpoint for.", group="Teacher")
    teacher_concurrency: int = option(
        16, ge=1, le=1024, help="Requests under way at once.", group="Teacher"
    )
    teacher_max_tokens: int = option(
        1024, ge=32, le=32_768, help="Room for one answer.", group="Teacher"
    )
    teacher_timeout: float = option(
        120.0, gt=0, le=3600, help="Seconds to wait for one answer.", group="Teacher"
    )

    questions_per_chunk: int = option(
        1, ge=1, le=20, help="Questions the teacher writes for a chunk.", group="Rows"
    )
    distractors: int = option(
        3, ge=0, le=50, help="Other chunks shown beside the oracle.", group="Rows"
    )
    oracle_probability: float = option(
        0.8,
        ge=0,
        le=1,
        help="Share of rows that keep the oracle; the others show a further distractor in its "
        "place (the paper's P).",
        group="Rows",
    )
    validation_fraction: float = option(
        0.1, ge=0, le=0.5, help="Share of documents kept out of training.", group="Rows"
    )
