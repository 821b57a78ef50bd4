"""A teacher inside the process: vLLM's engine on the GPUs that the container has.

Many chunks are asked about at once, first all their questions, then all their answers; the engine
schedules them and keeps the chunks, with which both prompts open, in its prefix cache. Needs vLLM
in the environment (`pip install vllm`); the image of the stage does not bring it.
"""

import itertools
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from components.core.errors import ConfigError, MissingDependencyError, ModelError
from components.core.ledger import Ledger
from components.core.progress import say
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers.interview import Interview, Prompts, interview
from components.generate.teachers.responses import Reply, Request, Responses, opened
from components.generate.teachers.teacher import Draft

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

CHUNKS_AT_ONCE = 256
LEAST_ROOM = 32  # tokens for a reply


class VllmTeacher:
    """See the module."""

    def __init__(self, config: GenerateConfig) -> None:
        if not config.teacher_model:
            raise ConfigError(
                "--teacher-model is missing: --teacher vllm needs it",
                hint="A hub id or a folder, such as meta-llama/Llama-3.3-70B-Instruct",
            )
        if find_spec("vllm") is None:
            raise MissingDependencyError("--teacher vllm needs vLLM", hint="pip install vllm")
        self.config = config
        self.name = f"vllm:{config.teacher_model}"
        self.prompts = Prompts.load(config)
        self._engine: LLM | None = None

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Iterator[tuple[Chunk, list[Draft]]]:
        """See `Teacher.drafts`."""
        upcoming = iter(chunks)
        with opened(self.config) as responses:
            while batch := list(itertools.islice(upcoming, CHUNKS_AT_ONCE)):
                talks = [interview(chunk, self.prompts) for chunk in batch]
                yield from zip(batch, self._together(talks, responses, ledger), strict=True)

    def _together(
        self, talks: list[Interview], responses: Responses, ledger: Ledger
    ) -> list[list[Draft]]:
        """Lead interviews in step: all that they ask next is asked at once."""
        asked = {number: next(talk) for number, talk in enumerate(talks)}
        drafts: dict[int, list[Draft]] = {}
        while asked:
            replies = iter(self._ask(list(itertools.chain(*asked.values())), responses, ledger))
            following = {}
            for number, requests in asked.items():
                try:
                    mine = list(itertools.islice(replies, len(requests)))
                    following[number] = talks[number].send(mine)
                except StopIteration as done:
                    drafts[number] = done.value
            asked = following
        return [drafts[number] for number in range(len(talks))]

    def _ask(
        self, requests: list[Request], responses: Responses, ledger: Ledger
    ) -> list[Reply | str]:
        """The reply to each request, from those kept or from the engine."""
        found: dict[int, Reply | str] = {}
        prompts: list[dict[str, list[int]]] = []
        parameters: list[SamplingParams] = []
        numbers: list[int] = []
        for number, request in enumerate(requests):
            if (kept := responses.get(request)) is not None:
                found[number] = kept
                continue
            tokens = self._tokens(request.prompt)
            room = self._longest() - len(tokens)
            if room < LEAST_ROOM:
                found[number] = "prompt too long for the model"
                continue
            numbers.append(number)
            prompts.append({"prompt_token_ids": tokens})
            parameters.append(_parameters(request, room))
        if prompts:
            outputs = self._loaded().generate(prompts, parameters, use_tqdm=False)
            for number, output in zip(numbers, outputs, strict=True):
                reply = _reply(output)
                responses.put(requests[number], reply)
                ledger.count(tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
                if requests[number].purpose == "answer":
                    ledger.count_cached(reply.tokens_cached, of=reply.tokens_in)
                found[number] = reply
        return [found[number] for number in range(len(requests))]

    def _tokens(self, prompt: str) -> list[int]:
        tokenizer = self._loaded().get_tokenizer()
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _longest(self) -> int:
        longest: int = self._loaded().llm_engine.model_config.max_model_len
        return longest

    def _loaded(self) -> "LLM":
        """The engine, started when something has to be asked."""
        if self._engine is None:
            import torch
            from vllm import LLM

            gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
            say(f"  starting vLLM on {f'{gpus} GPUs' if gpus else 'the CPU'}")
            try:
                self._engine = LLM(
                    model=self.config.teacher_model,
                    tensor_parallel_size=max(1, gpus),
                    enable_prefix_caching=True,
                    generation_config="vllm",
                    seed=self.config.seed,
                    enforce_eager=not gpus,
                    dtype="auto" if gpus else "float32",
                )
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"--teacher-model {self.config.teacher_model}: {error}",
                    hint="Give a hub id, or a folder that holds the model and its tokenizer.",
                ) from None
        return self._engine


def _parameters(request: Request, room: int) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = StructuredOutputsParams(json=request.schema_object()) if request.schema else None
    return SamplingParams(
        temperature=request.temperature,
        max_tokens=min(request.max_tokens, room),
        seed=request.seed,
        structured_outputs=schema,
    )


def _reply(output: "RequestOutput") -> Reply:
    best = output.outputs[0]
    return Reply(
        text=best.text,
        finish_reason=best.finish_reason or "",
        tokens_in=len(output.prompt_token_ids or ()),
        tokens_out=len(best.token_ids),
        tokens_cached=output.num_cached_tokens or 0,
    )
