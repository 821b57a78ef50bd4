"""Bytes of a model's weights: predicted for 4 bits, or measured.

The 4-bit format is NF4 with double quantization (QLoRA, arXiv 2305.14314).
"""

import math
from typing import Any

NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256


def nf4_bytes(weights: int) -> int:
    """Bytes of a linear layer in NF4 with double quantization, as bitsandbytes holds it.

    Half a byte a weight; a byte of scale for 64 weights; a 32-bit scale of scales for 256 of those,
    with one offset; and two tables of codes, of 16 and of 256 entries, for each layer.
    Source: QLoRA (arXiv 2305.14314), section 3, which does not count offset and tables.
    """
    scales = math.ceil(weights / NF4_BLOCK)
    outer = math.ceil(scales / NF4_OUTER_BLOCK)
    return math.ceil(weights / 2) + scales + 4 * outer + 4 + 4 * 16 + 4 * 256


def weight_bytes(model: Any) -> int:
    """Bytes of the weights in memory, tied tensors once, quantization constants included.

    Measure right after loading: on a CPU bitsandbytes repacks 4-bit weights at their first use.
    """
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        state = getattr(tensor, "quant_state", None)
        while state is not None:  # double quantization nests one state in another
            for constant in (state.absmax, state.code, state.offset):
                if constant is not None:
                    seen[constant.data_ptr()] = constant.numel() * constant.element_size()
            state = state.state2
    return sum(seen.values())
