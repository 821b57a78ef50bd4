"""Which rows share a batch, and how."""

import random
from collections.abc import Sequence

from components.core.models import choose_dtype
from components.train import varlen
from components.train.config import TrainConfig

PASS_TOKENS = 256
"""The fixed cost of a pass, in tokens: weights are read and kernels are started again.

An estimate: with it no mix of lengths was slower on a CPU (tests/benchmarks/bench_train.py); not
measured on a GPU.
"""


def length_grouped(lengths: Sequence[int], batch_size: int, shuffle: random.Random) -> list[int]:
    """An order in which the rows of a batch have similar lengths, so that little is padding.

    Rows are shuffled and cut into pools of 8 to 50 batches; each pool is sorted by length and cut
    into batches, and the batches are shuffled. The batch with the most tokens comes first, so that
    a lack of memory shows at once. An incomplete batch stays the last. Where one pool holds all
    rows, lengths are blurred a little, so that the rows of a batch differ between epochs.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch.
        shuffle: the only source of randomness.

    Returns:
        Every index once.
    """
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    pool = batch_size * max(min(len(order) // (batch_size * 4), 50), 8)
    blur = 0.05 if len(order) <= pool else 0.0
    near = [length * (1 + shuffle.uniform(-blur, blur)) if blur else length for length in lengths]
    batches = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda row: -near[row])
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    # Only the last pool can end in a batch that is not full.
    rest = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    shuffle.shuffle(batches)
    if batches:
        most = max(range(len(batches)), key=lambda at: sum(lengths[row] for row in batches[at]))
        batches[0], batches[most] = batches[most], batches[0]
    return [row for batch in batches + rest for row in batch]


def passes(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of a batch, split into passes such that padding and passes together cost least.

    Otherwise one long row would make all others of its batch as long. The gradients of the passes
    add up to the batch's.

    Args:
        lengths: tokens of each row.

    Returns:
        Every index once, in passes of decreasing length.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    # For the first n rows, longest first: the lowest cost, and where its last pass begins.
    best = [(0, 0)]
    for end in range(1, len(rows) + 1):
        best.append(
            min(
                (best[start][0] + PASS_TOKENS + (end - start) * lengths[rows[start]], start)
                for start in range(end)
            )
        )
    parts = []
    end = len(rows)
    while end:
        start = best[end][1]
        parts.append(rows[start:end])
        end = start
    return parts[::-1]


def packs(config: TrainConfig) -> bool:
    """Whether the rows of a batch follow each other without padding.

    Only flash attention keeps such rows apart without computing what is between them; with any
    other, one long row costs more than short ones side by side.
    """
    if config.batching != "auto":
        return config.batching == "packed"
    return flash_attention(config) is not None


def describe_batching(config: TrainConfig) -> str:
    size = f"batch size {config.batch_size}"
    if packs(config):
        return f"{size}, packed without padding ({flash_attention(config) or 'sdpa'})"
    reason = "flash attention not available" if config.batching == "auto" else "as configured"
    return f"{size}, grouped by length with padding ({reason}); very long rows run alone"


def flash_attention(config: TrainConfig) -> str | None:
    """The name in transformers of the flash attention installed, for 16-bit weights on a GPU."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if not torch.cuda.is_available() or choose_dtype(config.dtype) == torch.float32:
        return None
    if is_flash_attn_3_available():
        return "flash_attention_3"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return varlen.NAME if varlen.works() else None
