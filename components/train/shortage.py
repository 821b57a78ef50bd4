"""A training that has too little memory or disk: errors that say what to lower."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import OutOfMemory, StorageError, disk_is_full, first_line
from components.models import lacks_memory
from components.train.config import TrainConfig


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory or of disk into errors that say what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        if disk_is_full(error):
            raise StorageError(
                f"--output {config.output}: the disk is full ({first_line(error)})",
                hint="Make room, or lower --checkpoints-kept; the same command goes on from the "
                "newest whole checkpoint.",
            ) from None
        if not lacks_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory with {config.batch_size} rows of up to {config.max_tokens} tokens a "
            f"pass ({first_line(error)})",
            hint=_less_memory(config),
        ) from None


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
