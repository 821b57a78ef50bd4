"""The client of an endpoint by itself, as anyone may use it; over real HTTP."""

import asyncio
import time
from pathlib import Path

import pytest

from components.core import breaker
from components.core.breaker import PermanentError
from components.core.chat_protocol import Completion, Request
from components.core.endpoint import EndpointSettings, connected
from components.core.errors import ConfigError, TeacherError
from components.core.ledger import Ledger
from tests.generate.teacher_server import Answer, TeacherServer, teacher_server

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
