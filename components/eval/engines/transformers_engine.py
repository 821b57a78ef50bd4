"""transformers (with PEFT and bitsandbytes) as the engine of one model, on any machine."""

from collections.abc import Iterator, Sequence
from typing import Any

from components.core.models import (
    choose_dtype,
    free_memory,
    load_4bit,
    load_model,
    load_tokenizer,
    load_tuned,
    weight_bytes,
)
from components.eval.arms import Arm
from components.eval.config import EvalConfig
from components.eval.engines.interface import Completion, Request, end_tokens


class Transformers:
    """One model through transformers: padded batches, longest prompts first."""

    def __init__(self, arm: Arm, config: EvalConfig) -> None:
        from transformers import GenerationConfig

        self.tokenizer: Any = load_tokenizer(config.base_model)
        dtype = choose_dtype(config.dtype)
        self.model: Any
        if arm.bits == 4:
            self.model = load_4bit(config.base_model, arm.adapter, dtype)
        elif arm.adapter is None:
            self.model = load_model(config.base_model, dtype)
        else:
            self.model = load_tuned(config.base_model, arm.adapter, dtype)
        # Before the first token: on a CPU bitsandbytes repacks weights when they are first used.
        self.weight_bytes: int | None = weight_bytes(self.model)
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

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer in batches; out of memory on the longest shows at once, not at the end.

        A batch has one arm's requests, so that it is kept as a whole, and an arm's answers do not
        depend on which others share its model.
        """
        for arm in dict.fromkeys(request.arm for request in requests):
            mine = [request for request in requests if request.arm == arm]
            mine.sort(key=lambda request: (-len(request.ids), request.prompt))
            for start in range(0, len(mine), self.batch_size):
                yield self._answer(mine[start : start + self.batch_size])

    def _answer(self, batch: Sequence[Request]) -> list[Completion]:
        import torch

        padded = self.tokenizer.pad(
            {"input_ids": [list(request.ids) for request in batch]},
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**padded, generation_config=self.greedy)
        completions = []
        width = padded["input_ids"].shape[1]
        for request, new in zip(batch, output[:, width:].tolist(), strict=True):
            ends = (place for place, token in enumerate(new) if token in self.eos_ids)
            ids = tuple(new[: next(ends, len(new) - 1) + 1])
            completions.append(
                Completion(
                    request,
                    ids,
                    self.tokenizer.decode(ids, skip_special_tokens=True),
                    ids[-1] not in self.eos_ids,
                )
            )
        return completions

    def close(self) -> None:
        """Drop the model; the cache of the GPU's memory is given back too."""
        del self.model
        free_memory()
