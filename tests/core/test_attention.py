"""Grouped heads give what repeated keys and values give."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import sdpa_attention

from components.core.attention import NAME, group_heads


@pytest.mark.parametrize("heads", [(4, 2), (4, 4)], ids=["grouped", "each its own"])
def test_padded_prompts_give_the_same_without_a_copy(
    heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=heads[0], num_key_value_heads=heads[1],
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding

    def logits(**inputs: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(**inputs).logits

    padded = {"input_ids": ids, "attention_mask": mask}
    expected = logits(**padded)[mask.bool()], logits(input_ids=ids)
    group_heads(model)
    assert model.config._attn_implementation == NAME
    if heads[1] < heads[0]:
        monkeypatch.setattr(sdpa_attention, "repeat_kv", None)
    assert logits(**padded)[mask.bool()].allclose(expected[0], atol=1e-5)
    assert logits(input_ids=ids).allclose(expected[1], atol=1e-5)


def test_other_kinds_of_attention_stay() -> None:
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    group_heads(model)
    assert model.config._attn_implementation == "eager"
