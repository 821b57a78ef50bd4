"""Seconds a token on a CPU, long prompts: heads that share keys, beside transformers' `sdpa`.

The shape is SmolLM2-135M's, the weights are random, and so is what stands in the cache.

Run it: OMP_NUM_THREADS=1 python tests/benchmarks/bench_attention.py
"""

import time
from collections.abc import Iterator

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from components.core.attention import group_heads

PROMPTS = ((4, 500), (16, 500), (16, 2100))
"""Prompts in a batch, and tokens of each."""

STEPS = 3


def seconds_a_token(model: LlamaForCausalLM, prompts: int, tokens: int) -> float:
    """The fastest of a few tokens, which each prompt of the batch gets."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys = torch.randn(prompts, config.num_key_value_heads, tokens, size)
        cache.update(keys, keys.clone(), layer)
    return min(_steps(model, cache, torch.ones(prompts, tokens, dtype=torch.long)))


def _steps(model: LlamaForCausalLM, cache: DynamicCache, mask: torch.Tensor) -> Iterator[float]:
    mask[:, :2] = 0  # a padded batch has a mask
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        started = time.perf_counter()
        model(mask[:, -1:], attention_mask=mask, past_key_values=cache)
        yield time.perf_counter() - started


def main() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    with torch.inference_mode():
        before = [seconds_a_token(model, *shape) for shape in PROMPTS]
        group_heads(model)
        after = [seconds_a_token(model, *shape) for shape in PROMPTS]
    for (prompts, tokens), sdpa, grouped in zip(PROMPTS, before, after, strict=True):
        print(
            f"{prompts} prompts of {tokens} tokens: sdpa {sdpa:.2f} s a token, grouped "
            f"{grouped:.2f} s, {sdpa / grouped:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
