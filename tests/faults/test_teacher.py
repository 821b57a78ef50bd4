"""A teacher behind an endpoint that fails in every way that was thought of, over real HTTP."""

import gzip
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from components.core import breaker, chat_protocol
from components.core.errors import ConfigError, TeacherError
from components.core.records import RaftRow, read_jsonl
from components.generate import generate
from components.generate.config import GenerateConfig
from tests.conftest import REPOSITORY
from tests.faults.conftest import Tally
from tests.generate.teacher_server import (
    Answer,
    Reply,
    asks_for_answer,
    chunk_of,
    encoded,
    good,
    teacher_server,
)

KIND = "A bad teacher"
SHARE = 0.2  # of the calls that fail
DEEP = b"[" * 200_000 + b"]" * 200_000
YEAR_9999 = "Fri, 31 Dec 9999 23:59:59 GMT"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.01)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Forty documents of two sentences."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(40):
        text = f"Town{number} was founded in {1700 + number}. It lies by the sea."
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def ask(documents: Path, output: Path, endpoint: str, **settings: Any) -> dict[str, Any]:
    """Run the stage; what is in its ledger."""
    defaults = {
        "documents": str(documents), "output": str(output), "teacher": "openai",
        "teacher_endpoint": endpoint, "teacher_model": "teacher-7b", "teacher_concurrency": 4,
        "oracle_probability": 1, "max_chunks": 0,
    }  # fmt: skip
    generate.run(GenerateConfig.parse(defaults | settings))
    return read(output / "ledger.json")


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def rows(output: Path) -> dict[str, RaftRow]:
    """The rows of a dataset by chunk; every one checked against its document."""
    files = [output / "train.jsonl", output / "validation.jsonl"]
    made = [row for file in files for row in read_jsonl(file, RaftRow)]
    for row in made:
        name, year = row.oracle_context.split()[0], row.oracle_context.split()[4].rstrip(".")
        quote = f"##begin_quote##{name} was founded in {year}.##end_quote##"
        assert row.question == f"When was {name} founded?" and row.answer == year
        assert row.cot_answer == f"{quote} so\n<ANSWER>: {year}"
    return {row.chunk_id: row for row in made}


def sometimes(fault: Reply, rng: random.Random, failed: Counter[str], kind: str = "") -> Reply:
    """A good teacher that has a fault in a fifth of its calls; counts them."""
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> Answer:
        with lock:
            fails = rng.random() < SHARE
            failed[kind] += fails
        return fault(body) if fails else good(body)

    return reply


def sends(**fields: Any) -> Reply:
    """Always the same answer."""
    return lambda body: Answer(**fields)


def with_(**fields: Any) -> Reply:
    """A good answer in which some fields are others."""

    def reply(body: dict[str, Any]) -> Answer:
        answer = good(body)
        for name, value in fields.items():
            setattr(answer, name, value)
        return answer

    return reply


def asks_to_wait(text: str) -> Reply:
    return sends(status=429, text="slow down", headers={"Retry-After": text})


def half(body: dict[str, Any]) -> Answer:
    """A good answer that ends somewhere in the middle, as if that were its end."""
    whole = encoded(body, good(body))
    return Answer(raw=whole[: random.randrange(len(whole))])


def soon(body: dict[str, Any]) -> Answer:
    return asks_to_wait(format_datetime(datetime.now(UTC), usegmt=True))(body)


def packed(content: bytes) -> Reply:
    return sends(raw=content, headers={"Content-Encoding": "gzip"})


BOMB = gzip.compress(b'{"choices": "' + b"a" * 100_000_000, compresslevel=1)

