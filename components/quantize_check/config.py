"""Settings of the quantize-check stage."""

from typing import ClassVar, Literal

from components.core.config import InputLocation, StageConfig, option


class QuantizeCheckConfig(StageConfig):
    """A tuned model in, the price of 4-bit weights out."""

    stage: ClassVar[str] = "quantize-check"

    dataset: InputLocation = option(
        help="Folder with validation.jsonl, as generate writes it.", group="Inputs"
    )
    base_model: InputLocation = option(
        help="The adapter's base: hub id, local folder or gs:// folder.", group="Inputs"
    )
    adapter: InputLocation = option(help="Folder with the adapter of train.", group="Inputs")

    max_rows: int = option(
        64, ge=1, help="Validation rows to compare on; the first ones are taken.", group="Check"
    )
    max_tokens: int = option(
        4096,
        ge=64,
        le=1_048_576,
        help="Longest row in tokens; longer ones are left out and counted.",
        group="Check",
    )
    min_agreement: float = option(
        0.9,
        ge=0,
        le=1,
        help="Least share of answer tokens on which 16 and 4 bits must agree.",
        group="Check",
    )
    max_memory_ratio: float = option(
        0.5, gt=0, le=1, help="Most weight bytes in 4 bits per byte in 16 bits.", group="Check"
    )
    head: Literal["full", "4bit"] = option(
        "full",
        help="Keep the output head in 16 bits, as bitsandbytes does, or quantize it too; 4bit "
        "measures both and judges the second.",
        group="Check",
    )
    export: Literal["none", "merged", "4bit"] = option(
        "none",
        help="Also write the tuned model to model/ in the output: merged in 16 bits, or in 4 bits, "
        "as transformers and vLLM load it.",
        group="Output",
    )
    gate: Literal["warn", "stop"] = option(
        "warn",
        help="What a failed check means for the pipeline: warn says so and goes on to eval, stop "
        "closes the gate before it.",
        group="Check",
    )
