"""The client of an endpoint by itself, as anyone may use it; over real HTTP."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.core import breaker
from components.core.breaker import PermanentError
from components.core.chat_protocol import Completion, Request
from components.core.endpoint import EndpointSettings, connected
from components.core.errors import ConfigError, TeacherError
from components.core.ledger import Ledger
from tests.generate.teacher_server import Answer, Reply, TeacherServer, teacher_server

REQUEST = Request("Where is Kelden?", "m", max_tokens=10, seed=0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.01)


def ask(settings: EndpointSettings, ledger: Ledger, *requests: Request) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        async with connected(settings, ledger) as endpoint:
            return await asyncio.gather(*map(endpoint.complete, requests))

    return asyncio.run(all_at_once())


def settings(server: TeacherServer, **more: object) -> EndpointSettings:
    return EndpointSettings(server.endpoint, "m", **more)


def test_a_completion_is_counted(tmp_path: Path) -> None:
    ledger = Ledger("ask", tmp_path)
    with teacher_server(lambda body: Answer("By the sea.")) as server:
        (completion,) = ask(settings(server), ledger, REQUEST)
    assert completion == Completion(
        text="By the sea.", finish_reason="stop", tokens_in=10, tokens_out=5
    )
    assert (ledger.requests, ledger.tokens_in, ledger.tokens_out) == (1, 10, 5)
    assert server.seen[0]["seed"] == 0 and server.seen[0]["max_tokens"] == 10


def test_one_request_to_a_server_that_is_down_names_the_flag(tmp_path: Path) -> None:
    down = EndpointSettings("http://127.0.0.1:9/v1", "m", flags="--answers")
    with pytest.raises(TeacherError, match="--answers-endpoint http://127.0.0.1:9/v1") as error:
        ask(down, Ledger("ask", tmp_path), REQUEST)
    assert "cannot be reached" in str(error.value) and "curl" in error.value.hint


def test_one_request_that_is_refused_is_an_error_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger("ask", tmp_path)
    with (
        teacher_server(lambda body: Answer("too long", status=400)) as server,
        pytest.raises(PermanentError, match=r"HTTP 400 \(too long\)"),
    ):
        ask(settings(server), ledger, REQUEST)
    assert ledger.requests_failed == {"HTTP 400": 1}


def test_tokens_a_minute_are_limited(tmp_path: Path) -> None:
    with teacher_server(lambda body: Answer("By the sea.")) as server:
        started = time.monotonic()
        # Each takes 4 tokens for its prompt and 10 for its completion: 20 a second.
        limited = settings(server, tokens_per_minute=14 * 60 * 20, requests_per_minute=60_000)
        ask(limited, Ledger("ask", tmp_path), *[REQUEST] * 21)
    assert time.monotonic() - started >= 0.99


def test_a_key_is_not_in_the_settings_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "secret" not in repr(EndpointSettings("http://localhost/v1", "m"))
    with pytest.raises(ConfigError, match="--ask-endpoint 'localhost': begins neither"):
        EndpointSettings("localhost", "m", flags="--ask")


def refuses(*names: str, status: int = 400, words: str = "unsupported field: {}") -> Reply:
    """An endpoint that takes none of these fields, and names the first that it finds."""

    def reply(body: dict[str, Any]) -> Answer:
        refused = [name for name in names if name in body]
        return Answer(words.format(refused[0]), status=status) if refused else Answer("By the sea.")

    return reply


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        (refuses("max_tokens"), {"max_completion_tokens": 10, "temperature": 0.0, "seed": 0}),
        (refuses("temperature"), {"max_tokens": 10, "seed": 0}),
        (refuses("seed", status=422), {"max_tokens": 10, "temperature": 0.0}),
        (refuses("response_format"), {"max_tokens": 10, "temperature": 0.0, "seed": 0}),
        (refuses("response_format", words="no structured output"), {"max_tokens": 10, "seed": 0}),
        (
            refuses("max_tokens", words="use max_completion_tokens instead of 'max_tokens'"),
            {"max_completion_tokens": 10},
        ),
        (
            refuses("max_tokens", "temperature", "seed", "response_format"),
            {"max_completion_tokens": 10},
        ),
    ],
)
def test_a_field_that_is_refused_is_left_out_for_the_run(
    tmp_path: Path, reply: Reply, sent: dict[str, object]
) -> None:
    """15"""
    asks = replace(REQUEST, schema='{"type": "object"}')
    with teacher_server(reply) as server:
        one_at_a_time = settings(server, concurrency=1)
        completions = ask(one_at_a_time, Ledger("ask", tmp_path), *[asks] * 5)
    assert [completion.text for completion in completions] == ["By the sea."] * 5
    refused = 4 if len(server.seen) > 6 else 1
    assert len(server.seen) == 5 + refused
    for body in server.seen[refused:]:
        assert body == body | sent and reply(body).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b'{"object": "error", "message": {"detail": [{"type": "extra_forbidden", '
        b'"loc": ["body", "seed"], "msg": "unknown field", "input": 0}]}}',
        b'{"error": {"message": "unknown field", "param": "seed", "code": "unsupported"}}',
        b'[{"error": {"code": 400, "message": "Invalid name \\"seed\\": no such field"}}]',
        b'{"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]}',
    ],
)
def test_a_field_is_found_in_every_form_of_error(tmp_path: Path, raw: bytes) -> None:
    """15"""

    def reply(body: dict[str, Any]) -> Answer:
        return Answer(status=422, raw=raw) if "seed" in body else Answer("By the sea.")

    with teacher_server(reply) as server:
        (completion,) = ask(settings(server), Ledger("ask", tmp_path), REQUEST)
    assert completion.text == "By the sea." and len(server.seen) == 2


def test_a_field_that_was_taken_once_is_not_left_out(tmp_path: Path) -> None:
    """15: a long prompt may be refused in the same words."""

    def reply(body: dict[str, Any]) -> Answer:
        if "long" in body["messages"][0]["content"]:
            return Answer("max_tokens is too large for seed and prompt", status=400)
        return Answer("By the sea.")

    long = replace(REQUEST, prompt="long")
    with teacher_server(reply) as server:
        one_at_a_time = settings(server, concurrency=1)
        with pytest.raises(PermanentError, match="max_tokens is too large"):
            ask(one_at_a_time, Ledger("ask", tmp_path), REQUEST, long, long)
    assert [len(body) for body in server.seen[:2]] == [5, 5]


def test_where_nothing_helps_the_endpoints_words_are_quoted(tmp_path: Path) -> None:
    """15"""
    words = "enable_thinking has to be false unless streaming"
    with teacher_server(lambda body: Answer(words, status=400)) as server:
        with pytest.raises((PermanentError, TeacherError)) as error:
            ask(settings(server, concurrency=1), Ledger("ask", tmp_path), *[REQUEST] * 4)
        assert words in str(error.value)
        extra = replace(REQUEST, extra='{"seed": 1}')
        with pytest.raises(PermanentError):  # and a field of the user's own is not left out
            ask(settings(server), Ledger("ask", tmp_path), extra)


@pytest.mark.parametrize(
    ("raw", "quoted"),
    [
        (b'data: {"id": "x", "choices": [{"delta": {"content": "Yes"}}]}\n\ndata: [DONE]\n\n',
         'data: {"id": "x"'),
        (b"<!DOCTYPE html><html><body>Sign in to the gateway</body></html>", "Sign in to the"),
        (b'{"detail": "Not here"}', "Not here"),
        (b'{"error": {"code": 502, "message": "upstream was silent"}}', "upstream was silent"),
    ],
)  # fmt: skip
def test_an_envelope_without_a_completion_is_quoted(
    tmp_path: Path, raw: bytes, quoted: str
) -> None:
    """16"""
    with teacher_server(lambda body: Answer(raw=raw)) as server:
        with pytest.raises(TeacherError) as error:
            ask(settings(server), Ledger("ask", tmp_path), REQUEST)
        assert quoted in str(error.value)


@pytest.mark.parametrize("suffix", ["/chat/completions", "/chat/completions/", "/"])
def test_the_path_of_completions_is_taken_off(tmp_path: Path, suffix: str) -> None:
    """16"""
    with teacher_server(lambda body: Answer("By the sea.")) as server:
        endpoint = EndpointSettings(server.endpoint + suffix, "m")
        ask(endpoint, Ledger("ask", tmp_path), REQUEST)
    assert server.paths == ["/v1/chat/completions"]
