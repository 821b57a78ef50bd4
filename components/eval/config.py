"""Settings of the eval stage."""

from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast, get_args

from pydantic import Field, ValidationInfo, field_validator

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
from components.eval.arms import ARMS, DEFAULT_ARMS, Arm, further_arm
from components.eval.questions import DATASETS, ContextLayout

ORACLES: tuple[Oracle, ...] = get_args(Oracle)
CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "task": ("data set", DATASETS),
    "arms": ("arm", tuple(ARMS)),
    "oracle": ("place", ORACLES),
}
"""By setting: what its values are called, and those that exist."""


class EvalConfig(StageConfig):
    """Questions and a tuned model in, scores of every arm and a report out."""

    stage: ClassVar[str] = "eval"

    questions: InputLocation = option(
        help="Questions with their documents: a file in the data set's format, rows of generate "
        "(validation.jsonl, or its folder), or the data set's name on the hub.",
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

    task: str = option(
        "hotpotqa",
        help=f"Data set whose format --questions has: {', '.join(DATASETS)}.",
        group="Comparison",
    )
    arms: TextList = option(
        DEFAULT_ARMS,
        help="Model variants to compare: "
        + "; ".join(f"{arm.name}: {arm.label}, {arm.bits}-bit" for arm in ARMS.values())
        + ".",
        group="Comparison",
    )
    max_questions: int = option(
        1000, ge=1, help="Maximum questions to ask, sampled by seed.", group="Comparison"
    )
    distractors: Annotated[NumberList, Field(min_length=1)] = option(
        (-1,),
        help="Documents shown with the oracle ones; -1 shows all that a question has. The arms "
        "are compared at the first number; more of them (0,2,4,8) add a robustness curve.",
        group="Comparison",
    )
    oracle: TextList = option(
        ("present",),
        help="Where the oracle documents are: present (in the question's order), absent, first "
        "or last. The arms are compared at the first; more of them add curves.",
        group="Comparison",
    )
    max_new_tokens: int = option(
        800, ge=1, le=32_768, help="Maximum tokens in one generation.", group="Comparison"
    )
    engine: Literal["auto", "transformers", "vllm"] = option(
        "auto",
        help="Inference engine; auto is vllm where it is installed and there is a GPU.",
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
        "another machine can resume; by default OUTPUT-partial next to a gs:// --output.",
        group="Output",
        in_pipeline=False,
    )

    @field_validator("task", "arms", "oracle")
    @classmethod
    def _known_and_once(cls, value: str | tuple[str, ...], info: ValidationInfo) -> object:
        kind, allowed = CHOICES[str(info.field_name)]
        names = (value,) if isinstance(value, str) else value
        choices = f"(allowed: {' | '.join(allowed)})"
        for name in names:
            if name not in allowed:
                raise ValueError(f"unknown {kind} {name!r} {choices}")
            if names.count(name) > 1:
                raise ValueError(f"{kind} {name!r} is listed twice")
        if not names:
            raise ValueError(f"names no {kind} {choices}")
        return value

    @field_validator("distractors")
    @classmethod
    def _counted_once(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        for count in counts:
            if count < -1:
                raise ValueError(f"{count} is too small (allowed: whole numbers >= -1)")
            if counts.count(count) > 1:
                raise ValueError(f"{count} is listed twice")
        return counts

    def variants(self) -> list[Arm]:
        """The arms to ask, in order, each with its adapter's folder.

        Raises:
            DataError: the folder of further adapters has none.
        """
        arms = [ARMS[name] for name in self.arms]
        arms = [arm._replace(adapter=arm.adapter and getattr(self, arm.adapter)) for arm in arms]
        further = [
            further_arm(str(path.parent), path.parent.name)
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

    def layouts(self) -> list[ContextLayout]:
        """The ways to show the documents; the first is the one of the comparison."""
        return [
            ContextLayout(count, cast(Oracle, place))
            for place, count in product(self.oracle, self.distractors)
        ]
