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
        help="Maximum sequence length in tokens; longer rows are skipped and counted.",
        group="Check",
    )
    min_agreement: float = option(
        0.9,
        ge=0,
        le=1,
        help="Minimum 16-bit/4-bit token agreement; below it the check fails.",
        group="Check",
    )
    max_memory_ratio: float = option(
        0.5,
        gt=0,
        le=1,
        help="Maximum size of the 4-bit weights as a fraction of the 16-bit weights; above it the "
        "check fails.",
        group="Check",
    )
    quantize_lm_head: bool = option(
        False,
        help="Quantize the output head too, which bitsandbytes keeps in 16 bits; both are "
        "measured, and the check is of the quantized one.",
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
        help="If the check fails: warn continues to evaluation, stop skips it.",
        group="Check",
    )