PASSING: dict[str, tuple[str, Reply]] = {
    "429": ("HTTP 429", sends(status=429, text="slow down")),
    "429, 0.01 s": ("HTTP 429", asks_to_wait("0.01")),
    "429, a date": ("HTTP 429", soon),
    "429, a past date": ("HTTP 429", asks_to_wait("Mon, 01 Jan 1990 00:00:00 GMT")),
    "429, 10^9 s": ("HTTP 429", asks_to_wait("1000000000")),
    "429, infinite": ("HTTP 429", asks_to_wait("inf")),
    "429, no number": ("HTTP 429", asks_to_wait("nan")),
    "429, year 9999": ("HTTP 429", asks_to_wait(YEAR_9999)),
    "429, year 99999": ("HTTP 429", asks_to_wait(YEAR_9999.replace("9999", "99999"))),
    "429, no zone": ("HTTP 429", asks_to_wait("Mon, 01 Jan 1990 00:00:00 -0000")),
    "429, negative": ("HTTP 429", asks_to_wait("-5")),
    "429, words": ("HTTP 429", asks_to_wait("a little while")),
    "500": ("HTTP 500", sends(status=500, text="oops")),
    "503, a page": ("HTTP 503", sends(status=503, raw=b"<html>Bad gateway</html>")),
    "408": ("HTTP 408", sends(status=408)),
    "reset at once": ("connection failed", with_(cut=0)),
    "reset in mid-answer": ("connection failed", with_(cut=40)),
    "ends too soon": ("connection failed", with_(headers={"Content-Encoding": "gzip"})),
    "half of the JSON": ("unreadable answer", half),
    "no body": ("unreadable answer", sends(raw=b"")),
    "a page": ("unreadable answer", sends(raw=b"<html>Welcome</html>")),
    "not UTF-8": ("unreadable answer", sends(raw=b'{"choices": "\xff\xfe"}')),
    "nested deep": ("unreadable answer", sends(raw=b'{"choices":' + DEEP + b"}")),
    "deep, half a character": (
        "unreadable answer", sends(raw=b'{"a": "\\ud83d", "choices":' + DEEP + b"}"),
    ),
    "over 10 MB": ("unreadable answer", sends(raw=b'{"choices": "' + b"a" * 11_000_000)),
    "gzip bomb": ("unreadable answer", packed(BOMB)),
    "choices null": ("unreadable answer", with_(fields={"choices": None})),
    "choices empty": ("unreadable answer", with_(fields={"choices": []})),
    "finish_reason 3": ("unreadable answer", with_(finish=3)),
    "content a list": ("unreadable answer", with_(message={"content": ["x"]})),
    "content empty": ("empty answer", with_(text="")),
    "content spaces": ("empty answer", with_(text=" \n")),
    "content null": ("empty answer", with_(message={"content": None})),
}  # fmt: skip
"""How a call may fail that is worth another: what the ledger calls it, and what is sent."""


@pytest.mark.fault(
    KIND,
    f"a fifth of the calls fail in one of {len(PASSING)} ways: 429 with every kind of Retry-After, "
    "500, resets, halves, pages, deep JSON, gzip bombs, empty answers …",
    "every row right, none lost, each failure counted by kind in the ledger",
)
@pytest.mark.parametrize("name", PASSING)
def test_a_call_that_fails_is_made_again(
    documents: Path, tmp_path: Path, tally: Tally, name: str
) -> None:
    kind, fault = PASSING[name]
    for number in tally.tries(1):
        failed = Counter[str]()
        output = tmp_path / f"out{number}"
        with teacher_server(sometimes(fault, random.Random(number), failed, kind)) as server:
            ledger = ask(documents, output, server.endpoint)
            assert len(server.seen) == 80 + failed[kind]
        assert failed[kind] and ledger["requests_failed"] == failed
        assert ledger["requests"] == 80
        assert len(rows(output)) == 40 and not read(output / "report.json")["dropped"]


