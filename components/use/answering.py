"""Have an adapter answer a question from documents: with transformers, or at an endpoint."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from components.core import decoding
from components.core.chat import render_question
from components.core.chat_protocol import CUT_OFF, Request
from components.core.endpoint import EndpointSettings, connected
from components.core.errors import DataError, ModelError
from components.core.ledger import Ledger
from components.core.models import (
    choose_dtype,
    context_length,
    load_model,
    load_tokenizer,
    load_tuned,
)
from components.core.progress import say
from components.core.raft_form import instruction
from components.use.base import base_here
from components.use.config import AskConfig

SECONDS = 600.0  # to wait for an endpoint's whole answer


class Reply(NamedTuple):
    """An answer; truncated: it was cut off at the maximum of tokens."""

    text: str
    truncated: bool


Show = Callable[[str], None]
"""Is given an answer's text as it is written."""

Answer = Callable[[Sequence[str], str, Show], Reply]
"""Answers a question from the texts of documents."""


def with_transformers(config: AskConfig) -> Answer:
    """Load the model, greedy as in an evaluation.

    Raises:
        ModelError: the adapter or its base model cannot be used, or do not belong together.
    """
    dtype = choose_dtype(config.dtype)
    with base_here(config.adapter, config.base_model) as base:
        say("  loading the model")
        tokenizer = load_tokenizer(base, config.adapter)
        if config.adapter:
            model = load_tuned(base, config.adapter, dtype)
        else:
            model = load_model(base, dtype)
        ends = decoding.end_tokens(base, tokenizer)
        longest = context_length(base, tokenizer)

    def answer(documents: Sequence[str], question: str, show: Show) -> Reply:
        ids = render_question(tokenizer, documents, question)
        if len(ids) + config.max_new_tokens > longest:
            raise DataError(
                f"{len(ids)} prompt tokens and {config.max_new_tokens} for the answer do not fit "
                f"the model's {longest}",
                path=config.documents,
                hint="Lower --top-k, --chunk-tokens or --max-new-tokens.",
            )
        (completion,) = decoding.complete(
            model, tokenizer, [ids], max_new_tokens=config.max_new_tokens, ends=ends, show=show
        )
        return Reply(completion.text, completion.truncated)

    return answer


def at_endpoint(config: AskConfig) -> Answer:
    """Ask a server, whose chat template need not have RAFT's form: the question is sent in it.

    Raises:
        ModelError: the server does not have the adapter.
        TeacherError: it does not answer.
    """
    settings = EndpointSettings(config.endpoint, config.model, timeout=SECONDS, flags="-")

    async def served() -> list[str]:
        async with connected(settings, Ledger("ask", Path())) as endpoint:
            return await endpoint.models()

    names = asyncio.run(served())
    if names and config.model not in names:
        raise ModelError(
            f"--endpoint {config.endpoint}: serves no model {config.model!r} (it has: "
            f"{', '.join(names[:10])})",
            hint="Name the adapter as the server does with --model, or start a server that has it: "
            "raft serve --adapter FOLDER",
        )

    async def ask(request: Request, show: Show) -> Reply:
        whole, truncated = "", False
        async with connected(settings, Ledger("ask", Path())) as endpoint:
            async for text, reason in endpoint.stream(request):
                whole += text
                truncated |= reason == CUT_OFF
                show(text)
        return Reply(whole, truncated)

    def answer(documents: Sequence[str], question: str, show: Show) -> Reply:
        prompt = instruction(documents, question)
        return asyncio.run(ask(Request(prompt, config.model, config.max_new_tokens, seed=0), show))

    return answer
