"""A teacher behind any OpenAI-compatible endpoint: a vLLM server in the cluster, or a vendor's.

`--teacher-concurrency` chunks are under way at once, within the limits on requests and tokens a
minute. Results come back in the chunks' order, while later chunks keep starting. Every reply is
kept before it is used (see `responses`). What to do when the endpoint fails is in `circuit`.
"""

import asyncio
import json
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from components.core.errors import ConfigError, MissingDependencyError, StorageError, TeacherError
from components.core.ledger import Ledger
from components.core.progress import say
from components.core.records import Chunk, explain
from components.generate.config import GenerateConfig
from components.generate.teachers.circuit import LONGEST_ASKED_PAUSE, Busy, Circuit, Refused
from components.generate.teachers.interview import CUT_OFF, REFUSED, Prompts, interview
from components.generate.teachers.responses import Reply, Request, Responses, opened
from components.generate.teachers.teacher import Draft

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

KEY_VARIABLE = "OPENAI_API_KEY"
KEY_FILE_VARIABLE = "OPENAI_API_KEY_FILE"

HEAD_START_SECONDS = 0.1
"""For the first call: where a wrong key is told by then, it costs one call and not hundreds."""

LARGEST_BODY = 10_000_000  # bytes, unpacked: no reply is as long

REORDER = 8
"""Chunks begun and not yet handed out, per unit of concurrency: later ones wait for a slow one."""

CHARACTERS_PER_TOKEN = 4
SMALL_QUESTION = "Answer with one word: yes."
NO_SUCH_SCHEMA = frozenset({400, 415, 422, 501})  # said to a response format that is not known
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
FOR_THE_ENDPOINT = {401, 402, 403, 404}  # refusals that hold for every call, not for one chunk
NO_SUCH_MODEL = "model_not_found"  # an error's code; some endpoints say it with a 400
TRY_AGAIN = {408, 409, 425, 429}
MOST_TOKENS = 10**9


def _tokens(value: object) -> int:
    """How many tokens an endpoint says it counted; 0 where it says nothing that can be true."""
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else 0


def _table(value: object) -> object:
    return value if isinstance(value, dict) else {}


Tokens = Annotated[int, BeforeValidator(_tokens)]


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: Tokens = 0


