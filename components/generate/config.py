"""Settings of the generate stage."""

from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from components.core.accelerator import GpuCount
from components.core.config import JsonObject, StageConfig, flag, hardware_option, option_group
from components.core.corpus.options import CorpusOptions, chunk_option, document_option
from components.core.describe import by_rules, few_rows
from components.core.locations import InputLocation, ResumeLocation

NAME_A_MODEL = (
    "teacher_endpoint",
    "teacher_model",
    "teacher_extra",
    "question_prompt",
    "answer_prompt",
)
"""Settings of those who want a model to write the rows."""

OWN_FIELDS = ("messages", "model", "n", "stream")
"""Of a request, that --teacher-extra may not set: replies could not be read, or be another's."""

teacher_option = option_group("Teacher")
row_option = option_group("Rows")


class GenerateConfig(CorpusOptions, StageConfig):
    """Documents in, RAFT rows out."""

    stage: ClassVar[str] = "generate"
    resume_dir_for_local: ClassVar[bool] = True
    not_part_of_identity: ClassVar[tuple[str, ...]] = (
        "teacher_concurrency",
        "teacher_timeout",
        "teacher_requests_per_minute",
        "teacher_tokens_per_minute",
        "teacher_start_timeout",
        "gpus",
        "allow_cpu",
    )

    eval_questions: InputLocation = document_option(
        "",
        help="File of the questions that will test the model, in HotpotQA format or rows of "
        "generate: rows that would give them away are skipped and counted.",
    )

    gold_questions: InputLocation = document_option(
        "",
        help="Questions in HotpotQA format with their answers: the teacher only explains these, "
        "and the documents supply the distractors.",
    )

    max_chunks: int = chunk_option(
        300,
        ge=0,
        help="Ask about at most this many chunks, or gold questions, sampled by seed; 0 asks about "
        "all.",
    )

    teacher: Literal["openai", "vllm", "extractive"] = teacher_option(
        help="What writes questions and answers. openai: an OpenAI-compatible endpoint; vllm: a "
        "server that the step starts on its own GPUs; extractive: rules without a model, for "
        "trials only.",
        min_length=None,
    )
    teacher_endpoint: str = teacher_option(
        "",
        help="Base URL of the endpoint, such as http://teacher:8000/v1. The key is read from "
        "OPENAI_API_KEY.",
    )
    teacher_model: str = teacher_option(
        "", help="Model that the endpoint serves; with vllm a hub id, or a local or gs:// folder."
    )
    teacher_concurrency: int = teacher_option(
        16, ge=1, le=1024, help="Maximum concurrent requests."
    )
    teacher_max_tokens: int = teacher_option(
        1024, ge=32, le=32_768, help="Maximum tokens in one answer."
    )
    teacher_timeout: float = teacher_option(
        120.0, gt=0, le=3600, help="Per-request timeout, seconds."
    )
    teacher_start_timeout: float = teacher_option(
        3600.0,
        gt=0,
        le=24 * 3600,
        help="With vllm: seconds that the server may take to download and load the model.",
    )
    teacher_requests_per_minute: int = teacher_option(
        0, ge=0, help="Maximum requests per minute; 0: no limit."
    )
    teacher_tokens_per_minute: int = teacher_option(
        0,
        ge=0,
        help="Maximum tokens per minute, in and out, as estimated before a request; 0: no limit.",
    )
    teacher_max_cost: float = teacher_option(
        0.0,
        ge=0,
        help="Maximum cost of the teacher in USD; at the limit, the dataset is finished with the "
        "replies so far. Computed from the price of a request in components/core/gpus.yaml, with "
        "vllm from that of the GPUs' time. 0: no limit.",
    )
    teacher_extra: JsonObject = teacher_option(
        {},
        help="Further fields of every request, as JSON, such as "
        '{"chat_template_kwargs": {"enable_thinking": false}}.',
    )
    responses: ResumeLocation = teacher_option(
        "",
        help="Folder or gs:// prefix that stores every paid response, so that no later run pays "
        "for it again. Empty: in --state, or else next to the output.",
    )
    fresh: bool = teacher_option(
        False,
        help="Discard the responses that earlier runs have stored (in --state, only those of this "
        "model), and pay again. Do not set it in a Kubernetes Job: a retry would start over too.",
        in_pipeline=False,
    )
    gpus: GpuCount = hardware_option(
        "",
        help="With vllm: number of GPUs to spread the model over; a pipeline sets this. Empty: all "
        "available.",
    )
    allow_cpu: bool = hardware_option(
        False,
        help="With vllm: run on the CPU where there is no GPU, for trials with a small model.",
    )
    question_prompt: InputLocation = teacher_option(
        "", help="File with your own prompt for questions, with $chunk and $count."
    )
    answer_prompt: InputLocation = teacher_option(
        "", help="File with your own prompt for answers, with $chunk and $question."
    )

    questions_per_chunk: int = row_option(1, ge=1, le=20, help="Questions per chunk.")
    distractors: int = row_option(3, ge=0, le=50, help="Other chunks shown next to the oracle.")
    distractor_choice: Literal["bm25", "random"] = row_option(
        "bm25",
        help="bm25: the chunks whose words fit the question best, as a retriever finds them; "
        "random: any other chunks.",
    )
    quote_similarity: float = row_option(
        0.9,
        ge=0.5,
        le=1,
        help="Minimum similarity at which an inexact quote is corrected to the source text; at 1 "
        "only case, whitespace and typography may differ.",
    )
    oracle_probability: float = row_option(
        0.8,
        ge=0,
        le=1,
        help="Share of rows that keep the oracle; the others show a further distractor in its "
        "place (the paper's P).",
    )
    oracle_absent: Literal["answer", "no-quote", "refuse"] = row_option(
        "refuse",
        help="The answer of a row whose oracle is not shown. answer: the same as with the oracle, "
        "with quotes from it (the paper); no-quote: the answer, without a quote; refuse: that it "
        "is not in the documents.",
    )
    validation_fraction: float = row_option(
        0.1, ge=0, le=0.5, help="Share of documents kept out of training."
    )

    @field_validator("teacher_extra")
    @classmethod
    def _leaves_the_request_what_it_is(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := [name for name in OWN_FIELDS if name in extra]:
            raise ValueError(f"may not set {', '.join(own)}")
        return extra

    @model_validator(mode="after")
    def _teacher_is_given_what_it_reads(self) -> Self:
        """No rule-made rows for those who name a model, and no endpoint left to guess."""
        fields = [flag(name) for name in NAME_A_MODEL if getattr(self, name)]
        if fields and self.teacher == "extractive":
            raise ValueError(
                f"{', '.join(fields)}: --teacher is extractive, which asks no model; add "
                "--teacher openai"
            )
        if self.teacher == "vllm" and self.teacher_endpoint:
            raise ValueError(
                "--teacher-endpoint: --teacher is vllm, which starts its own server; omit this "
                "flag, or add --teacher openai"
            )
        needed = {"openai": ("teacher_endpoint", "teacher_model"), "vllm": ("teacher_model",)}
        for name in needed.get(self.teacher, ()):
            if not getattr(self, name):
                endpoint = "--teacher-endpoint http://localhost:8000/v1 "
                raise ValueError(
                    f"{flag(name)} is missing: --teacher {self.teacher} needs it, for example "
                    f"{endpoint * (self.teacher == 'openai')}"
                    "--teacher-model meta-llama/Llama-3.3-70B-Instruct"
                )
        return self

    def notes(self) -> list[str]:
        """What to know before the teacher is asked: its kind, and how many rows it can give."""
        notes = by_rules(self.teacher, self.gold_questions)
        if self.max_chunks:
            most = self.max_chunks * self.questions_per_chunk
            notes.append(
                f"at most {most:,} rows: --max-chunks {self.max_chunks} × --questions-per-chunk "
                f"{self.questions_per_chunk}"
            )
            notes += few_rows(most)
        return notes
