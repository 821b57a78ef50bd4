"""Settings of the generate stage."""

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from components.core.config import InputLocation, KeptLocation, StageConfig, flag, option
from components.core.corpus.options import CorpusOptions

READ_BY_MODELS = (
    "teacher_endpoint", "teacher_model", "teacher_concurrency", "teacher_max_tokens",
    "teacher_timeout", "teacher_requests_per_minute", "teacher_tokens_per_minute",
    "question_prompt", "answer_prompt",
)  # fmt: skip
"""Settings that the extractive teacher never looks at."""


class GenerateConfig(CorpusOptions, StageConfig):
    """Documents in, RAFT rows out."""

    stage: ClassVar[str] = "generate"
    kept_beside_local: ClassVar[bool] = True
    not_part_of_identity: ClassVar[tuple[str, ...]] = (
        "teacher_concurrency",
        "teacher_timeout",
        "teacher_requests_per_minute",
        "teacher_tokens_per_minute",
    )

    eval_questions: InputLocation = option(
        "",
        help="Questions in HotpotQA format that will test the model: rows that would give them "
        "away are skipped and counted.",
        group="Documents",
    )

    max_chunks: int = option(
        100,
        ge=0,
        help="Ask about at most this many chunks, sampled by seed; 0 asks about all.",
        group="Chunks",
    )

    teacher: Literal["extractive", "openai"] = option(
        "extractive",
        help="What writes questions and answers. extractive: rules, no model; openai: an "
        "OpenAI-compatible endpoint.",
        group="Teacher",
    )
    teacher_endpoint: str = option(
        "",
        help="Base URL of the endpoint, such as http://teacher:8000/v1. The key is read from "
        "OPENAI_API_KEY.",
        group="Teacher",
    )
    teacher_model: str = option("", help="Model that the endpoint serves.", group="Teacher")
    teacher_concurrency: int = option(
        16, ge=1, le=1024, help="Maximum concurrent requests.", group="Teacher"
    )
    teacher_max_tokens: int = option(
        1024, ge=32, le=32_768, help="Maximum tokens in one answer.", group="Teacher"
    )
    teacher_timeout: float = option(
        120.0, gt=0, le=3600, help="Per-request timeout, seconds.", group="Teacher"
    )

    teacher_requests_per_minute: int = option(
        0, ge=0, help="Maximum requests per minute; 0: no limit.", group="Teacher"
    )
    teacher_tokens_per_minute: int = option(
        0,
        ge=0,
        help="Maximum tokens per minute, in and out, as estimated before a request; 0: no limit.",
        group="Teacher",
    )
    responses: KeptLocation = option(
        "",
        help="Folder or gs:// prefix that stores every paid response, so that an interrupted run, "
        "or one that makes other rows, pays for none twice. Empty: next to the output.",
        group="Teacher",
    )
    question_prompt: InputLocation = option(
        "",
        help="File with your own prompt for questions, with $chunk and $count.",
        group="Teacher",
    )
    answer_prompt: InputLocation = option(
        "",
        help="File with your own prompt for answers, with $chunk and $question.",
        group="Teacher",
    )

    questions_per_chunk: int = option(1, ge=1, le=20, help="Questions per chunk.", group="Rows")
    distractors: int = option(
        3, ge=0, le=50, help="Other chunks shown next to the oracle.", group="Rows"
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
        help="Minimum similarity at which an inexact quote is corrected to the source text; at 1 "
        "only case, whitespace and typography may differ.",
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
    def teacher_name(self) -> str:
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
                "model; add --teacher openai"
            )
        for name in ("teacher_endpoint", "teacher_model"):
            if self.teacher == "openai" and not getattr(self, name):
                raise ValueError(
                    f"{flag(name)} is missing: --teacher openai needs it, for example "
                    "--teacher-endpoint http://localhost:8000/v1 "
                    "--teacher-model meta-llama/Llama-3.3-70B-Instruct"
                )
        return self