USAGES: dict[str, Any] = {
    "missing": None, "a list": [1, 2], "a word": "many",
    "negative": {"prompt_tokens": -5, "completion_tokens": -1},
    "words": {"prompt_tokens": "many", "completion_tokens": "few"},
    "null": {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None},
    "huge": {"prompt_tokens": 10**400, "completion_tokens": 10**18},
    "halves": {"prompt_tokens": 1.5, "completion_tokens": True},
    "details": {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": -(10**30)}},
}  # fmt: skip


@pytest.mark.fault(
    KIND,
    "token counts that are missing, negative, words, lists, fractions or 400 digits long",
    "every row made; what cannot be true counts as 0",
)
@pytest.mark.parametrize("name", USAGES)
def test_no_count_of_tokens_can_cost_a_reply(
    documents: Path, tmp_path: Path, tally: Tally, name: str
) -> None:
    for number in tally.tries(1):
        output = tmp_path / f"out{number}"
        with teacher_server(with_(fields={"usage": USAGES[name]})) as server:
            ledger = ask(documents, output, server.endpoint)
        assert len(rows(output)) == 40
        assert ledger["requests"] == 80 and 0 <= ledger["tokens_in"] <= 800
        assert 0 <= ledger["tokens_out"] <= 80


def long_answer(body: dict[str, Any]) -> Answer:
    return with_(text="word " * 200_000 + good(body).text)(body)


def many_quotes(body: dict[str, Any]) -> Answer:
    """Quotes that are each found only after the oracle was folded."""
    sentence = chunk_of(body).split(". ")[0].upper()
    text = f"##begin_quote##{sentence}##end_quote## " * 20_000
    return Answer(f"{text}\n<ANSWER>: 1800")


UNUSABLE: dict[str, tuple[str, Reply]] = {
    "refusal": (
        "answer: refused by the content filter",
        with_(message={"content": None, "refusal": "I cannot help with that."}),
    ),
    "content_filter": ("answer: refused by the content filter", with_(finish="content_filter")),
    "400, filtered": (
        "answer: refused by the content filter",
        sends(status=400, code="content_filter", text="filtered"),
    ),
    "cut off": (
        "answer: cut off, even with 2 times --teacher-max-tokens",
        with_(finish="length", text=""),
    ),
    "1 MB": ("answer: far longer than --teacher-max-tokens", long_answer),
    "20,000 quotes": ("answer: far longer than --teacher-max-tokens", many_quotes),
    "500 for ever": ("answer: no reply in 6 tries (HTTP 500)", sends(status=500, text="oops")),
    "empty for ever": ("answer: no reply in 6 tries (empty answer)", with_(text="")),
    "400": ("answer: HTTP 400", sends(status=400, text="context too long")),
}  # fmt: skip
"""What is answered about one chunk for ever: the reason that the report counts, what is sent."""


@pytest.mark.fault(
    KIND,
    "one chunk is refused, filtered, cut off or answered with 1 MB for ever, or its calls always "
    "fail, even when it is the last or calls are made one by one",
    "its row is dropped and counted by reason, all others are right",
)
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_chunk_that_gets_no_answer_costs_its_own_row(
    documents: Path, tmp_path: Path, tally: Tally, name: str, concurrency: int
) -> None:
    reason, fault = UNUSABLE[name]

    def reply(body: dict[str, Any]) -> Answer:
        last = "Town39 " in body["messages"][0]["content"]
        return fault(body) if last and asks_for_answer(body) else good(body)

    for number in tally.tries(1):
        output = tmp_path / f"out{number}"
        with teacher_server(reply) as server:
            ask(documents, output, server.endpoint, teacher_concurrency=concurrency)
        assert len(rows(output)) == 39 and read(output / "report.json")["dropped"] == {reason: 1}


@pytest.mark.fault(
    KIND,
    "a connection is silent for a minute, --teacher-timeout 0.3",
    "asked again after 0.3 s, every row made",
)
def test_a_silent_connection_is_left_when_the_timeout_is_over(
    documents: Path, tmp_path: Path, tally: Tally
) -> None:
    for number in tally.tries(1):
        failed = Counter[str]()
        fault = sometimes(with_(stall=60), random.Random(number), failed, "no answer in time")
        output = tmp_path / f"out{number}"
        with teacher_server(fault) as server:
            started = time.monotonic()
            ledger = ask(documents, output, server.endpoint, teacher_timeout=0.3)
            assert time.monotonic() - started < 30
        assert len(rows(output)) == 40 and ledger["requests_failed"] == failed


@pytest.mark.fault(
    KIND, "every connection is silent", "stops, names --teacher-timeout and its value"
)
def test_an_endpoint_that_is_only_silent_is_left(documents: Path, tmp_path: Path) -> None:
    with (
        teacher_server(with_(stall=60)) as server,
        pytest.raises(TeacherError, match="no answer within --teacher-timeout 0.2 seconds"),
    ):
        ask(documents, tmp_path / "out", server.endpoint, teacher_timeout=0.2)
    assert len(server.seen) <= 20


@pytest.mark.fault(
    KIND,
    "the key or the model's name is wrong (401, 404, or 400 with model_not_found)",
    "stops after one call, names the model",
)
@pytest.mark.parametrize(("status", "code"), [(401, None), (404, None), (400, "model_not_found")])
def test_a_wrong_key_or_model_is_named(
    documents: Path, tmp_path: Path, status: int, code: str | None
) -> None:
    refuses = sends(status=status, code=code, text="no such model")
    with teacher_server(refuses) as server, pytest.raises(TeacherError) as error:
        ask(documents, tmp_path / "out", server.endpoint)
    assert f"--teacher-model teacher-7b: HTTP {status} (no such model)" in str(error.value)
    assert error.value.exit_code == 2 and "--teacher-model teacher-7b" in error.value.hint
    assert len(server.seen) == 1


@pytest.mark.fault(
    KIND,
    "a redirect to another host, of each kind",
    "not followed: nothing reaches that host; the error names it",
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_nothing_elsewhere(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with teacher_server() as other:
        target = other.endpoint.replace("127.0.0.1", "localhost") + "/chat/completions"
        redirect = sends(status=status, headers={"Location": target})
        with teacher_server(redirect) as server, pytest.raises(TeacherError) as error:
            ask(documents, tmp_path / "out", server.endpoint)
        assert server.authorized == ["Bearer sk-secret"]
        assert other.authorized == [] and other.seen == []
    assert f"HTTP {status} redirects to {target}" in str(error.value)


@pytest.mark.fault(
    KIND,
    "the clock jumps by up to ten years at every look, with Retry-After dates and a rate limit",
    "every row made; pauses are as long as asked",
)
def test_a_clock_that_jumps_disturbs_no_pause(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    rng = random.Random(0)
    true_time = time.time

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=rng.uniform(-3650, 3650))

    monkeypatch.setattr(time, "time", lambda: true_time() + rng.uniform(-3e8, 3e8))
    monkeypatch.setattr(chat_protocol, "datetime", Jumping)
    for number in tally.tries(1):
        request_times: list[float] = []

        def reply(body: dict[str, Any], request_times: list[float] = request_times) -> Answer:
            request_times.append(time.monotonic())
            if len(request_times) != 5:
                return good(body)
            now = datetime.now(UTC).replace(year=2001)  # the endpoint's clock is wrong as well
            dates = {"Date": now, "Retry-After": now + timedelta(seconds=2)}
            headers = {name: format_datetime(date, usegmt=True) for name, date in dates.items()}
            return Answer("slow down", status=429, headers=headers)

        output = tmp_path / f"out{number}"
        with teacher_server(reply) as server:
            ask(
                documents, output, server.endpoint,
                teacher_concurrency=1, teacher_requests_per_minute=1200,
            )  # fmt: skip
        assert len(rows(output)) == 40
        assert 1.9 < request_times[5] - request_times[4] < 10
        # 20 a second, and 20 at once; the leak goes on during the pause.
        assert 2 <= request_times[-1] - request_times[0] < 30


@pytest.fixture
def mixed(documents: Path) -> Iterator[tuple[Reply, Counter[str], dict[str, int]]]:
    """A fifth of the calls fail in any way; some chunks are refused or badly answered for good."""
    rng, lock, failed = random.Random(7), threading.Lock(), Counter[str]()
    passing = [both for name, both in PASSING.items() if name not in ("over 10 MB", "gzip bomb")]
    lost: dict[str, tuple[str, Reply]] = {
        "Town3 ": UNUSABLE["refusal"],
        "Town7 ": UNUSABLE["content_filter"],
        "Town11 ": UNUSABLE["cut off"],
        "Town15 ": UNUSABLE["1 MB"],
        "Town19 ": ("no answer marker", with_(text="I do not know.")),
        "Town23 ": ("quote not in the oracle", lambda body: Answer(
            "##begin_quote##Nobody knows that.##end_quote## so\n<ANSWER>: 1800"
        )),
    }  # fmt: skip

    def reply(body: dict[str, Any]) -> Answer:
        with lock:
            if rng.random() < SHARE:
                kind, fault = rng.choice(passing)
                failed[kind] += 1
                return fault(body)
        for name, (_, fault) in lost.items():
            if asks_for_answer(body) and chunk_of(body).startswith(name):
                return fault(body)
        return good(body)

    yield reply, failed, dict(Counter(reason for reason, _ in lost.values()))


@pytest.mark.fault(
    KIND,
    "all of it at once: a fifth of the calls fail in any way, six chunks get no usable answer; "
    "from the command line",
    "runs to its end; every row right, every kind counted exactly",
)
def test_all_faults_at_once(
    documents: Path, tmp_path: Path, mixed: tuple[Reply, Counter[str], dict[str, int]], tally: Tally
) -> None:
    reply, failed, dropped = mixed
    for number in tally.tries(1):
        failed.clear()
        output = tmp_path / f"out{number}"
        with teacher_server(reply) as server:
            done = subprocess.run(
                [
                    sys.executable, "-m", "pipelines", "generate", "--documents", str(documents),
                    "--output", str(output), "--max-chunks", "0", "--teacher", "openai",
                    "--teacher-endpoint", server.endpoint, "--teacher-model", "teacher",
                    "--teacher-concurrency", "16", "--oracle-probability", "1",
                ],
                capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(rows(output)) == 40 - sum(dropped.values())
        assert read(output / "report.json")["dropped"] == dropped
        ledger = read(output / "ledger.json")
        assert ledger["requests_failed"] == failed
        assert ledger["requests"] + sum(failed.values()) == len(server.seen)
        tally.note(f"{sum(failed.values())} of {len(server.seen)} calls failed")


@pytest.mark.fault(
    KIND,
    "an answer, or a question in JSON within JSON, holds half a character",
    "stored with ? in its place",
)
def test_half_a_character_is_stored(documents: Path, tmp_path: Path) -> None:
    def broken(body: dict[str, Any]) -> Answer:
        answer = good(body)
        answer.text = answer.text.replace("When", "\\ud83d When")
        answer.text = answer.text.replace(" so\n", " so \ud83d \ud83d\ude00\n")
        return answer

    with teacher_server(broken) as server:
        ask(documents, tmp_path / "out", server.endpoint)
    made = list(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
    assert len(made) == 36 and all(row.question.startswith("? When was") for row in made)
    assert all("so ? \U0001f600" in row.cot_answer for row in made)


@pytest.mark.fault(
    KIND,
    "an error's text moves the cursor and colours the terminal",
    "shown without control characters",
)
def test_an_error_cannot_write_to_the_terminal(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = sends(status=400, raw=b'{"error": {"message": "\\u001b[2J\\u001b[31mgone\\u0007"}}')
    with teacher_server(hostile) as server, pytest.raises(TeacherError) as error:
        ask(documents, tmp_path / "out", server.endpoint)
    printed = f"{error.value}{error.value.hint}{capsys.readouterr().err}"
    assert "[31mgone" in printed and "\x1b" not in printed and "\x07" not in printed


BAD_URLS: dict[str, str] = {
    "localhost:8000/v1": "begins neither",
    "http://": "names no host",
    "http://a..b/v1": "is no URL",
    "http://localhost:99999/v1": "is no URL",
    "http://[::1/v1": "is no URL",
    f"http://{'a' * 300}/v1": "is no URL",
    "http://localhost/v1?key=x": "must end before",
}


@pytest.mark.fault(KIND, "an endpoint's URL that is none", "refused before a call")
@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_refused_before_a_call(documents: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=f"--teacher-endpoint.*{BAD_URLS[url]}"):
        ask(documents, tmp_path / "out", url)


def all_but_small(fault: Reply) -> Reply:
    """Answers only what is not about a document."""
    return lambda body: fault(body) if "<DOCUMENT>" in str(body) else good(body)


@pytest.mark.fault(
    KIND,
    "every call about a document fails for ever, and small talk is answered",
    "stops after a few chunks",
)
@pytest.mark.parametrize("make", [lambda fault: fault, all_but_small])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("500", "HTTP 500"), ("429", "HTTP 429"), ("content empty", "empty answer"),
        ("a page", "unreadable|does not answer as"), ("reset at once", "connection failed|cannot"),
    ],
)  # fmt: skip
def test_an_endpoint_that_answers_nothing_is_left(
    documents: Path, tmp_path: Path, name: str, message: str, make: Callable[[Reply], Reply]
) -> None:
    with teacher_server(make(PASSING[name][1])) as server:
        with pytest.raises(TeacherError, match=message):
            ask(documents, tmp_path / "out", server.endpoint)
        assert len(server.seen) <= 80, "of 40 chunks"
    assert not (tmp_path / "out" / "train.jsonl").exists()
