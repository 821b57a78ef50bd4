"""Attention on a CPU that does not copy keys and values for each head that shares them.

transformers' `sdpa` repeats them wherever there is a mask, at every token: with long prompts most
of the time. torch can compute grouped heads (GQA, arXiv 2305.13245) without.
"""

from typing import Any

NAME = "sdpa_grouped"
"""As transformers knows it."""


def group_heads(model: Any) -> None:
    """Have a model on a CPU compute so, if it attends through transformers' `sdpa`."""
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> Any:
    """As `sdpa_attention_forward` of transformers; tensors are [batch, heads, tokens, size]."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or others.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling,
        enable_gqa=True,
    )  # fmt: skip
    return output.transpose(1, 2).contiguous(), None
