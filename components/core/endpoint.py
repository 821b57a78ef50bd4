"""A client of OpenAI-compatible endpoints: a vLLM server of the project's own, or a vendor's.

`Endpoint.complete` makes one request, within the limits on concurrency and on requests and tokens a
minute; what happens when the endpoint fails is in `breaker`. The key is read from OPENAI_API_KEY,
or from the file that OPENAI_API_KEY_FILE names.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from components.core import chat_protocol
from components.core.breaker import Breaker, PermanentError, TransientError
from components.core.chat_protocol import FILTERED, Completion, Request
from components.core.errors import ConfigError, TeacherError, printable
from components.core.ledger import Ledger
from components.core.progress import say

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

KEY_VARIABLE = "OPENAI_API_KEY"
KEY_FILE_VARIABLE = "OPENAI_API_KEY_FILE"
BY_FILTER = "refused by the content filter"
LARGEST_BODY = 10_000_000  # bytes, unpacked: no completion is as long
CHARACTERS_PER_TOKEN = 4
LOOPBACK = ("127.0.0.1", "::1", "localhost")
NO_SUCH_FIELD = {400, 415, 422, 501}  # answers to a request with a field that is not taken
SCHEMA_FIELD = "response_format"
COMPLETIONS = "/chat/completions"
TRY_AGAIN = {408, 409, 425, 429, *range(500, 600)} - {501}
FOR_EVERY_REQUEST = {401, 402, 403, 404}
NO_SUCH_MODEL = "model_not_found"  # an error's code; some endpoints send it with a 400


def read_key() -> str:
    """The key from the environment or a mounted file, without the line end that such files have.

    Raises:
        ConfigError: it cannot be read or sent; the key itself is never shown.
    """
    key, source = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    if not key.strip() and (path := os.environ.get(KEY_FILE_VARIABLE, "")):
        source = KEY_FILE_VARIABLE
        try:
            key = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{source} {path}: cannot be read",
                hint="Name the file that the secret is mounted as.",
            ) from None  # the cause holds bytes of the file
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{source} holds characters that no key has",
            hint=f"Look for line ends or quotes that were pasted into {source}.",
        )
    return key or "none"  # a server of one's own asks for no key


@dataclass(frozen=True)
class EndpointSettings:
    """Where an endpoint is and what may be asked of it.

    timeout: seconds to wait for one completion. requests_per_minute, tokens_per_minute: limits; 0
    is none. flags: how the flags begin that set this, for messages. url: with or without the path
    of completions.

    Raises:
        ConfigError: the URL cannot be an endpoint's, or the key cannot be read.
        ModuleNotFoundError: the HTTP client is not installed.
    """

    url: str
    model: str
    concurrency: int = 16
    timeout: float = 120.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    flags: str = "--teacher"
    key: str = field(default_factory=read_key, repr=False)

    def __post_init__(self) -> None:
        if fault := _fault_of(self.url):
            raise ConfigError(
                f"{self.flags}-endpoint {self.url!r}: {fault}",
                hint="For example http://localhost:8000/v1",
            )
        import_module("aiohttp")  # where it is missing, no document need be read first


def _fault_of(url: str) -> str:
    """Why a URL cannot be an endpoint; "" if it can."""
    if not url.startswith(("http://", "https://")):
        return "begins neither with http:// nor https://"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        _ = parts.port  # raises if it is none
    except ValueError as error:
        return f"is no URL ({error})"
    if not host:
        return "names no host"
    return "must end before ? and #" if parts.query or parts.fragment else ""


class Endpoint:
    """The client of one endpoint during a run; see `connected`."""

    def __init__(
        self, settings: EndpointSettings, session: "ClientSession", ledger: Ledger
    ) -> None:
        self.settings = settings
        self.session = session
        self.ledger = ledger
        flags, model = settings.flags, settings.model
        small = Request("Answer with one word: yes.", model, max_tokens=256, seed=0)
        self.url = settings.url.rstrip("/").removesuffix(COMPLETIONS)
        self.name = f"{flags}-endpoint {settings.url}, {flags}-model {model}"
        self.is_it_up = f"Is the server up? Try: curl {self.url}/models"
        self.breaker = Breaker(
            self.name, ledger.requests_failed, lambda: self._send(small, self._refused)
        )
        self._calls = asyncio.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._refused: frozenset[str] = frozenset()
        self._taken: set[str] = set()

    async def complete(self, request: Request) -> Completion:
        """The completion of a request, without the fields that the endpoint does not take.

        Raises:
            PermanentError: this request is refused, or fails while others succeed.
            TeacherError: the endpoint is down or refuses everything; other calls end the same way.
        """
        async with self._calls:
            try:
                return await self._adapted(request)
            except PermanentError as error:
                if error.reason != BY_FILTER:
                    self.breaker.give_up(error)
                raise

    async def models(self) -> list[str]:
        """The models that the endpoint lists; none where it lists none.

        Raises:
            TeacherError: it cannot be reached.
        """
        from aiohttp import ClientError

        try:
            async with self.session.get(f"{self.url}/models", allow_redirects=False) as response:
                content = await _body(response)
        except (TimeoutError, ClientError) as error:
            raise TeacherError(
                f"{self.name}: cannot be reached ({error or 'no answer in time'})",
                hint=self.is_it_up,
            ) from error
        return chat_protocol.parse_models(content) if response.status == 200 else []

    async def stream(self, request: Request) -> AsyncIterator[tuple[str, str]]:
        """The parts of a completion as they are written; asked once, outside of all limits.

        Returns:
            Texts, and with the last one why the completion ends.

        Raises:
            TeacherError: the endpoint fails, or refuses the request.
        """
        from aiohttp import ClientError

        body = request.body() | {"stream": True}
        try:
            async with self.session.post(
                self.url + COMPLETIONS, json=body, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise self._failure(response, await _body(response))
                async for line in _lines(response):
                    text, reason = chat_protocol.parse_event(line)
                    if text or reason:
                        yield text, reason
        except (TransientError, PermanentError, ClientError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
            hint = getattr(error, "hint", self.is_it_up)
            raise TeacherError(f"{self.name}: {problem}", hint=hint) from error

    async def _adapted(self, request: Request) -> Completion:
        """Omit or rename, one after the other, the fields that the endpoint refuses.

        What helped is remembered for the run. A refusal that names no field may be about the
        schema: without it, a call shows whether the endpoint refuses that, or this prompt.
        """
        refused = self._refused
        while True:
            fields = request.body(refused).keys()
            try:
                completion = await self._retried(request, refused)
            except PermanentError as error:
                unknown = fields - self._taken - refused
                name = chat_protocol.refused_field(error.detail, unknown)
                name = name or chat_protocol.refused_field(SCHEMA_FIELD, unknown)
                if error.reason == BY_FILTER or error.status not in NO_SUCH_FIELD or not name:
                    raise
                refused |= {name}
                continue
            for name in sorted(refused - self._refused):
                instead = chat_protocol.RENAMED.get(name)
                what = f"{instead} is sent instead" if instead else "it is omitted"
                say(f"  the endpoint takes no {name}: {what}")
            self._refused |= refused
            self._taken |= fields
            return completion

    async def _retried(self, request: Request, refused: frozenset[str]) -> Completion:
        """Send a request until it is answered, each time when the limits allow it."""

        tries = 0

        async def send() -> Completion:
            nonlocal tries
            tries += 1
            if tries > 1:
                await self._turn(request)
                if self.breaker.stopped.done():
                    self.breaker.stopped.result()
            return await self._send(request, refused)

        await self._turn(request)
        return await self.breaker.call(send)

    async def _turn(self, request: Request) -> None:
        """Wait until the limits allow a request: they are spread evenly over each minute.

        Tokens are estimated as vendors do: the prompt's, and all that the completion may take.
        """
        tokens = len(request.prompt) // CHARACTERS_PER_TOKEN + request.max_tokens
        limits = (1, self.settings.requests_per_minute), (tokens, self.settings.tokens_per_minute)
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + max(60 * amount / rate if rate else 0 for amount, rate in limits)
        await asyncio.sleep(start - now)

    async def _send(self, request: Request, refused: frozenset[str]) -> Completion:
        """One HTTP request, without the fields that are refused.

        Raises:
            TransientError: it may work later.
            PermanentError: it will not.
            TeacherError: no request will.
        """
        from aiohttp import ClientError

        timeout = f"{self.settings.flags}-timeout"
        try:
            async with self.session.post(
                self.url + COMPLETIONS,
                json=request.body(refused),
                # Followed, a redirect would take documents, and perhaps the key, to another host.
                allow_redirects=False,
            ) as response:
                content = await _body(response)
        except TimeoutError as error:
            raise TransientError(
                "no answer in time",
                f"no answer within {timeout} {self.settings.timeout:g} seconds",
                hint=f"Paid responses are kept: run again, perhaps with a longer {timeout}.",
            ) from error
        except ClientError as error:
            raise TransientError(
                "connection failed",
                f"cannot be reached ({error})",
                hint=self.is_it_up,
            ) from error
        if response.status != 200:
            raise self._failure(response, content)
        completion = chat_protocol.parse_completion(content)
        self.ledger.count(
            requests=1, tokens_in=completion.tokens_in, tokens_out=completion.tokens_out
        )
        return completion

    def _failure(self, response: "ClientResponse", content: bytes) -> Exception:
        """What a status means: try again, this request is refused, or all of them are."""
        status, flags = response.status, self.settings.flags
        if status in range(300, 400):
            target = printable(response.headers.get("Location", "nowhere")[:300])
            return TeacherError(
                f"{self.name}: HTTP {status} redirects to {target}; this is not followed, because "
                "that server would receive your documents",
                hint=f"If you trust it, give its URL without /chat/completions as {flags}-endpoint",
            )
        code, message = chat_protocol.parse_error(content)
        if status in TRY_AGAIN:
            seconds = chat_protocol.retry_after(response.headers)
            problem = f"HTTP {status} ({message})"
            return TransientError(f"HTTP {status}", problem, retry_after=seconds)
        if FILTERED in f"{code} {message}":
            return PermanentError(BY_FILTER, status, message)
        if status in FOR_EVERY_REQUEST or code == NO_SUCH_MODEL:
            return TeacherError(
                f"{self.name}: HTTP {status} ({message})",
                hint=f"Check {flags}-endpoint (it usually ends in /v1), {flags}-model "
                f"{self.settings.model} and {KEY_VARIABLE}.",
            )
        return PermanentError(f"HTTP {status}", status, message)


@asynccontextmanager
async def connected(settings: EndpointSettings, ledger: Ledger) -> AsyncIterator[Endpoint]:
    """An endpoint for the length of a block; `ledger` counts calls and tokens."""
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

    async with ClientSession(
        headers={"Authorization": f"Bearer {settings.key}"},
        connector=TCPConnector(limit=settings.concurrency),
        timeout=ClientTimeout(total=settings.timeout),
        cookie_jar=DummyCookieJar(),  # a call depends on none before it
        trust_env=urlsplit(settings.url).hostname not in LOOPBACK,  # proxies
    ) as session:
        yield Endpoint(settings, session, ledger)


async def _body(response: "ClientResponse") -> bytes:
    """The body of an answer, unpacked: a few kilobytes may unpack to gigabytes."""
    return b"\n".join([line async for line in _lines(response)])


async def _lines(response: "ClientResponse") -> AsyncIterator[bytes]:
    """The lines of an answer as they come, unpacked; the last one may be empty."""
    size, rest = 0, b""
    async for part in response.content.iter_any():
        size += len(part)
        if size > LARGEST_BODY:
            raise chat_protocol.unreadable(f"over {LARGEST_BODY / 1e6:.0f} MB")
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest
