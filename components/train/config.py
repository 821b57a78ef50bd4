"""Settings of the train stage."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from components.core.config import (
    InputLocation,
    KeptLocation,
    StageConfig,
    TextList,
    option,
)
from components.core.gpus import kinds

if TYPE_CHECKING:
    GpuKind = str
else:
    GpuKind = Literal[("", *kinds())]

SHAPES_WEIGHTS = {
    "rank", "alpha", "dropout", "rslora", "target_modules", "method",
    "epochs", "learning_rate", "warmup_ratio", "batch_size", "gradient_accumulation", "batching",
    "max_tokens", "stop_on_overfitting", "load_in_4bit", "seed",
}  # fmt: skip
"""The settings on which the trained weights depend; a checkpoint is resumed under the same only."""


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
        "whole model, to pass as --base-model.",
        group="LoRA",
    )

    epochs: float = option(3.0, gt=0, le=1000, help="Passes over the rows.", group="Optimizer")
    learning_rate: float = option(
        2e-4, gt=0, le=1, help="Peak learning rate (cosine decay).", group="Optimizer"
    )
    warmup_ratio: float = option(
        0.05,
        ge=0,
        lt=1,
        help="Fraction of the steps over which the learning rate warms up.",
        group="Optimizer",
    )
    batch_size: int = option(
        4, ge=1, le=1024, help="Rows per device and forward pass.", group="Optimizer"
    )
    gradient_accumulation: int = option(
        4, ge=1, le=1024, help="Gradient accumulation steps.", group="Optimizer"
    )
    max_tokens: int = option(
        4096,
        ge=64,
        le=1_048_576,
        help="Maximum sequence length in tokens; longer rows are skipped and counted, never "
        "truncated.",
        group="Optimizer",
    )
    stop_on_divergence: bool = option(
        True,
        help="Stop if, after a third of the steps, the loss is clearly above where it started; if "
        "false, only warn. A NaN loss always stops training.",
        group="Optimizer",
    )
    stop_on_overfitting: bool = option(
        False,
        help="Stop after an epoch whose validation loss is 2 % above the lowest before; if false, "
        "only warn.",
        group="Optimizer",
    )
    max_too_long: float = option(
        0.1,
        ge=0,
        le=1,
        help="Fail if more than this fraction of rows is too long.",
        group="Optimizer",
    )
    profile: GpuKind = option(
        "",
        help="GPU whose training settings (components/core/gpus.yaml) replace the defaults; "
        "explicit flags win.",
        group="Hardware",
        in_pipeline=False,
    )
    processes: int = option(
        0,
        ge=0,
        le=64,
        help="Parallel processes, each with --batch-size rows; 0 is one for each GPU.",
        group="Hardware",
    )
    sharding: Literal["auto", "none", "full"] = option(
        "auto",
        help="full: processes share one copy of the model (FSDP2); none: each has its own; auto: "
        "full where, by the estimate of `raft plan`, a whole one does not fit a GPU.",
        group="Hardware",
    )
    batching: Literal["auto", "packed", "grouped"] = option(
        "auto",
        help="packed: rows of a batch without padding; grouped: rows of similar length, padded; "
        "auto packs where a GPU has flash attention.",
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
        "auto", help="Type of the weights; auto is bfloat16 on a GPU that has it.", group="Hardware"
    )

    checkpoints: KeptLocation = option(
        "",
        help="Folder (local or gs://) of checkpoints, from which a stopped run resumes; by default "
        "checkpoints/ in a local --output, and OUTPUT-checkpoints next to one on gs://.",
        group="Checkpoints",
        in_pipeline=False,
    )
    checkpoint_steps: int = option(
        20,
        ge=0,
        le=1_000_000,
        help="Optimizer steps between checkpoints; 0 writes one at SIGTERM only.",
        group="Checkpoints",
    )
    checkpoints_kept: int = option(
        2, ge=1, le=1000, help="Checkpoints to keep.", group="Checkpoints"
    )
    fresh: bool = option(
        False,
        help="Discard earlier checkpoints and start over. Do not set it in a Kubernetes Job: a "
        "retry would start over too.",
        group="Checkpoints",
        in_pipeline=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _profile_before_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("profile") in kinds():
            return {**kinds()[values["profile"]].training, **values}
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
