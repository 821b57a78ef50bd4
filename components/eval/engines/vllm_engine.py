"""vLLM as the engine of several arms: one base model, requests with and without adapters mixed."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.core.errors import ConfigError, ModelError, first_line
from components.core.model_files import check_adapter
from components.core.models import choose_dtype, free_memory, load_tokenizer
from components.eval.arms import Arm
from components.eval.config import EvalConfig
from components.eval.engines.interface import Completion, Request, end_tokens

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be."""


class Vllm:
    """A base model once in vLLM; requests with and without the adapter go in the same batches."""

    weight_bytes: int | None = None  # an engine's memory is mostly its key-value cache

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
        if arms[0].bits == 4:
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
                ) from error
        self.sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=config.max_new_tokens,
            stop_token_ids=end_tokens(config.base_model, self.tokenizer),
            detokenize=False,
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
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
            completions = []
            for output in engine.step():
                if output.finished:
                    (answer,) = output.outputs
                    ids = tuple(answer.token_ids)
                    completions.append(
                        Completion(
                            waiting.pop(output.request_id),
                            ids,
                            self.tokenizer.decode(ids, skip_special_tokens=True),
                            answer.finish_reason == "length",
                        )
                    )
            if completions:
                yield completions

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
