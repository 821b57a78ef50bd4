"""Settings of the eval stage."""

from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, cast, get_args

from pydantic import Field, field_validator

from components.core.config import (
    InputLocation,
    KeptLocation,
    NumberList,
    StageConfig,
    TextList,
    option,
)
from components.core.errors import DataError
from components.core.records import Oracle

ARMS = ("base", "raft", "base-4bit", "raft-4bit")
"""The model variants that can be compared, in the order in which they are asked by default."""

ORACLES: tuple[Oracle, ...] = get_args(Oracle)


class Arm(NamedTuple):
    """A model variant under test: with the adapter or without, in full or in 4 bits."""

    name: str
    adapter: str | None
    four_bit: bool


class Layout(NamedTuple):
    """How a question's paragraphs are shown: how many distractors, and where the oracle stands."""

    distractors: int
    oracle: Oracle


class EvalConfig(StageConfig):
    """Questions and a tuned model in, scores of every arm and a report out."""

    stage: ClassVar[str] = "eval"

    questions: InputLocation = option(
        help="Questions with their paragraphs: a JSON file in HotpotQA form, rows of generate "
        "(validation.jsonl, or its folder), or hotpotqa/hotpot_qa from the hub.",
        group="Inputs",
    )
    base_model: InputLocation = option(
        help="The adapter's base: hub id, local folder or gs:// folder.", group="Inputs"
    )
    adapter: InputLocation = option(help="Folder with the adapter of train.", group="Inputs")
    adapters: InputLocation = option(
        "",
        help="Folder of further adapters of the same base, one a subfolder; each becomes a 16-bit "
        "arm raft:SUBFOLDER.",
        group="Inputs",
        in_pipeline=False,
    )
    quantization: InputLocation = option(
        "",
        help="Folder of quantize-check; its measured weight bytes go in the report.",
        group="Inputs",
    )

    task: Literal["hotpotqa_raft", "hotpotqa_rag", "hotpotqa_closed"] = option(
        "hotpotqa_raft",
        help="Prompt. hotpotqa_raft: as RAFT was trained; hotpotqa_rag: plain retrieval; "
        "hotpotqa_closed: the question without documents.",
        group="Comparison",
    )
    arms: TextList = option(
        ARMS,
        help="Model variants to compare: base, raft, base-4bit, raft-4bit.",
        group="Comparison",
    )
    max_questions: int = option(
        1000, ge=1, help="Ask at most this many, sampled by seed.", group="Comparison"
    )
    distractors: Annotated[NumberList, Field(min_length=1)] = option(
        (-1,),
        help="Paragraphs shown beside the oracle ones; -1 shows all that a question has. The arms "
        "are compared at the first number; more of them (0,2,4,8) add a robustness curve.",
        group="Comparison",
    )
    oracle: TextList = option(
        ("present",),
        help="Where the oracle paragraphs stand: present (in the question's order), absent, first "
        "or last. The arms are compared at the first; more of them add curves.",
        group="Comparison",
    )
    max_new_tokens: int = option(
        800, ge=1, le=32_768, help="Most tokens in one generation.", group="Comparison"
    )
    engine: Literal["auto", "transformers", "vllm"] = option(
        "auto",
        help="What generates; auto is vllm where it is installed and there is a GPU.",
        group="Hardware",
    )
    batch_size: int = option(
        16, ge=1, le=4096, help="Questions per batch; vllm batches by itself.", group="Hardware"
    )
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

    partial: KeptLocation = option(
        "",
        help="Folder or gs:// prefix that receives finished generations while it runs, so that "
        "another machine can go on from them; by default OUTPUT-partial beside a gs:// --output.",
        group="Output",
        in_pipeline=False,
    )

    @field_validator("arms")
    @classmethod
    def _known_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        return _checked("arm", arms, ARMS)

    @field_validator("oracle")
    @classmethod
    def _known_places(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        return _checked("place", places, ORACLES)

    @field_validator("distractors")
    @classmethod
    def _counted_once(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        for count in counts:
            if count < -1:
                raise ValueError(f"{count} is too small (allowed: whole numbers >= -1)")
            if counts.count(count) > 1:
                raise ValueError(f"{count} is given twice")
        return counts

    def variants(self) -> list[Arm]:
        """The arms to ask, in order.

        Raises:
            DataError: the folder of further adapters holds none.
        """
        arms = [
            Arm(name, self.adapter if name.startswith("raft") else None, name.endswith("-4bit"))
            for name in self.arms
        ]
        further = [
            Arm(f"raft:{path.parent.name}", str(path.parent), False)
            for path in sorted(Path(self.adapters).glob("*/adapter_config.json"))
            if self.adapters
        ]
        if self.adapters and not further:
            raise DataError(
                "no subfolder with an adapter_config.json",
                path=self.adapters,
                hint="--adapters takes a folder whose subfolders are adapters of raft train.",
            )
        return [*arms, *further]

    def layouts(self) -> list[Layout]:
        """The ways to show the documents; the first is the one of the comparison."""
        return [
            Layout(count, cast(Oracle, place))
            for place, count in product(self.oracle, self.distractors)
        ]


def _checked(kind: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = " | ".join(allowed)
    for name in given:
        if name not in allowed:
            raise ValueError(f"unknown {kind} {name!r} (allowed: {words})")
        if given.count(name) > 1:
            raise ValueError(f"{kind} {name!r} is named twice")
    if not given:
        raise ValueError(f"names no {kind} (allowed: {words})")
    return given
