"""Whether the processes of a training share one copy of the model (FSDP2, arXiv 2304.11277)."""

import os

from components.core.errors import ConfigError, ModelError
from components.train.config import TrainConfig
from components.train.memory import GIB, is_split, memory, read_shape
from components.train.rows import Rows


def choose_sharding(config: TrainConfig, rows: Rows) -> tuple[bool, str]:
    """Whether the model is split, and why, in words; "" for one process.

    Raises:
        ConfigError: it is to be split, and there is one process.
    """
    import torch

    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        if config.sharding == "full":
            raise ConfigError(
                "--sharding full needs at least two processes, and there is one",
                hint="Remove it, or pass --processes 2 or more.",
            )
        return False, ""
    shared, whole = f"one copy of the model on {number} processes", "a whole model on each process"
    if config.sharding != "auto" or not torch.cuda.is_available():
        return (True, f"{shared} (FSDP)") if config.sharding == "full" else (False, whole)
    try:
        shape = read_shape(config.base_model)
    except ModelError as error:
        return False, f"{whole}; whether it fits is not known ({error})"
    tokens = max(len(row["input_ids"]) for row in rows.train)
    available = int(torch.cuda.get_device_properties(0).total_memory)
    needed = memory(shape, config, tokens).total
    estimate = f"{needed / GIB:.1f} GiB by estimate, of {available / GIB:.1f}"
    if not is_split(config, shape, tokens, available, number):
        return False, f"{whole} ({estimate})"
    share = memory(shape, config, tokens, number).total
    return True, f"{shared} (FSDP): a whole one takes {estimate}, a share {share / GIB:.1f}"
