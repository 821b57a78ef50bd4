"""Settings of the train stage."""

from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from components.core.accelerator import GpuStageConfig
from components.core.config import (
    JsonObject,
    TextList,
    hardware_option,
    input_option,
    option,
    option_group,
)
from components.core.gpus import GpuKind, kinds
from components.core.locations import InputLocation, ResumeLocation

SHAPES_WEIGHTS = {
    "rank", "alpha", "dropout", "target_modules", "method",
    "epochs", "learning_rate", "warmup_ratio", "batch_size", "gradient_accumulation", "batching",
    "max_tokens", "load_in_4bit", "seed", "template_extra",
    "target", "keep_oracle", "max_distractors",
}  # fmt: skip
"""The settings on which the trained weights depend; a checkpoint is resumed under the same only."""


RESERVED = ("messages", "add_generation_prompt", "bos_token", "eos_token", "strftime_now")
"""Variables of chat templates that the stages or the model set."""

row_option = option_group("Rows")
lora_option = option_group("LoRA")
optimizer_option = option_group("Optimizer")
checkpoint_option = option_group("Checkpoints")


class TrainConfig(GpuStageConfig):
    """A dataset and a base model in, a LoRA adapter out."""

    stage: ClassVar[str] = "train"
    # The settings that `gpu` stands for are recorded.
    not_part_of_identity: ClassVar[tuple[str, ...]] = (
        *GpuStageConfig.not_part_of_identity,
        "gpu",
        "checkpoint_minutes",
        "checkpoint_steps",
        "report_to",
    )

    dataset: InputLocation = input_option(
        help="Folder with train.jsonl and validation.jsonl, as generate writes it, or one file of "
        "RAFT rows."
    )
    exclude: InputLocation = input_option(
        "",
        help="File of rows to skip, as the page of raft rows saves it: one row id per line.",
        in_pipeline=False,
    )

    target: Literal["reasoning", "answer"] = row_option(
        "reasoning",
        help="What the model learns to write: the row's reasoning with its answer, or the answer "
        "alone.",
    )
    keep_oracle: float = row_option(
        1.0,
        ge=0,
        le=1,
        help="Share P of the rows that show their oracle document, among rows that have one; the "
        "others are trained on the same answer without it.",
    )
    max_distractors: int = row_option(
        -1,
        ge=-1,
        help="Maximum distractors shown in a row; -1: all. 0 together with --keep-oracle 0 trains "
        "without documents (DSF).",
    )

    rank: int = lora_option(64, ge=1, le=512, help="Rank r of the LoRA matrices.")
    alpha: int = lora_option(
        64, ge=1, le=4096, help="LoRA scale: updates are multiplied by alpha / rank."
    )
    dropout: float = lora_option(0.0, ge=0, lt=1, help="Dropout before the LoRA matrices.")
    target_modules: TextList = lora_option(
        ("all-linear",),
        min_length=1,
        help="Layers that get an adapter: all-linear, or names such as q_proj,v_proj.",
    )

    method: Literal["lora", "full"] = lora_option(
        "lora",
        help="lora, or full: every weight is trained, for small models; the output is then a "
        "whole model, to pass as --base-model.",
    )

    template_extra: JsonObject = input_option(
        {},
        help="Values of the chat template's variables, as JSON, such as "
        '{"enable_thinking": false}; they are saved with the adapter, whose template then has them '
        "wherever it is used.",
    )
    allow_template_mismatch: bool = input_option(
        False,
        help="Train even if the base's chat template writes another prompt for generation than "
        "for training, or does not end answers; the reports then warn of it.",
    )

    epochs: float = optimizer_option(3.0, gt=0, le=1000, help="Passes over the rows.")
    learning_rate: float = optimizer_option(
        0.0,
        ge=0,
        le=1,
        help="Peak learning rate (cosine decay to a tenth of it); 0: by the model's width.",
    )
    warmup_ratio: float = optimizer_option(
        0.05, ge=0, lt=1, help="Fraction of the steps over which the learning rate warms up."
    )
    batch_size: int = optimizer_option(
        4, ge=1, le=1024, help="Maximum rows per device and forward pass."
    )
    gradient_accumulation: int = optimizer_option(
        0,
        ge=0,
        le=1024,
        help="Passes of --batch-size rows per optimizer step; 0: enough for 16 rows per step, "
        "or for fewer rows if there would be fewer than about 48 steps.",
    )
    max_tokens: int = optimizer_option(
        4096,
        ge=64,
        le=1_048_576,
        help="Maximum sequence length in tokens; longer rows are skipped and counted, never "
        "truncated.",
    )
    max_too_long: float = optimizer_option(
        0.1, ge=0, le=1, help="Fail if more than this fraction of rows is too long."
    )
    gpu: GpuKind = hardware_option(
        "",
        help="Kind of GPU whose training settings (components/core/gpus.yaml) replace the "
        "defaults; explicit flags win.",
    )
    processes: int = hardware_option(
        0,
        ge=0,
        le=64,
        help="Parallel processes, each with --batch-size rows; 0 is one for each GPU.",
    )
    sharding: Literal["none", "full"] = hardware_option(
        "none",
        help="full: processes share one copy of the base model (FSDP2); none: each has its own.",
    )
    batching: Literal["auto", "packed", "grouped"] = hardware_option(
        "auto",
        help="packed: rows of a batch without padding; grouped: rows of similar length, padded; "
        "auto packs where a GPU has flash attention.",
    )
    load_in_4bit: bool = hardware_option(
        False,
        help="Keep the base model in 4 bits (NF4) under the adapter (QLoRA, arXiv 2305.14314).",
    )
    gradient_checkpointing: bool = hardware_option(
        True, help="Recompute activations to save memory."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = hardware_option(
        "auto", help="Type of the weights; auto is bfloat16 on a GPU that supports it."
    )

    report_to: TextList = option(
        (),
        help="Trackers that transformers reports to as well, such as wandb or mlflow: their "
        "packages must be installed, and read keys and addresses from their own variables "
        "(WANDB_API_KEY, MLFLOW_TRACKING_URI).",
        group="Tracking",
    )

    checkpoints: ResumeLocation = checkpoint_option(
        "",
        help="Folder (local or gs://) of checkpoints, from which a stopped run resumes; by default "
        "in --state, or else checkpoints/ in a local --output, and OUTPUT-checkpoints next to one "
        "on gs://.",
        in_pipeline=False,
    )
    checkpoint_minutes: float = checkpoint_option(
        10.0,
        ge=0,
        le=10_000,
        help="Maximum minutes of training that a kill may cost. Checkpoints are written at least "
        "this often, or less often where that would take over 5 % of the time. 0: at SIGTERM only.",
    )
    checkpoint_steps: int = checkpoint_option(
        0,
        ge=0,
        le=1_000_000,
        help="Also write a checkpoint every so many optimizer steps; 0: by --checkpoint-minutes "
        "alone.",
    )
    fresh: bool = checkpoint_option(
        False,
        help="Discard earlier checkpoints and start over. Do not set it in a Kubernetes Job: a "
        "retry would start over too.",
        in_pipeline=False,
    )

    @field_validator("template_extra")
    @classmethod
    def _names(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in values:
            if not name.isidentifier() or name in RESERVED:
                raise ValueError(f"{name!r} is no variable that can be set")
        return values

    @model_validator(mode="before")
    @classmethod
    def _settings_of_gpu_before_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("gpu") in kinds():
            return {**kinds()[values["gpu"]].training, **values}
        return values

    @model_validator(mode="after")
    def _methods_that_agree(self) -> Self:
        if self.method == "full" and self.load_in_4bit:
            raise ValueError("--method full cannot train 4-bit weights; add --load-in-4bit false")
        if self.sharding == "full" and (self.method == "full" or self.load_in_4bit):
            raise ValueError(
                "--sharding full splits 16-bit weights under an adapter; add --method lora "
                "--load-in-4bit false"
            )
        return self
