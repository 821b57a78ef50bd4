"""Settings of the generate stage."""

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from components.core.config import InputLocation, KeptLocation, StageConfig, flag, option

READ_BY_MODELS = (
    "teacher_endpoint", "teacher_model", "teacher_concurrency", "teacher_max_tokens",
    "teacher_timeout", "teacher_requests_per_minute", "teacher_tokens_per_minute",
    "question_prompt", "answer_prompt",
)  # fmt: skip
"""Settings that the extractive teacher never looks at."""


class GenerateConfig(StageConfig):
    """Documents in, RAFT rows out."""

    stage: ClassVar[str] = "generate"
    kept_beside_local: ClassVar[bool] = True
    not_part_of_identity: ClassVar[tuple[str, ...]] = (
        "teacher_concurrency",
        "teacher_timeout",
        "teacher_requests_per_minute",
        "teacher_tokens_per_minute",
    )

    documents: InputLocation = option(
        help="Folder or file: .txt, .md, .rst, .html, .pdf, .docx; .json and .jsonl with texts, "
        "contexts in HotpotQA form or API documentation.",
        group="Documents",
    )
    text_field: str = option(
        "",
        help="Field of JSON rows that holds a document's text.",
        group="Documents",
    )
    on_bad_document: Literal["stop", "skip"] = option(
        "stop",
        help="What a document that cannot be read does: it stops the run, or is left out and "
        "counted.",
        group="Documents",
    )
    max_document_mb: int = option(
        50, ge=1, le=100_000, help="Megabytes of a document, and of its text.", group="Documents"
    )
    document_timeout: float = option(
        120.0, gt=0, le=86_400, help="Seconds to read and cut one document.", group="Documents"
    )
    document_memory_mb: int = option(
        4000,
        ge=256,
        le=1_000_000,
        help="Megabytes of memory to read and cut one document in.",
        group="Documents",
    )
    eval_questions: InputLocation = option(
        "",
        help="Questions in HotpotQA form that will test the model: rows that would give them away "
        "are left out and counted.",
        group="Documents",
    )

    chunk_tokens: int = option(
        512, ge=16, le=32_768, help="Most tokens in a chunk.", group="Chunks"
    )
    chunk_overlap: int = option(
        0, ge=0, le=16_384, help="Tokens that a chunk repeats of the one before.", group="Chunks"
    )
    min_chunk_tokens: int = option(
        0, ge=0, le=16_384, help="Chunks with fewer tokens are left out.", group="Chunks"
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

    teacher: Literal["extractive", "openai", "vllm"] = option(
        "extractive",
        help="Who writes questions and answers. extractive: rules, no model; openai: an "
        "OpenAI-compatible endpoint; vllm: vLLM in this process.",
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "",
        help="Base URL of the endpoint, such as http://teacher:8000/v1. The key is read from "
        "OPENAI_API_KEY.",
        group="Teacher",
    )
    teacher_model: str = option(
        "", help="Model that the endpoint serves; for vLLM a hub id or a folder.", group="Teacher"
    )
    teacher_concurrency: int = option(
        16, ge=1, le=1024, help="Requests under way at once.", group="Teacher"
    )
    teacher_max_tokens: int = option(
        1024, ge=32, le=32_768, help="Most tokens in one answer.", group="Teacher"
    )
    teacher_timeout: float = option(
        120.0, gt=0, le=3600, help="Seconds to wait for one answer.", group="Teacher"
    )

    teacher_requests_per_minute: int = option(
        0, ge=0, help="Most requests a minute; 0 sets no limit.", group="Teacher"
    )
    teacher_tokens_per_minute: int = option(
        0,
        ge=0,
        help="Most tokens a minute, in and out, as estimated before a request; 0 sets no limit.",
        group="Teacher",
    )
    responses: KeptLocation = option(
        "",
        help="Folder or gs:// prefix that keeps every paid response, so that a run that was cut "
        "off, or one with other rows, pays for none twice. Empty: beside the output.",
        group="Teacher",
    )
    question_prompt: InputLocation = option(
        "",
        help="File with a prompt of your own for questions, with $chunk and $count.",
        group="Teacher",
    )
    answer_prompt: InputLocation = option(
        "",
        help="File with a prompt of your own for answers, with $chunk and $question.",
        group="Teacher",
    )

    questions_per_chunk: int = option(
        1, ge=1, le=20, help="Questions the teacher writes for a chunk.", group="Rows"
    )
    distractors: int = option(
        3, ge=0, le=50, help="Other chunks shown beside the oracle.", group="Rows"
    )
    distractor_choice: Literal["random", "bm25"] = option(
        "random",
        help="random: any other chunks; bm25: those whose words fit the question best.",
        group="Rows",
    )
    quote_similarity: float = option(
        0.9,
        ge=0.5,
        le=1,
        help="How like a passage a quote must be to be mended; 1 mends only case, white space and "
        "typography.",
        group="Rows",
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
    shard: str = option(
        "1/1",
        pattern=r"^[1-9]\d{0,3}/[1-9]\d{0,3}$",
        examples=["2/8"],
        help="Which share of the chunks this run asks about; `raft merge` joins them.",
        group="Rows",
    )

    @property
    def asked(self) -> str:
        """The teacher, in words."""
        if self.teacher == "extractive":
            return "extractive, rules for trials"
        return f"{self.teacher}, {self.teacher_model}"

    @field_validator("shard")
    @classmethod
    def _there_is_such_a_shard(cls, shard: str) -> str:
        number, count = map(int, shard.split("/"))
        if number > count:
            raise ValueError(f"there are only {count}; the first is 1/{count}")
        return shard

    @model_validator(mode="after")
    def _teacher_is_given_what_it_reads(self) -> Self:
        """No rule-made rows for those who name a model, and no endpoint left to guess.

        A pipeline passes every setting on, so one at its default was not given.
        """
        given = [flag(name) for name in READ_BY_MODELS if getattr(self, name) != self.default(name)]
        if given and self.teacher == "extractive":
            verb = "is" if len(given) == 1 else "are"
            raise ValueError(
                f"{', '.join(given)} {verb} given, but --teacher is extractive, which asks no "
                "model; add --teacher openai (an endpoint) or --teacher vllm (in this process)"
            )
        for name in ("teacher_endpoint", "teacher_model"):
            if self.teacher == "openai" and not getattr(self, name):
                raise ValueError(
                    f"{flag(name)} is missing: --teacher openai needs it, for example "
                    "--teacher-endpoint http://localhost:8000/v1 "
                    "--teacher-model meta-llama/Llama-3.3-70B-Instruct"
                )
        return self
