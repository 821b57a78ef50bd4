"""The options with which vLLM serves an adapter: for the engine of eval, and for `raft serve`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be."""


def lora_options(adapters: Collection[str]) -> dict[str, Any]:
    """vLLM's options for adapters that share a base model, by their folders."""
    rank = max(map(rank_of, adapters))
    return {
        "enable_lora": True,
        # One slot more than adapters: in a batch that mixes base and LoRA requests, vLLM's CPU
        # build gives base requests the adapter of the last slot.
        "max_loras": len(adapters) + 1,
        "max_lora_rank": next((slot for slot in VLLM_RANKS if slot >= rank), VLLM_RANKS[-1]),
    }


def rank_of(adapter: str) -> int:
    """The largest LoRA rank in an adapter."""
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return max(
        int(rank) for rank in (settings["r"], *(settings.get("rank_pattern") or {}).values())
    )