class _Usage(BaseModel):
    """What was counted. A reply is worth more than its count: nothing here can make it fail."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    prompt_tokens_details: Annotated[_Details, BeforeValidator(_table)] = _Details()


class _Completion(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Annotated[_Usage, BeforeValidator(_table)] = _Usage()


class _Fault(BaseModel):
    message: str | None = ""
    code: str | int | None = ""


class _Failure(BaseModel):
    """What is read of an error."""

    error: _Fault


class OpenAITeacher:
    """See the module."""

    def __init__(self, config: GenerateConfig) -> None:
        if fault := _fault_of(config.teacher_endpoint):
            raise ConfigError(fault, hint="For example http://localhost:8000/v1")
        if find_spec("aiohttp") is None:
            raise MissingDependencyError(
                "--teacher openai needs aiohttp",
                hint="pip install -e '.[generate]' in a checkout of raft-pipelines",
            )
        self.config = config
        self.name = f"openai:{config.teacher_model}"
        self.prompts = Prompts.load(config)

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Iterator[tuple[Chunk, list[Draft]]]:
        """See `Teacher.drafts`."""
        with opened(self.config) as responses, asyncio.Runner() as runner:
            stream = self._stream(chunks, responses, ledger)
            try:
                while (found := runner.run(_next(stream))) is not None:
                    yield found
            finally:
                with suppress(RuntimeError):  # it still runs when a signal has ended the run
                    runner.run(stream.aclose())

    async def _stream(
        self, chunks: Iterable[Chunk], responses: Responses, ledger: Ledger
    ) -> "AsyncGenerator[tuple[Chunk, list[Draft]], None]":
        """Keep `concurrency` chunks under way, and hand out the oldest as soon as it is done."""
        pending: deque[tuple[Chunk, asyncio.Task[list[Draft]]]] = deque()
        async with self._endpoint(responses, ledger) as endpoint:
            try:
                for chunk in chunks:
                    about = asyncio.create_task(self._about(chunk, endpoint))
                    if not pending and not endpoint.circuit.worked:
                        await asyncio.wait([about], timeout=HEAD_START_SECONDS)
                    pending.append((chunk, about))
                    while pending and (
                        pending[0][1].done() or len(pending) > REORDER * endpoint.width
                    ):
                        yield await endpoint.circuit.first_of(*pending.popleft())
                while pending:
                    yield await endpoint.circuit.first_of(*pending.popleft())
            finally:
                for _, task in pending:
                    task.cancel()
                await asyncio.gather(*(task for _, task in pending), return_exceptions=True)

    async def _about(self, chunk: Chunk, endpoint: "_Endpoint") -> list[Draft]:
        async with endpoint.slots:
            talk = interview(chunk, self.prompts)
            requests = next(talk)
            while True:
                replies = await asyncio.gather(*map(endpoint.ask, requests))
                try:
                    requests = talk.send(list(replies))
                except StopIteration as done:
                    drafts: list[Draft] = done.value
                    return drafts

    @asynccontextmanager
    async def _endpoint(self, responses: Responses, ledger: Ledger) -> "AsyncIterator[_Endpoint]":
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

        async with ClientSession(
            headers={"Authorization": f"Bearer {_key()}"},
            connector=TCPConnector(limit=self.config.teacher_concurrency),
            timeout=ClientTimeout(total=self.config.teacher_timeout),
            cookie_jar=DummyCookieJar(),  # a call depends on none before it
            trust_env=True,  # proxies
        ) as session:
            yield _Endpoint(self.config, session, responses, ledger)


class _Endpoint:
    """The endpoint of a run: sends requests, keeps replies."""

    def __init__(
        self, config: GenerateConfig, session: "ClientSession", responses: Responses, ledger: Ledger
    ) -> None:
        self.config = config
        self.session = session
        self.base = config.teacher_endpoint.rstrip("/")
        self.responses = responses
        self.ledger = ledger
        self.width = config.teacher_concurrency
        self.slots = asyncio.Semaphore(self.width)  # chunks under way
        self.calls = asyncio.Semaphore(self.width)  # a chunk's answers are asked for at once
        small = Request(
            SMALL_QUESTION, config.teacher_model, config.teacher_max_tokens, config.seed
        )
        self.circuit = Circuit(
            config.teacher_endpoint,
            config.teacher_model,
            ledger.requests_failed,
            lambda: self._counted(small),
        )
        self.limits = _limits(config)
        self.knows_schema: bool | None = None
        self.without_schema = asyncio.Lock()

    async def ask(self, request: Request) -> Reply | str:
        """The reply to a request, or why there is none."""
        plain = replace(request, schema="")
        for form in (request, plain):
            if (kept := self.responses.get(form)) is not None:
                return kept
        async with self.calls:
            try:
                return await self._ask_new(request, plain)
            except Refused as refused:
                return refused.reason

    async def _ask_new(self, request: Request, plain: Request) -> Reply:
        if self.knows_schema is False or not request.schema:
            return await self._paid(plain)
        try:
            reply = await self._paid(request)
        except Refused as refused:
            if self.knows_schema or refused.status not in NO_SUCH_SCHEMA:
                raise
            # Does the endpoint refuse the response format, or this chunk? One call tells.
            async with self.without_schema:
                reply = await self._paid(plain)
                if self.knows_schema is None:
                    say("  the endpoint knows no JSON schema; questions are read from plain text")
                self.knows_schema = False
        else:
            self.knows_schema = True
        return reply

    async def _paid(self, request: Request) -> Reply:
        for limiter, amount in self.limits:
            await limiter.acquire(min(amount(request), limiter.max_rate))
        undecided = request.schema and self.knows_schema is None
        reply = await self.circuit.call(
            lambda: self._counted(request), NO_SUCH_SCHEMA if undecided else frozenset()
        )
        try:
            self.responses.put(request, reply)
        except StorageError as error:
            self.circuit.stop(error)  # no further call is paid that cannot be kept
            raise
        if request.purpose == "answer":
            self.ledger.count_cached(reply.tokens_cached, of=reply.tokens_in)
        return reply

    async def _counted(self, request: Request) -> Reply:
        reply = await self._send(request)
        self.ledger.count(requests=1, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        return reply

    async def _send(self, request: Request) -> Reply:
        """One HTTP request.

        Raises:
            Busy: it may work later. Refused: it will not.
            TeacherError: it points elsewhere.
        """
        from aiohttp import ClientError

        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": "questions", "strict": True, "schema": request.schema_object(),
                },
            }  # fmt: skip
        try:
            async with self._post(body) as response:
                content = await _body(response)
        except TimeoutError:
            seconds = self.config.teacher_timeout
            raise Busy(
                "no answer in time",
                f"no answer within --teacher-timeout {seconds:g} seconds",
                hint="What was paid is kept: run again, perhaps with a longer --teacher-timeout.",
            ) from None
        except ClientError as error:
            raise Busy(
                "connection failed",
                f"cannot be reached ({error})",
                hint=f"Is the server up? Try: curl {self.base}/models",
            ) from None
        if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
            raise self._points_elsewhere(response)
        if response.status != HTTPStatus.OK:
            raise _status_fault(response.status, response.headers, content)
        try:
            completion = _Completion.model_validate_json(_storable(content))
        except ValidationError as error:
            raise _unreadable(explain(error)) from None
        choice, usage = completion.choices[0], completion.usage
        text, finish = choice.message.content or "", choice.finish_reason or ""
        if choice.message.refusal:
            finish = REFUSED
        if not text.strip() and finish not in (CUT_OFF, REFUSED):
            raise Busy("empty answer")
        return Reply(
            text=text,
            finish_reason=finish,
            tokens_in=usage.prompt_tokens,
            tokens_out=usage.completion_tokens,
            tokens_cached=usage.prompt_tokens_details.cached_tokens,
        )

    def _post(self, body: dict[str, Any]) -> "AbstractAsyncContextManager[ClientResponse]":
        # Followed, a redirect would take documents, and perhaps the key, to another host.
        url = f"{self.base}/chat/completions"
        return self.session.post(url, json=body, allow_redirects=False)

    def _points_elsewhere(self, response: "ClientResponse") -> TeacherError:
        target = _printable(response.headers.get("Location", "nowhere")[:300])
        return TeacherError(
            f"--teacher-endpoint {self.config.teacher_endpoint}: HTTP {response.status} points to "
            f"{target}, which is not followed: it would be sent your documents",
            hint="If you trust it, give its URL without /chat/completions as --teacher-endpoint.",
        )


async def _next(
    stream: "AsyncGenerator[tuple[Chunk, list[Draft]], None]",
) -> tuple[Chunk, list[Draft]] | None:
    return await anext(stream, None)


def _fault_of(endpoint: str) -> str:
    """Why a URL cannot be an endpoint; "" if it can."""
    if not endpoint.startswith(("http://", "https://")):
        return f"--teacher-endpoint {endpoint!r}: begins neither with http:// nor https://"
    try:
        url = urlsplit(endpoint)
        host = (url.hostname or "").encode("idna").decode()
        _ = url.port  # raises if it is none
    except ValueError as error:
        return f"--teacher-endpoint {endpoint!r}: is no URL ({error})"
    if not host:
        return f"--teacher-endpoint {endpoint!r}: names no host"
    if url.query or url.fragment:
        return f"--teacher-endpoint {endpoint!r}: must end before ? and #"
    return ""


async def _body(response: "ClientResponse") -> bytes:
    """The body of an answer, unpacked.

    Raises:
        Busy: it is larger than any answer, such as a few kilobytes that unpack to gigabytes.
    """
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > LARGEST_BODY:
            raise _unreadable(f"over {LARGEST_BODY / 1e6:.0f} MB")
    return bytes(content)


def _unreadable(why: str) -> Busy:
    return Busy(
        "unreadable answer",
        f"does not answer as an OpenAI-compatible endpoint ({_printable(why[:300])})",
        hint="The URL usually ends in /v1.",
    )


def _printable(text: str) -> str:
    """A server's words for a log: nothing in them moves the cursor or colours a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _status_fault(status: int, headers: Mapping[str, str], content: bytes) -> Exception:
    """What an HTTP status means: try again, this chunk is refused, or all of them are."""
    try:
        found = _Failure.model_validate_json(content).error
    except ValidationError:
        found = _Fault(message=content[:300].decode("utf-8", "replace"))
    message = _printable((found.message or "")[:300])
    if (status >= 500 and status != 501) or status in TRY_AGAIN:
        seconds = _retry_after(headers)
        asks = f", asks to wait {seconds:.0f} s" if seconds > LONGEST_ASKED_PAUSE else ""
        return Busy(f"HTTP {status}", f"HTTP {status} ({message}){asks}", retry_after=seconds)
    if "content_filter" in f"{found.code} {message}":
        return Refused("refused by the content filter", status, message, by_filter=True)
    for_all = status in FOR_THE_ENDPOINT or found.code == NO_SUCH_MODEL
    return Refused(f"HTTP {status}", status, message, for_all=for_all)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait, given as seconds or as a date; 0 if none.

    A date is held against the endpoint's own clock where it tells it: ours may be wrong.
    """
    text = headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        until = _date(text)
        if until is None:
            return 0.0
        seconds = (until - (_date(headers.get("Date", "")) or datetime.now(UTC))).total_seconds()
    return seconds if seconds > 0 else 0.0  # not a number is none


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)


def _storable(content: bytes) -> bytes:
    """JSON that can be read: halves of surrogate pairs, which some servers send, become "?"."""
    if not _SURROGATE.search(content):
        return content
    try:
        return json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return content


def _limits(config: GenerateConfig) -> list[tuple[Any, Any]]:
    """Leaky buckets for requests and tokens a minute, each with what a request takes from it.

    Buckets are small, so calls are spread over the minute instead of filling its first second.
    Tokens are an estimate, as vendors make it: the prompt's, and all that the reply may take.
    """
    from aiolimiter import AsyncLimiter

    found: list[tuple[Any, Any]] = []
    if rate := config.teacher_requests_per_minute:
        found.append((AsyncLimiter(max(1, rate / 60), max(1, 60 / rate)), lambda _: 1))
    if rate := config.teacher_tokens_per_minute:
        largest = 2 * config.teacher_max_tokens + config.chunk_tokens
        seconds = min(60, max(1, 60 * largest / rate))
        found.append(
            (
                AsyncLimiter(rate * seconds / 60, seconds),
                lambda request: len(request.prompt) // CHARACTERS_PER_TOKEN + request.max_tokens,
            )
        )
    return found


def _key() -> str:
    """The key from the environment or a mounted file, without the line end that such files have.

    Raises:
        ConfigError: it cannot be read or sent; the key itself is never shown.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    source = KEY_VARIABLE
    if not key and (path := os.environ.get(KEY_FILE_VARIABLE, "")):
        source = KEY_FILE_VARIABLE
        try:
            key = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"{KEY_FILE_VARIABLE} {path}: cannot be read",
                hint="Name the file that the secret is mounted as.",
            ) from None
    # A server of one's own asks for no key, but the client insists on one.
    key = key or "none"
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{source} holds characters that no key has",
            hint=f"Look for line ends or quotes that were pasted into {source}.",
        )
    return key
