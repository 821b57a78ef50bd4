"""A teacher behind an OpenAI-compatible endpoint, or behind a vLLM server of the stage's own.

`--teacher-concurrency` chunks are under way at once. Their drafts come in the chunks' order, while
later chunks keep starting. Every response is stored before it is used (see `responses`).

Two requests a row: one for the questions, one for each answer. Both prompts open with the same
words and the chunk, so a prefix cache serves the second.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import nullcontext, suppress
from typing import Any

from components.core.breaker import PermanentError
from components.core.chat_protocol import CUT_OFF, FILTERED, FINISHED, Completion, Request
from components.core.endpoint import Endpoint, EndpointSettings, connected
from components.core.errors import StorageError, TeacherError
from components.core.ledger import Ledger, cost_of
from components.core.progress import say
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers import OVER_COST, Draft
from components.generate.teachers.dialogue import Dialogue
from components.generate.teachers.prompts import Prompts
from components.generate.teachers.responses import Responses, open_responses
from components.generate.teachers.vllm_server import VllmServer

HEAD_START_SECONDS = 0.1
"""For the first call: if a wrong key is refused by then, it costs one call and not hundreds."""

REORDER = 8
"""Chunks begun and not yet handed out, per unit of concurrency: later ones wait for a slow one."""

LAST_ANSWERS_SECONDS = 30.0
"""For requests under way when the endpoint stops the run: those that are answered are paid for."""

TO_STORE = (FINISHED, CUT_OFF, FILTERED)
"""How a reply ended that is worth keeping: others may be better when they are asked for again."""

Drafts = tuple[Chunk, list[Draft]]


class EndpointTeacher:
    """See the module."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        self.name = f"{config.teacher}:{config.teacher_model}"
        self.server: VllmServer | None = None
        own: dict[str, Any] = {"url": config.teacher_endpoint}
        if config.teacher == "vllm":
            self.server = VllmServer(config)
            own = {"url": self.server.url, "key": "none"}
        self.settings = EndpointSettings(
            **own,
            model=config.teacher_model,
            concurrency=config.teacher_concurrency,
            timeout=config.teacher_timeout,
            requests_per_minute=config.teacher_requests_per_minute,
            tokens_per_minute=config.teacher_tokens_per_minute,
        )
        self.prompts = Prompts(config)
        self.over_cost = False
        self._begun = 0

    def drafts(self, chunks: Iterable[Chunk], ledger: Ledger) -> Generator[Drafts, None, None]:
        """See `Teacher.drafts`."""
        config = self.config
        stored = config.resume_location(config.teacher_model, config.teacher_extra, config.seed)
        if self.server:
            ledger.own_server(self.server.gpus)
        with (
            self.server or nullcontext(),
            open_responses(stored, fresh=config.fresh) as responses,
            asyncio.Runner() as runner,
        ):
            stream = self._stream(chunks, responses, ledger)

            async def following() -> Drafts | None:
                return await anext(stream, None)

            try:
                while (drafts := runner.run(following())) is not None:
                    yield drafts
            except TeacherError:
                if self.server and self.server.has_ended and self.server.seconds_to_start:
                    raise self.server.failure("has ended") from None
                raise
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
            dialogue = Dialogue(
                self.prompts, lambda request: self._ask(request, endpoint, responses, ledger)
            )

            async def about(chunk: Chunk) -> list[Draft]:
                async with slots:
                    return await dialogue.drafts_about(chunk)

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
                    if len(pending) == 1 and not ledger.requests:
                        await asyncio.wait([pending[0][1]], timeout=HEAD_START_SECONDS)
                    while pending and (pending[0][1].done() or len(pending) > REORDER * width):
                        yield await oldest()
                while pending:
                    yield await oldest()
                if self.server:
                    await self.server.say_cache_use(endpoint.session)
            except TeacherError:
                await endpoint.breaker.settled(LAST_ANSWERS_SECONDS)
                raise
            finally:
                for _, task in pending:
                    task.cancel()
                await asyncio.gather(*(task for _, task in pending), return_exceptions=True)

    async def _ask(
        self, request: Request, endpoint: Endpoint, responses: Responses, ledger: Ledger
    ) -> Completion:
        """The completion stored for a request, or a new one, stored if it came to its end."""
        if (stored := responses.get(request)) is not None:
            return stored
        self._check_cost(ledger)
        try:
            if self.server:
                await self.server.ready(endpoint.session)
                ledger.parts["server start"] = round(self.server.seconds_to_start, 3)
            completion = await endpoint.complete(request)
            if completion.finish_reason in TO_STORE:
                responses.put(request, completion)
        except (StorageError, TeacherError) as error:
            endpoint.breaker.stop(error)  # no further call is paid that cannot be stored
        return completion

    def _check_cost(self, ledger: Ledger) -> None:
        """Count a request that is about to be paid for.

        Raises:
            PermanentError: with it, the run would cost more than --teacher-max-cost.
        """
        limit, before = self.config.teacher_max_cost, self._begun
        self._begun += 1
        cost = ledger.entry().cost if self.server else cost_of(self._begun)
        if limit and (cost or 0.0) > limit:
            self._begun = before
            if not self.over_cost:
                say(f"  --teacher-max-cost {limit:g} USD is reached: nothing more is asked")
            self.over_cost = True
            raise PermanentError(OVER_COST)
