"""What to do when an endpoint fails: try again, wait, drop one chunk, or stop paying.

A circuit breaker (Nygard, "Release It!", stability patterns). While calls succeed it is closed,
and a call that failed for now is tried again after a pause that grows, with jitter, and is never
shorter than the endpoint asked for. After a few failures in a row it is open: nothing new is
sent but one call at a time, each after a longer pause. The first success closes it; when the
last of these calls fails too, the run stops. So an endpoint that fails for good costs what was
under way and a handful of calls. Refusals that concern one chunk drop that chunk; a few in a row
stop the run as well.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from components.errors import TeacherError
from components.generate.responses import Reply
from components.generate.teachers import Draft
from components.progress import say
from components.records import Chunk

FAILURES_TO_OPEN = 4
PROBES = 5  # calls of an open circuit, one after the other, before it gives up
REFUSALS_TO_STOP = 4
TRIES = 6  # of one call, while others succeed
FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 30.0
LONGEST_ASKED_PAUSE = 600.0
REFUSALS_TOLD = 3


Send = Callable[[], Awaitable[Reply]]


class Busy(Exception):
    """A call failed in a way that may pass. `retry_after`: seconds the endpoint asks for."""

    def __init__(self, problem: str, retry_after: float = 0.0) -> None:
        super().__init__(problem)
        self.retry_after = min(retry_after, LONGEST_ASKED_PAUSE)


class Refused(Exception):
    """A call failed for good. `reason` is what the report counts.

    for_all: every other call would be refused too. by_filter: an answer of a kind, no failure.
    """

    def __init__(
        self,
        reason: str,
        status: int = 0,
        detail: str = "",
        *,
        for_all: bool = False,
        by_filter: bool = False,
    ) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.status = status
        self.for_all = for_all
        self.by_filter = by_filter


class Circuit:
    """The breaker of one run, shared by all its calls."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.failures = 0  # since the last success
        self.probes = 0
        self.refusals = 0
        self.told = 0
        self.not_before = 0.0
        self.probing = asyncio.Lock()
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def first_of(
        self, chunk: Chunk, about: "asyncio.Task[list[Draft]]"
    ) -> tuple[Chunk, list[Draft]]:
        """The drafts of a chunk, unless the run is stopped before they are there."""
        try:
            either: list[asyncio.Future[Any]] = [about, self.stopped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not about.done():
                self.stopped.result()
            return chunk, await about
        finally:
            about.cancel()
            await asyncio.gather(about, return_exceptions=True)

    async def call(self, send: Send, tolerated: frozenset[int] = frozenset()) -> Reply:
        """Send a request as often as it takes; refusals of a tolerated status count for nothing.

        Raises:
            Refused: this request alone is refused, or failed too often while others succeeded.
            TeacherError: the run must stop.
        """
        for tries in range(1, TRIES + 1):
            if self._open():
                reply = await self._probe(send, tolerated)
            else:
                reply = await self._try(send, tolerated)
            if isinstance(reply, Reply):
                return reply
            if not self._open():
                await self._pause(tries, reply.retry_after)
        while self._open():  # its tries are used up, but nobody else's succeeded either
            reply = await self._probe(send, tolerated)
            if isinstance(reply, Reply):
                return reply
        raise Refused(f"no reply in {TRIES} tries")

    def _open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    async def _probe(self, send: Send, tolerated: frozenset[int]) -> Reply | Busy:
        """Send while the circuit is open: after a pause, and nothing else at the same time."""
        async with self.probing:
            if self._open():
                if self.probes == 0:
                    say(f"  {self.endpoint} keeps failing; trying one call at a time")
                await self._pause(self.probes + 1, 0)
                self.probes += 1
                return await self._try(send, tolerated)
        return await self._try(send, tolerated)

    async def _try(self, send: Send, tolerated: frozenset[int]) -> Reply | Busy:
        while (wait := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.stopped.done():
            self.stopped.result()
        try:
            reply = await send()
        except Busy as busy:
            self.failures += 1
            self.not_before = max(self.not_before, time.monotonic() + busy.retry_after)
            if self.probes >= PROBES:
                self._stop(str(busy), "What was paid is kept: run the same command again later.")
            return busy
        except Refused as refused:
            self._note(refused, tolerated)
            raise
        except TeacherError as error:
            self._fail(error)
            raise
        self.failures = self.probes = self.refusals = 0
        return reply

    def _note(self, refused: Refused, tolerated: frozenset[int]) -> None:
        if refused.by_filter or refused.status in tolerated:
            return
        if refused.for_all:
            self._stop(str(refused), "Check --teacher-model and OPENAI_API_KEY.")
        self.refusals += 1
        if self.refusals >= REFUSALS_TO_STOP:
            self._stop(
                f"{refused}, {self.refusals} times in a row",
                "What was paid is kept: mend the settings and run again.",
            )
        if self.told < REFUSALS_TOLD:
            say(f"  a chunk is left out: {refused}")
            self.told += 1

    def _stop(self, problem: str, hint: str) -> None:
        error = TeacherError(f"--teacher-endpoint {self.endpoint}: {problem}", hint=hint)
        if "cannot be reached" in problem:
            error.hint = f"Is the server up? Try: curl {self.endpoint.rstrip('/')}/models"
        self._fail(error)
        raise error

    def _fail(self, error: TeacherError) -> None:
        if not self.stopped.done():
            self.stopped.set_exception(error)
            self.stopped.exception()  # seen: nobody may be waiting for it

    async def _pause(self, tries: int, asked: float) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        await asyncio.sleep(max(asked, longest * random.uniform(0.5, 1)))
