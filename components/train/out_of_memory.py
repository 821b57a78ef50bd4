"""Errors of a training that runs out of memory or disk: they name what to lower."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from components.core.errors import OutOfMemory, StorageError, disk_is_full, first_line
from components.core.memory import lacks_memory
from components.train.config import TrainConfig


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory or of disk into errors that name what to lower."""
    from safetensors import SafetensorError

    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        if disk_is_full(error):
            raise StorageError(
                f"--output {config.output}: the disk is full ({first_line(error)})",
                hint="Make room; the same command resumes from the newest complete checkpoint.",
            ) from error
        if not lacks_memory(error):
            raise
        gpus = int(os.environ.get("WORLD_SIZE", "1"))
        steps = what_to_lower(config, gpus, config.sharding == "full")
        raise OutOfMemory(
            f"out of memory with {config.batch_size} rows of up to {config.max_tokens} tokens a "
            f"pass ({first_line(error)})",
            hint=f"Try, in this order: {'; '.join(steps)}. Add --fresh true: checkpoints of other "
            "settings are not resumed. `raft plan` estimates what fits a GPU.",
        ) from error


def what_to_lower(config: TrainConfig, gpus: int, split: bool) -> Iterator[str]:
    """What takes less memory, the cheapest first, without what is set already.

    Args:
        config: the settings that take too much.
        gpus: how many there are.
        split: whether they share one copy of the model.
    """
    if not config.gradient_checkpointing:
        yield "--gradient-checkpointing true"
    if half := config.batch_size // 2:
        passes = config.gradient_accumulation * config.batch_size // half
        more = f" --gradient-accumulation {passes}" if passes else ""
        yield f"--batch-size {half}{more} (the same result)"
    if config.method == "full":
        yield "--method lora"
    elif not config.load_in_4bit and not split:
        yield "--load-in-4bit true"
        if gpus > 1:
            yield "--sharding full"
    yield "a lower --max-tokens or --rank, or a larger GPU"
