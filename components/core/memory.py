"""Memory that runs out, on a GPU or beside it: recognised, explained, and given back."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from components.core.errors import OutOfMemory


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, torch's on any device, or vLLM's."""
    message = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate", "no available memory",
             "free memory on device", "larger than the available kv cache")  # fmt: skip
    return isinstance(error, MemoryError) or any(sign in message for sign in signs)


@contextmanager
def memory_explained(problem: str, hint: str) -> Iterator[None]:
    """Turn what is raised where memory runs out into an OutOfMemory that names what to change."""
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(problem, hint=hint) from error


def free_memory() -> None:
    """Release the memory of models that are no longer in use, the GPU's too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
