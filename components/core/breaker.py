"""What to do when an endpoint fails: retry, wait, give up one request, or stop paying.

A circuit breaker (Nygard, "Release It!", stability patterns), shared by all calls of a run. A call
that fails is retried after a growing pause with jitter, never shorter than the endpoint asks for.
After several failures in a row nothing is sent but a small question, now and again: if it is
answered, work continues; if not, the run stops. So an endpoint that is down costs the calls under
way and a handful more, and one request at which a working endpoint always fails is given up alone.
Refused requests are given up one by one; a few in a row stop the run as well. Calls under way when
the run stops may still be answered, and paid for: `settled` waits for them.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

from components.core.describe import counted
from components.core.errors import RaftError, TeacherError
from components.core.progress import say

TRIES = 6  # of one call; and failures in a row, of all calls, after which the endpoint is checked
CHECKS = 5  # before the run stops
GIVEN_UP_TO_STOP = 4  # requests, in a row
FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 30.0
LONGEST_REQUESTED_PAUSE = 600.0  # an endpoint that asks for more is retried as if it asked for none
LOGGED_PAUSE = 10.0

R = TypeVar("R")
Send = Callable[[], Awaitable[R]]


class TransientError(Exception):
    """A call failed in a way that may pass.

    kind: the few words under which the ledger counts it. retry_after: seconds that the endpoint
    asks to wait. hint: what to do if it does not pass.
    """

    def __init__(
        self, kind: str, problem: str = "", *, retry_after: float = 0.0, hint: str = ""
    ) -> None:
        super().__init__(problem or kind)
        self.kind = kind
        self.hint = hint or "Paid responses are kept: run the same command again later."
        self.retry_after = retry_after if retry_after <= LONGEST_REQUESTED_PAUSE else 0.0


class PermanentError(Exception):
    """A request failed permanently; others may still succeed.

    `reason` is what a report counts; `detail` is what the endpoint answered.
    """

    def __init__(self, reason: str, status: int = 0, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.status = status
        self.detail = detail


class Breaker:
    """The breaker of one run; made in its event loop.

    Args:
        name: the endpoint, for messages.
        failed: counts the calls that failed, by kind.
        ask_small: asks something that any working endpoint answers.

    Attributes:
        stopped: raises the error that stopped the run; pending until then.
    """

    def __init__(self, name: str, failed: Counter[str], ask_small: Send[object]) -> None:
        self.name = name
        self.failed = failed
        self.ask_small = ask_small
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failures = 0  # since the last success
        self._given_up = 0
        self._logged: set[str] = set()
        self._not_before = 0.0
        self._check = asyncio.Lock()  # held while nothing else may be sent
        self._under_way: set[asyncio.Future[None]] = set()

    async def call(self, send: Send[R]) -> R:
        """Send a request as often as it takes.

        Raises:
            PermanentError: this request alone is refused, or failed too often.
            TeacherError: the run must stop.
        """
        failures = 0
        while True:
            async with self._check:
                pass
            try:
                result = await self._send(send)
            except TransientError as error:
                failures += 1
                if self._failures >= TRIES:  # nobody's calls have succeeded meanwhile
                    await self._check_endpoint(error)
                if failures == TRIES:
                    raise PermanentError(f"no reply in {TRIES} tries ({error.kind})") from error
                await _pause(failures - 1)
            else:
                self._given_up = 0
                return result

    def give_up(self, error: PermanentError) -> None:
        """Count a request that is given up.

        Raises:
            TeacherError: too many were, in a row.
        """
        self._given_up += 1
        if self._given_up >= GIVEN_UP_TO_STOP:
            problem = f"{self.name}: {error}, {self._given_up} times in a row"
            hint = (
                "Paid responses are kept: correct the settings and run again. --teacher-extra adds "
                "a field that the endpoint asks for; one that only streams cannot be used."
            )
            self.stop(TeacherError(problem, hint=hint))
        if error.reason not in self._logged:
            say(f"  a request is given up: {error}")
            self._logged.add(error.reason)

    def stop(self, error: RaftError) -> NoReturn:
        """Send nothing more: every call that would begin now fails with this error."""
        if not self.stopped.done():
            self.stopped.set_exception(error)
            self.stopped.exception()  # retrieved here, as nobody may be waiting for it
        raise error

    async def settled(self, seconds: float) -> None:
        """Wait for the calls under way, and no longer than this."""
        if self._under_way:
            say(f"  waiting for {counted(len(self._under_way), 'request')} under way")
            await asyncio.wait(self._under_way, timeout=seconds)

    async def _send(self, send: Send[R]) -> R:
        while (seconds := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        if self.stopped.done():
            self.stopped.result()
        ended = asyncio.get_running_loop().create_future()
        self._under_way.add(ended)
        try:
            result = await send()
        except TransientError as error:
            self.failed[error.kind] += 1
            self._failures += 1
            until = time.monotonic() + error.retry_after
            if until - self._not_before >= LOGGED_PAUSE < error.retry_after:
                say(f"  the endpoint asks to wait {error.retry_after:.0f} s")
            self._not_before = max(self._not_before, until)
            raise
        except PermanentError as error:
            self.failed[error.reason] += 1
            raise
        except RaftError as error:
            self.stop(error)
        finally:
            self._under_way.remove(ended)
            ended.set_result(None)
        self._failures = 0
        return result

    async def _check_endpoint(self, cause: TransientError) -> None:
        """Nothing is answered any more: check whether the endpoint fails, or only the requests.

        Raises:
            TeacherError: it answers nothing.
        """
        async with self._check:
            if self._failures < TRIES:  # another call has checked
                return
            say("  the endpoint keeps failing; checking whether it answers anything")
            for number in range(CHECKS):
                await _pause(number)
                with suppress(TransientError, PermanentError):
                    await self._send(self.ask_small)
                    return
            self.stop(TeacherError(f"{self.name}: {cause}", hint=cause.hint))


async def _pause(number: int) -> None:
    await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**number) * random.uniform(0.5, 1))
