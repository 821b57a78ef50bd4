"""vLLM as the engine of several arms: one base model, requests with and without adapters mixed."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from components.core.decoding import Completion, end_tokens
from components.core.errors import ModelError, first_line
from components.core.memory import free_memory
from components.core.model_files import OTHER_BASE
from components.core.models import choose_dtype, load_tokenizer
from components.core.progress import say
from components.core.vllm_options import lora_options
from components.eval.config import EvalConfig
from components.eval.engines import Answers, Request


def with_vllm(requests: Sequence[Request], config: EvalConfig) -> Iterator[Answers]:
    """Hand over everything; vLLM batches as it goes, and what is finished comes out."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    tokenizer: Any = load_tokenizer(config.base_model)
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=config.max_new_tokens,
        stop_token_ids=end_tokens(config.base_model, tokenizer),
        detokenize=False,
    )
    adapters = sorted({item.arm.folder for item in requests if item.arm.folder})
    llm = _load(requests, adapters, config)
    try:
        loras = _add_adapters(llm, adapters, config)
        waiting = {str(number): request for number, request in enumerate(requests)}
        for name, request in waiting.items():
            llm.llm_engine.add_request(
                name,
                {"prompt_token_ids": list(request.ids)},
                sampling,
                lora_request=loras.get(request.arm.folder),
            )
        while waiting:
            completions = []
            for output in llm.llm_engine.step():
                if output.finished:
                    (answer,) = output.outputs
                    ids = tuple(answer.token_ids)
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    completion = Completion(ids, text, answer.finish_reason == "length")
                    completions.append((waiting.pop(output.request_id), completion))
            if completions:
                # An engine's memory is mostly its key-value cache.
                yield Answers(completions, weight_bytes=None)
    finally:
        # Its process, where it has one, must end: only that frees a GPU for sure.
        llm.llm_engine.engine_core.shutdown()
        del llm
        free_memory()
        cleanup_dist_env_and_memory()


def _load(requests: Sequence[Request], adapters: Sequence[str], config: EvalConfig) -> Any:
    import torch
    import vllm

    options = lora_options(adapters) if adapters else {}
    if adapters and not torch.cuda.is_available():
        say(
            "  vLLM on a CPU is very slow with an adapter. Faster: --engine transformers, or "
            "raft merge-adapter, then the merged model as --base-model with and --arms base"
        )
    if requests[0].arm.bits == 4:
        options |= {"quantization": "bitsandbytes"}
    return vllm.LLM(
        model=config.base_model,
        dtype=str(choose_dtype(config.dtype)).removeprefix("torch."),
        max_model_len=max(len(request.ids) for request in requests) + config.max_new_tokens,
        seed=config.seed,
        # The model's own settings sample or penalise repetition; ours are greedy.
        generation_config="vllm",
        trust_remote_code=False,
        enforce_eager=not torch.cuda.is_available(),
        **options,
    )


def _add_adapters(llm: Any, adapters: Sequence[str], config: EvalConfig) -> dict[str, Any]:
    from vllm.lora.request import LoRARequest

    loras = {}
    for number, path in enumerate(adapters, start=1):
        loras[path] = LoRARequest(f"adapter-{number}", number, path)
        try:
            llm.llm_engine.add_lora(loras[path])
        except Exception as error:
            # vLLM has no error of its own for an adapter of another base.
            raise ModelError(
                f"--adapter {path}: does not fit --base-model {config.base_model} "
                f"({first_line(error)})",
                hint=f"{OTHER_BASE} Or use --engine transformers.",
            ) from error
    return loras
