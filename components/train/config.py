"""Settings of the train stage."""

import json
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from components.core.config import (
    InputLocation,
    KeptLocation,
    ObjectList,
    StageConfig,
    TextList,
    option,
)

SWEPT = (
    "rank",
    "alpha",
    "dropout",
    "rslora",
    "target_modules",
    "epochs",
    "learning_rate",
    "warmup_ratio",
    "batch_size",
    "gradient_accumulation",
)
"""The settings that a sweep may vary."""

SHAPES_WEIGHTS = {
    *SWEPT, "method", "load_in_4bit", "max_tokens", "seed", "batching", "stop_on_overfitting",
}  # fmt: skip
"""The settings on which the trained weights depend; a checkpoint is resumed under the same only."""


@cache
def profiles() -> dict[str, dict[str, Any]]:
    """What is known of each GPU, and the settings with which an 8B model is meant to fit it."""
    text = Path(__file__).with_name("profiles.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


class TrainConfig(StageConfig):
    """A dataset and a base model in, a LoRA adapter out."""

    stage: ClassVar[str] = "train"
    # A profile's own settings are recorded.
    not_part_of_identity: ClassVar[tuple[str, ...]] = (
        "profile",
        "checkpoint_steps",
        "checkpoints_kept",
    )

    dataset: InputLocation = option(
        help="Folder with train.jsonl and validation.jsonl, as generate writes it.", group="Inputs"
    )
    base_model: InputLocation = option(
        help="Chat model to adapt: hub id, local folder or gs:// folder.", group="Inputs"
    )

    rank: int = option(64, ge=1, le=1024, help="Rank r of the LoRA matrices.", group="LoRA")
    alpha: int = option(
        64, ge=1, le=4096, help="LoRA scale: updates are multiplied by alpha / rank.", group="LoRA"
    )
    dropout: float = option(0.0, ge=0, lt=1, help="Dropout before the LoRA matrices.", group="LoRA")
    target_modules: TextList = option(
        ("all-linear",),
        min_length=1,
        help="Layers that get an adapter: all-linear, or names such as q_proj,v_proj.",
        group="LoRA",
    )

    rslora: bool = option(
        False,
        help="Scale updates by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).",
        group="LoRA",
    )
    method: Literal["lora", "full"] = option(
        "lora",
        help="lora, or full: every weight is trained, for small models; the output is then a "
        "whole model, to be given as --base-model.",
        group="LoRA",
    )

    sweep: ObjectList = option(
        (),
        help='Settings to try one after another, as JSON: [{"rank": 16, "alpha": 16}, '
        '{"rank": 64}]. The one with the least validation loss becomes the adapter.',
        group="LoRA",
    )

    sweep_by: Literal["loss", "f1"] = option(
        "loss",
        help="What decides a sweep: loss, the least validation loss, or f1, the greatest F1 of "
        "the answers written for up to 100 validation rows. The table shows both.",
        group="LoRA",
    )

    epochs: float = option(3.0, gt=0, le=1000, help="Passes over the rows.", group="Optimizer")
    learning_rate: float = option(
        2e-4, gt=0, le=1, help="Peak learning rate (cosine decay).", group="Optimizer"
    )
    warmup_ratio: float = option(
        0.05, ge=0, lt=1, help="Share of the steps that warm up.", group="Optimizer"
    )
    batch_size: int = option(4, ge=1, le=1024, help="Rows per device and pass.", group="Optimizer")
    gradient_accumulation: int = option(
        4, ge=1, le=1024, help="Passes per optimizer step.", group="Optimizer"
    )
    max_tokens: int = option(
        4096,
        ge=64,
        le=1_048_576,
        help="Longest row in tokens; longer rows are left out and counted, never cut.",
        group="Optimizer",
    )
    stop_on_divergence: bool = option(
        True,
        help="Stop when after a third of the steps the loss lies clearly above its start; "
        "otherwise it is only said. A loss that is no number always ends a training.",
        group="Optimizer",
    )
    stop_on_overfitting: bool = option(
        False,
        help="Stop after a pass whose validation loss lies 2 % above the least before; otherwise "
        "it is only said.",
        group="Optimizer",
    )
    max_too_long: float = option(
        0.1,
        ge=0,
        le=1,
        help="Largest share of rows that may be left out because they are too long; above it the "
        "stage stops.",
        group="Optimizer",
    )
    profile: Literal["", "a100-40gb", "a100-80gb", "h100", "l4"] = option(
        "",
        help="GPU whose settings (components/train/profiles.json) take the place of the defaults; "
        "flags that are given win.",
        group="Hardware",
    )
    processes: int = option(
        0,
        ge=0,
        le=64,
        help="Processes that share the rows of a step, --batch-size for each; 0 is one for each "
        "GPU.",
        group="Hardware",
    )
    sharding: Literal["auto", "none", "full"] = option(
        "auto",
        help="Whether processes share one copy of the model (full, FSDP2) or each has its own "
        "(none); auto shares it where `raft plan` says that a whole one does not fit a GPU.",
        group="Hardware",
    )
    batching: Literal["auto", "packed", "grouped"] = option(
        "auto",
        help="packed: the rows of a batch one after another, without padding; grouped: rows of "
        "like length padded side by side; auto packs where a GPU has flash attention.",
        group="Hardware",
    )
    load_in_4bit: bool = option(
        False,
        help="Keep the base model in 4 bits (NF4) under the adapter (QLoRA, arXiv 2305.14314).",
        group="Hardware",
    )
    gradient_checkpointing: bool = option(
        True, help="Recompute activations to save memory.", group="Hardware"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", help="Weights' type; auto is bfloat16 on a GPU that has it.", group="Hardware"
    )

    checkpoints: KeptLocation = option(
        "",
        help="Folder (local or gs://) of checkpoints, from which a stopped run goes on; by default "
        "checkpoints/ in a local --output, and OUTPUT-checkpoints beside one on gs://.",
        group="Checkpoints",
    )
    checkpoint_steps: int = option(
        20,
        ge=0,
        le=1_000_000,
        help="Optimizer steps between checkpoints; 0 writes one at SIGTERM only.",
        group="Checkpoints",
    )
    checkpoints_kept: int = option(
        2, ge=1, le=1000, help="Newest checkpoints that are kept.", group="Checkpoints"
    )
    fresh: bool = option(
        False,
        help="Throw away earlier checkpoints and begin anew; not for Jobs, whose next attempt "
        "would begin anew too.",
        group="Checkpoints",
    )

    @model_validator(mode="before")
    @classmethod
    def _profile_before_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("profile") in profiles():
            return profiles()[values["profile"]]["settings"] | values
        return values

    @model_validator(mode="after")
    def _methods_that_agree(self) -> Self:
        if self.method == "full" and self.load_in_4bit:
            raise ValueError("--method full cannot train 4-bit weights; add --load-in-4bit false")
        if self.sharding == "full" and self.load_in_4bit:
            raise ValueError("--sharding full cannot split 4-bit weights; add --load-in-4bit false")
        if self.sharding == "full" and self.processes == 1:
            raise ValueError("--sharding full needs more than one process; add --processes 2")
        return self

    @field_validator("sweep")
    @classmethod
    def _known_settings(cls, sweep: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for trial in sweep:
            for name in trial:
                if name not in SWEPT:
                    raise ValueError(f"cannot vary {name!r} (allowed: {', '.join(SWEPT)})")
        return sweep

    @model_validator(mode="after")
    def _trials_are_in_range(self) -> Self:
        self.trials()
        return self

    def trials(self) -> list[Self]:
        """One config for each setting of the sweep, or only this one where there is none.

        Raises:
            ConfigError: a value is out of range.
        """
        if not self.sweep:
            return [self]
        rest = self.model_dump(exclude={"sweep"})
        return [self.parse(rest | trial) for trial in self.sweep]
