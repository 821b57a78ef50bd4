"""The OpenAI protocol for chat completions: what is sent, and what is read of what comes back.

Answers are hostile until they are read: they may be huge, deeply nested, half of one or a page.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

from pydantic import AfterValidator

from components.core.breaker import TransientError
from components.core.errors import printable
from components.core.records import Record
from components.core.redaction import redact

CUT_OFF = "length"
FILTERED = "content_filter"
MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for; `schema` is the JSON schema that it must keep to, if any."""

    prompt: str
    model: str
    max_tokens: int
    seed: int
    temperature: float = 0.0
    schema: str = ""

    def body(self) -> dict[str, Any]:
        """The request as the protocol has it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if self.schema:
            schema = {"name": "reply", "strict": True, "schema": json.loads(self.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


class Completion(Record):
    """What came back, without the key should the server repeat it.

    `tokens_cached` of `tokens_in` were served by the server's prefix cache.
    """

    text: Annotated[str, AfterValidator(redact)]
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0


def parse_completion(content: bytes) -> Completion:
    """The completion in an answer.

    Raises:
        TransientError: there is none.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = _text(message.get("content")), _text(message.get("refusal"))
        finish_reason = FILTERED if refusal else _text(choice.get("finish_reason"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(f"{type(error).__name__}: {error}") from error
    if not text.strip() and finish_reason not in (CUT_OFF, FILTERED):
        raise TransientError("empty answer")
    usage = body.get("usage")
    return Completion(
        text=text,
        finish_reason=finish_reason,
        tokens_in=_tokens(usage, "prompt_tokens"),
        tokens_out=_tokens(usage, "completion_tokens"),
        tokens_cached=_tokens(_value(usage, "prompt_tokens_details"), "cached_tokens"),
    )


def _text(value: Any) -> str:
    """A text without halves of surrogate pairs, which some servers send and no file takes."""
    return "" if value is None else value.encode("utf-8", "replace").decode()


def _value(table: object, name: str) -> object:
    return table.get(name) if isinstance(table, dict) else None


def _tokens(usage: object, name: str) -> int:
    """How many tokens an endpoint says it counted; 0 where that cannot be true.

    A completion is worth more than its count, so nothing here can make it fail.
    """
    count = _value(usage, name)
    return count if isinstance(count, int) and 0 <= count <= MOST_TOKENS else 0


def unreadable(why: str) -> TransientError:
    """The error about an answer that is no completion."""
    return TransientError(
        "unreadable answer",
        f"does not answer as an OpenAI-compatible endpoint ({printable(why[:300])})",
        hint="The URL usually ends in /v1.",
    )


def parse_error(content: bytes) -> tuple[str, str]:
    """Code and message of an error; of one in another form, its text."""
    text = content[:300].decode("utf-8", "replace")
    try:
        error = _value(json.loads(content), "error")
    except (ValueError, RecursionError):
        error = None
    code, message = _value(error, "code"), _value(error, "message")
    if isinstance(error, dict):
        text = message[:300] if isinstance(message, str) else ""
    return code if isinstance(code, str) else "", printable(" ".join(text.split()))


def retry_after(headers: Mapping[str, str]) -> float:
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
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)
