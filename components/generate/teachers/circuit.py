"""What to do when an endpoint fails: try again, wait, drop one chunk, or stop paying.

A circuit breaker (Nygard, "Release It!", stability patterns). While calls succeed it is closed,
and a call that failed for now is tried again after a pause that grows, with jitter, and is never
shorter than the endpoint asked for. After a few failures in a row it is open: nothing new is
sent but one call at a time, each after a longer pause. The first success closes it; when the
last of these calls fails too, the run stops. So an endpoint that fails for good costs what was
under way and a handful of calls. Refusals that concern one chunk drop that chunk; a few in a row
stop the run as well. One chunk that an endpoint always fails at is told from an endpoint that is
down by a small question, asked before the run would stop: where that is answered, the chunk is
dropped.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from components.core.errors import RaftError, TeacherError
from components.core.progress import say
from components.core.records import Chunk
from components.generate.teachers.responses import Reply
from components.generate.teachers.teacher import Draft

FAILURES_TO_OPEN = 4
PROBES = 5  # calls of an open circuit, one after the other, before it gives up
REFUSALS_TO_STOP = 4
TRIES = 6  # of one call, while others succeed
FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 30.0
LONGEST_ASKED_PAUSE = 600.0  # what asks for more is down for this run: its word is not waited for
PAUSE_TOLD = 10.0
REFUSALS_TOLD = 3


Send = Callable[[], Awaitable[Reply]]


class Busy(Exception):
    """A call failed in a way that may pass.

    kind: the few words under which the ledger counts it. retry_after: seconds that the endpoint
    asks to wait. hint: what to do if it does not pass.
    """

    def __init__(
        self, kind: str, problem: str = "", *, retry_after: float = 0.0, hint: str = ""
    ) -> None:
        super().__init__(problem or kind)
        self.kind = kind
        self.hint = hint or "What was paid is kept: run the same command again later."
        self.retry_after = retry_after if retry_after <= LONGEST_ASKED_PAUSE else 0.0


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
    """The breaker of one run, shared by all its calls.

    Args:
        endpoint: its URL, for messages.
        model: its name, for messages.
        failed: counts the calls that failed, by kind.
        ask_small: asks something that any endpoint in order answers.
    """

    def __init__(self, endpoint: str, model: str, failed: Counter[str], ask_small: Send) -> None:
        self.endpoint = endpoint
        self.model = model
        self.failed = failed
        self.ask_small = ask_small
        self.worked = False
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
        tries, busy = 0, Busy("nothing was sent")
        # With its tries used up it goes on only while nobody else's succeed either.
        while tries < TRIES or self._open():
            tries += 1
            reply = await (self._probe if self._open() else self._try)(send, tolerated)
            if isinstance(reply, Reply):
                return reply
            busy = reply
            if not self._open():
                await self._pause(tries, busy.retry_after)
        raise _given_up(busy)

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
            self.failed[busy.kind] += 1
            self.failures += 1
            self._wait_for(busy.retry_after)
            if self.probes >= PROBES:
                await self._leave_out_or_stop(busy)
            return busy
        except Refused as refused:
            self.failed[refused.reason] += 1
            self._note(refused, tolerated)
            raise
        except TeacherError as error:
            self.stop(error)
            raise
        self.failures = self.probes = self.refusals = 0
        self.worked = True
        return reply

    def _wait_for(self, seconds: float) -> None:
        """Send nothing for as long as the endpoint asks."""
        wanted = time.monotonic() + seconds
        if wanted - max(self.not_before, time.monotonic()) >= PAUSE_TOLD:
            say(f"  {self.endpoint} asks to wait {seconds:.0f} s")
        self.not_before = max(self.not_before, wanted)

    async def _leave_out_or_stop(self, busy: Busy) -> None:
        """Nothing is answered any more: is it the endpoint, or what it is asked?

        Raises:
            Refused: it answers something else.
            TeacherError: it answers nothing.
        """
        try:
            await self.ask_small()
        except (Busy, Refused):
            self._give_up(str(busy), busy.hint)
        self.failures = self.probes = 0
        refused = _given_up(busy)
        self._note(refused, frozenset())
        raise refused from None

    def _note(self, refused: Refused, tolerated: frozenset[int]) -> None:
        if refused.by_filter or refused.status in tolerated:
            return
        if refused.for_all:
            self._give_up(
                str(refused),
                f"Check --teacher-endpoint (it usually ends in /v1), --teacher-model {self.model} "
                "and OPENAI_API_KEY.",
            )
        self.refusals += 1
        if self.refusals >= REFUSALS_TO_STOP:
            self._give_up(
                f"{refused}, {self.refusals} times in a row",
                "What was paid is kept: mend the settings and run again.",
            )
        if self.told < REFUSALS_TOLD:
            say(f"  a chunk is left out: {refused}")
            self.told += 1

    def _give_up(self, problem: str, hint: str) -> None:
        error = TeacherError(
            f"--teacher-endpoint {self.endpoint}, --teacher-model {self.model}: {problem}",
            hint=hint,
        )
        self.stop(error)
        raise error

    def stop(self, error: RaftError) -> None:
        """Let nothing more be sent: every call ends in this error."""
        if not self.stopped.done():
            self.stopped.set_exception(error)
            self.stopped.exception()  # seen: nobody may be waiting for it

    async def _pause(self, tries: int, asked: float) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        await asyncio.sleep(max(asked, longest * random.uniform(0.5, 1)))


def _given_up(busy: Busy) -> Refused:
    return Refused(f"no reply in {TRIES} tries ({busy.kind})")
