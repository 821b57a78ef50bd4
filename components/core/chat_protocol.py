"""The OpenAI protocol for chat completions: what is sent, and what is read from the answer.

Answers are hostile until they are read: they may be huge, deeply nested, half of one or a page.
"""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

from pydantic import AfterValidator

from components.core.breaker import TransientError
from components.core.errors import printable
from components.core.records import Record
from components.core.redaction import redact

FINISHED = "stop"
CUT_OFF = "length"
FILTERED = "content_filter"
FAILED = "error"
MOST_TOKENS = 10**9
RENAMED = {"max_tokens": "max_completion_tokens"}
TEXT_PARTS = ("text", "output_text", None)
MAY_BE_REFUSED = ("max_tokens", "temperature", "seed", "response_format")
"""Fields that some endpoints do not take; they are renamed or left out."""


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for.

    schema: the JSON schema that it must keep to, if any. extra: further fields, as a JSON object.
    """

    prompt: str
    model: str
    max_tokens: int
    seed: int
    temperature: float = 0.0
    schema: str = ""
    extra: str = ""

    def body(self, refused: Collection[str] = ()) -> dict[str, Any]:
        """The request as the protocol has it, without the fields that an endpoint refuses."""
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
        for name in body.keys() & set(refused):
            value = body.pop(name)
            if name in RENAMED:
                body[RENAMED[name]] = value
        extra: dict[str, Any] = json.loads(self.extra or "{}")
        return body | extra


class Completion(Record):
    """What came back, without the key should the server repeat it.

    A `text` may hold the model's reasoning between `<think>` tags, and nothing else.
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
        if body.get("error"):
            raise _failed(content)
        choice = body["choices"][0]
        if choice.get("error") or choice.get("finish_reason") == FAILED:
            raise _failed(json.dumps(choice).encode())
        message = choice["message"]
        text, refusal = _text(message.get("content")), _text(message.get("refusal"))
        finish_reason = FILTERED if refusal else _text(choice.get("finish_reason"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(f"{type(error).__name__}: {error}", content) from error
    if not text.strip():
        text = _reasoning(message)
    if not text and finish_reason == FINISHED:
        raise TransientError("empty answer")
    usage = body.get("usage")
    return Completion(
        text=text,
        finish_reason=finish_reason,
        tokens_in=_tokens(usage, "prompt_tokens"),
        tokens_out=_tokens(usage, "completion_tokens"),
        tokens_cached=_tokens(_value(usage, "prompt_tokens_details"), "cached_tokens"),
    )


def parse_event(line: bytes) -> tuple[str, str]:
    """The text in a line of a streamed answer, and why the answer ends there; "" if it does not.

    Raises:
        TransientError: the line is an error, or unreadable.
    """
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return "", ""
    try:
        event = json.loads(data)
        if event.get("error"):
            raise _failed(data)
        choice = (event.get("choices") or [{}])[0]  # the last event may have the usage alone
        text = _text((choice.get("delta") or {}).get("content"))
        return redact(text), _text(choice.get("finish_reason"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(f"{type(error).__name__}: {error}", data) from error


def parse_models(content: bytes) -> list[str]:
    """The names in an answer that lists models; none where it is no such list."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        return [str(model["id"])[:200] for model in json.loads(content)["data"]]
    return []


def _failed(content: bytes) -> TransientError:
    """The error about an answer that is one, though its status is 200."""
    code, message = parse_error(content)
    return TransientError("error in an answer", f"HTTP 200 with an error ({code} {message})")


def _text(value: Any) -> str:
    """A text, or the text among the parts of one.

    It is without halves of surrogate pairs, which some servers send and no file takes.
    """
    if isinstance(value, list):
        value = "".join(part["text"] for part in value if part.get("type") in TEXT_PARTS)
    return "" if value is None else value.encode("utf-8", "replace").decode()


def _reasoning(message: dict[str, Any]) -> str:
    """The reasoning, between tags, of a model that wrote nothing else; "" if there is none."""
    thought = message.get("reasoning_content") or message.get("reasoning") or message.get("content")
    if thought and isinstance(thought, list):
        thought = json.dumps(thought, ensure_ascii=False)
    if not isinstance(thought, str) or not thought.strip():
        return ""
    return f"<think>{_text(thought)}</think>"


def _value(table: object, name: str) -> object:
    return table.get(name) if isinstance(table, dict) else None


def _tokens(usage: object, name: str) -> int:
    """How many tokens an endpoint counted, as it reports; 0 where that cannot be true.

    A completion is worth more than its count, so nothing here can make it fail.
    """
    count = _value(usage, name)
    return count if isinstance(count, int) and 0 <= count <= MOST_TOKENS else 0


def unreadable(why: str, content: bytes = b"") -> TransientError:
    """The error about an answer that is no completion; it quotes how the answer begins."""
    begins = redact(" ".join(content[:1000].decode("utf-8", "replace").split()))[:200]
    why = f"{why[:100]}; it begins with: {begins}" if begins else why[:300]
    return TransientError(
        "unreadable answer",
        f"does not answer as an OpenAI-compatible endpoint ({printable(why)})",
        hint="The URL usually ends in /v1.",
    )


def parse_error(content: bytes) -> tuple[str, str]:
    """Code and message of an error; of one in another form, its text."""
    code, text = "", content[:300].decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        body = json.loads(content)
        error = _value(body[0] if isinstance(body, list) and body else body, "error")
        if isinstance(error, dict):
            code, text, field = (
                str(error.get(name) or "")[:300] for name in ("code", "message", "param")
            )
            text += f" ({field})" if field and field not in text else ""
        elif isinstance(error, str):
            text = error[:300]
    return code, printable(" ".join(text.split()))


def refused_field(message: str, fields: Collection[str]) -> str:
    """Which of a request's fields an error's message is about; "" if it names none."""
    named = (name for name in MAY_BE_REFUSED if name in fields)
    return next((name for name in named if re.search(rf"\b{name}\b", message)), "")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait, given as seconds or as a date; 0 if none.

    A date is compared with the endpoint's own clock if it reports one: ours may be wrong.
    """
    text = headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        clock = headers.get("Date")
        try:
            now = parsedate_to_datetime(clock) if clock else datetime.now(UTC)
            seconds = (parsedate_to_datetime(text) - now).total_seconds()
        except (TypeError, ValueError, OverflowError):  # no date, or one without a time zone
            return 0.0
    return seconds if seconds > 0 else 0.0  # not a number is none
