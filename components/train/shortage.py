"""A training that has too little memory or disk: errors that say what to lower."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import NO_ROOM, OutOfMemory, StorageError
from components.train.config import TrainConfig


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory or of disk into errors that say what to do."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if _disk_is_full(text):
            raise _full_disk(config, text) from None
        no_memory = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, RuntimeError) and not any(word in text.lower() for word in no_memory):
            raise
        raise OutOfMemory(
            f"out of memory with {config.batch_size} rows of up to {config.max_tokens} tokens a "
            f"pass ({text.splitlines()[0][:200] if text else 'no more is known'})",
            hint=_less_memory(config),
        ) from None
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(str(error)):
            raise
        raise _full_disk(config, str(error)) from None


def _disk_is_full(text: str) -> bool:
    return any(words in text for words in (*NO_ROOM, "failed writing file"))


def _full_disk(config: TrainConfig, text: str) -> StorageError:
    return StorageError(
        f"--output {config.output}: the disk is full ({text.splitlines()[0][:200]})",
        hint="Make room, or lower --checkpoints-kept; the same command goes on from the newest "
        "whole checkpoint.",
    )


def _less_memory(config: TrainConfig) -> str:
    """What to lower, the cheapest first; what has been done already is left out."""
    half = config.batch_size // 2
    steps = []
    if not config.gradient_checkpointing:
        steps.append("--gradient-checkpointing true")
    if half:
        twice = config.gradient_accumulation * config.batch_size // half
        steps.append(f"--batch-size {half} --gradient-accumulation {twice} (the same result)")
    if config.method == "full":
        steps.append("--method lora")
    elif not config.load_in_4bit and config.sharding != "full":
        steps.append("--load-in-4bit true")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not config.load_in_4bit and config.sharding != "full":
        steps.append("--sharding full")
    steps.append("a lower --max-tokens or --rank")
    return (
        f"In this order: {'; '.join(steps)}. Add --fresh true: checkpoints of other settings are "
        "not resumed. `raft plan` says what fits a GPU."
    )


def free() -> None:
    """Give the GPU memory of one setting back before the next one loads the model."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
