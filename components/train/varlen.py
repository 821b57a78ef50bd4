"""Attention inside each row where rows follow each other without padding: torch's own kernel.

Flash attention with variable lengths (arXiv 2307.08691) is part of torch, so packing needs no
further package in the image. `works` compares it with plain attention on the GPU at hand before it
is used.
"""

import os
from functools import cache
from typing import Any

NAME = "torch_varlen"
"""Its name in transformers, once registered."""


def register() -> None:
    """Register it with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)


@cache
def works() -> bool:
    """Whether packed rows have the attention and the gradients of rows alone, on this GPU."""
    import torch
    from torch.nn.attention import varlen

    if not torch.cuda.is_available() or not torch.cuda.is_bf16_supported():
        return False
    try:
        # Each of several processes tries it on the GPU that it will train on.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return agrees(varlen.varlen_attn, device, torch.bfloat16)
    except RuntimeError:  # the kernel is not built for this GPU
        return False


def agrees(kernel: Any, device: str, dtype: Any) -> bool:
    """Whether a kernel gives three packed rows what plain attention gives each of them."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths, heads, shared, width = torch.tensor([5, 64, 17]), 8, 2, 128
    generator = torch.Generator().manual_seed(0)

    def tensor(heads: int) -> Any:
        values = torch.randn(int(lengths.sum()), heads, width, generator=generator)
        return values.to(device, dtype).requires_grad_()

    query, key, value = tensor(heads), tensor(shared), tensor(shared)
    starts = torch.cat([torch.tensor([0]), lengths.cumsum(0)]).to(device, torch.int32)
    longest = int(lengths.max())
    packed = kernel(query, key, value, starts, starts, longest, longest,
                    window_size=(-1, 0), enable_gqa=True)  # fmt: skip
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    before = (row[:, None] == row).tril().to(device)
    q, k, v = (part.transpose(0, 1)[None].float() for part in (query, key, value))
    plain = scaled_dot_product_attention(q, k, v, attn_mask=before, enable_gqa=True)
    weight = torch.randn(packed.shape, generator=generator).to(device)
    outputs = [packed.float(), plain[0].transpose(0, 1)]
    gradients = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in outputs]
    pairs = [outputs, *zip(*gradients, strict=True)]
    return all(torch.allclose(a.float(), b.float(), atol=0.05, rtol=0.05) for a, b in pairs)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int | None = None,
    **rest: Any,
) -> tuple[Any, None]:
    """Attention in the form of transformers; rows without bounds go through torch's sdpa.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, width]; key and value have as many heads or a divisor of them.
        key: see query.
        value: see query.
        attention_mask: for rows that are not packed.
        scaling: of the scores.
        sliding_window: how many tokens a token sees, itself included; None for all before it.
        cu_seq_lens_q: where each row begins, and the end, int32 [rows + 1].
        max_length_q: tokens of the longest row.
        rest: what other implementations take.

    Returns:
        [1, tokens, heads, width], and no weights.
    """
    from torch.nn.attention import varlen
    from transformers.integrations.flash_attention import get_target_dtype
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if rest.get("s_aux") is not None:
        raise NotImplementedError("attention sinks need --batching grouped")
    if cu_seq_lens_q is None or attention_mask is not None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
        return output, None
    dtype = get_target_dtype(query, module) or query.dtype
    rows = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    output = varlen.varlen_attn(
        *rows,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output[None], None


def mask(*args: Any, **named: Any) -> Any:
    """No mask for packed rows, whose bounds suffice: it would have the square of their tokens.

    Where scores are capped, which the kernel cannot do, there is one, and with it sdpa.
    """
    from transformers.masking_utils import sdpa_mask

    packed = named.get("attention_mask") is None and not named.get("allow_is_causal_skip", True)
    capped = getattr(named.get("config"), "attn_logit_softcapping", None)
    return None if packed and not capped else sdpa_mask(*args, **named)
