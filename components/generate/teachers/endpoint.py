"""A teacher behind an OpenAI-compatible endpoint.

`--teacher-concurrency` chunks are under way at once. Their drafts come in the chunks' order, while
later chunks keep starting. Every response is stored before it is used (see `responses`).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from components.core.chat_protocol import Completion, Request
from components.core.endpoint import Endpoint, EndpointSettings, connected
from components.core.errors import StorageError
from components.core.ledger import Ledger
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers.dialogue import drafts_about
from components.generate.teachers.prompts import Prompts
from components.generate.teachers.responses import Responses, open_responses
from components.generate.teachers.teacher import Draft

HEAD_START_SECONDS = 0.1
"""For the first call: if a wrong key is refused by then, it costs one call and not hundreds."""

REORDER = 8
"""Chunks begun and not yet handed out, per unit of concurrency: later ones wait for a slow one."""

Drafts = tuple[Chunk, list[Draft]]


class EndpointTeacher:
    """See the module."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        self.name = f"openai:{config.teacher_model}"
        self.settings = EndpointSettings(
            url=config.teacher_endpoint,
            model=config.teacher_model,
            concurrency=config.teacher_concurrency,
            timeout=config.teacher_timeout,
            requests_per_minute=config.teacher_requests_per_minute,
            tokens_per_minute=config.teacher_tokens_per_minute,
        )
        self.prompts = Prompts(config)

    def drafts(self, chunks: Iterable[Chunk], ledger: Ledger) -> Iterator[Drafts]:
        """See `Teacher.drafts`."""
        with open_responses(self.config.responses) as responses, asyncio.Runner() as runner:
            stream = self._stream(chunks, responses, ledger)

            async def following() -> Drafts | None:
                return await anext(stream, None)

            try:
                while (drafts := runner.run(following())) is not None:
                    yield drafts
            finally:
                with suppress(RuntimeError):  # it still runs when a signal has ended the run
                    runner.run(stream.aclose())

    async def _stream(
        self, chunks: Iterable[Chunk], responses: Responses, ledger: Ledger
    ) -> AsyncGenerator[Drafts, None]:
        """Keep chunks under way, and hand out the oldest as soon as it is done."""
        pending: deque[tuple[Chunk, asyncio.Task[list[Draft]]]] = deque()
        width = self.config.teacher_concurrency
        slots = asyncio.Semaphore(width)
        async with connected(self.settings, ledger) as endpoint:
            stopped = endpoint.breaker.stopped

            async def about(chunk: Chunk) -> list[Draft]:
                async with slots:
                    return await drafts_about(
                        chunk, self.prompts, lambda request: _ask(request, endpoint, responses)
                    )

            async def oldest() -> Drafts:
                chunk, task = pending[0]
                either: list[asyncio.Future[Any]] = [task, stopped]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    stopped.result()
                pending.popleft()
                return chunk, task.result()

            try:
                for chunk in chunks:
                    pending.append((chunk, asyncio.create_task(about(chunk))))
                    if len(pending) == 1 and not endpoint.breaker.worked:
                        await asyncio.wait([pending[0][1]], timeout=HEAD_START_SECONDS)
                    while pending and (pending[0][1].done() or len(pending) > REORDER * width):
                        yield await oldest()
                while pending:
                    yield await oldest()
            finally:
                for _, task in pending:
                    task.cancel()
                await asyncio.gather(*(task for _, task in pending), return_exceptions=True)


async def _ask(request: Request, endpoint: Endpoint, responses: Responses) -> Completion:
    """The completion that was stored for a request, or a new one, which is stored first."""
    if (stored := responses.get(request)) is not None:
        return stored
    completion = await endpoint.complete(request)
    try:
        responses.put(request, completion)
    except StorageError as error:
        endpoint.breaker.stop(error)  # no further call is paid that cannot be stored
        raise
    if not request.schema:  # the call for an answer, whose prompt opens as an earlier one
        endpoint.ledger.count_cached(completion.tokens_cached, of=completion.tokens_in)
    return completion
