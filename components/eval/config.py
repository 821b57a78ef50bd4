"""Settings of the eval stage."""

from typing import ClassVar, Literal

from pydantic import field_validator

from components.config import InputLocation, StageConfig, TextList, option

ARMS = ("base", "raft", "base-4bit", "raft-4bit")
"""The model variants that can be compared, in the order in which they are asked by default."""


class EvalConfig(StageConfig):
    """Questions and a tuned model in, scores of every arm and a report out."""

    stage: ClassVar[str] = "eval"

    questions: InputLocation = option(
        help="JSON file of questions with their paragraphs, in HotpotQA form.", group="Inputs"
    )
    base_model: InputLocation = option(
        help="The adapter's base: hub id, local folder or gs:// folder.", group="Inputs"
    )
    adapter: InputLocation = option(help="Folder with the adapter of train.", group="Inputs")
    quantization: InputLocation = option(
        "",
        help="Folder of quantize-check; its measured weight bytes go in the report.",
        group="Inputs",
    )

    arms: TextList = option(
        ARMS,
        help="Model variants to compare: base, raft, base-4bit, raft-4bit.",
        group="Comparison",
    )
    max_questions: int = option(
        1000, ge=1, help="Ask at most this many, sampled by seed.", group="Comparison"
    )
    distractors: int = option(
        -1,
        ge=-1,
        help="Paragraphs shown beside the oracle ones; -1 shows all that a question has.",
        group="Comparison",
    )
    max_new_tokens: int = option(
        800, ge=1, le=32_768, help="Room for one generation.", group="Comparison"
    )
    batch_size: int = option(16, ge=1, le=4096, help="Questions per batch.", group="Hardware")
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", help="16-bit arms' type; auto is bfloat16 on a GPU that has it.", group="Hardware"
    )
    resamples: int = option(
        2000,
        ge=100,
        le=1_000_000,
        help="Bootstrap resamples behind each interval.",
        group="Comparison",
    )

    @field_validator("arms")
    @classmethod
    def _known_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        allowed = " | ".join(ARMS)
        for arm in arms:
            if arm not in ARMS:
                raise ValueError(f"unknown arm {arm!r} (allowed: {allowed})")
            if arms.count(arm) > 1:
                raise ValueError(f"arm {arm!r} is named twice")
        if not arms:
            raise ValueError(f"names no arm (allowed: {allowed})")
        return arms
