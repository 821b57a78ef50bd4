"""Settings of the quantize-check stage."""

from typing import ClassVar, Literal

from components.core.accelerator import GpuStageConfig
from components.core.config import input_option, option_group
from components.core.locations import InputLocation

check_option = option_group("Check")


class QuantizeCheckConfig(GpuStageConfig):
    """A tuned model in, the price of 4-bit weights out."""

    stage: ClassVar[str] = "quantize-check"

    dataset: InputLocation = input_option(help="Folder of generate: its rows are answered.")
    adapter: InputLocation = input_option(help="Folder with the adapter of train.")

    max_rows: int = check_option(
        64,
        ge=1,
        help="Rows to answer: the first validation rows, then training rows. Fewer than 52 cannot "
        "pass.",
    )
    max_tokens: int = check_option(
        4096,
        ge=64,
        le=1_048_576,
        help="Maximum sequence length in tokens; longer rows are skipped and counted.",
    )
    max_new_tokens: int = check_option(
        800, ge=1, le=32_768, help="Maximum tokens in one answer; set the same in eval."
    )
    batch_size: int = check_option(16, ge=1, le=4096, help="Rows answered at once.")
    max_memory_ratio: float = check_option(
        0.5,
        gt=0,
        le=1,
        help="Maximum size of the 4-bit weights as a fraction of the 16-bit weights; above it the "
        "check fails.",
    )
    quantize_lm_head: bool = check_option(
        False, help="Quantize the output head too, which bitsandbytes keeps in 16 bits."
    )
    gate: Literal["warn", "stop"] = check_option(
        "warn", help="If the check fails: warn continues to evaluation, stop skips it."
    )
