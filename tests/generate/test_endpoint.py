"""The OpenAI-compatible teacher against a small server that speaks the protocol over real HTTP."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from components.core.endpoint import read_key
from components.core.errors import ConfigError, TeacherError
from components.generate.config import GenerateConfig
from tests.generate.conftest import Ask
from tests.generate.teacher_server import (
    Answer,
    asks_for_answer,
    chunk_of,
    good,
    teacher_server,
)

WIDTH = 4


def test_rows_from_an_endpoint(ask: Ask, tmp_path: Path) -> None:
    with teacher_server() as server:
        report, made = ask(server, oracle_probability=1)
    assert report.rows == {"train": 9, "validation": 1} and not report.dropped
    assert all(row.question == f"When was {row.document_id[:-4]} founded?" for row in made)
    assert all(f"founded in {row.answer}." in row.oracle_context for row in made)
    assert all(row.cot_answer.endswith(f"\n<ANSWER>: {row.answer}") for row in made)
    assert len(server.seen) == 20, "two requests a row"
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text(encoding="utf-8"))
    assert (ledger["requests"], ledger["tokens_in"], ledger["tokens_out"]) == (20, 200, 100)
    assert ledger["cost"] == pytest.approx(20 * 0.0012)
    # Both prompts open alike, chunk included, so a prefix cache can serve the second.
    question, answer = (
        next(body for body in server.seen if asks_for_answer(body) is answering)
        for answering in (False, True)
    )
    shared = question["messages"][0]["content"].split("</DOCUMENT>")[0]
    same = [body for body in server.seen if body["messages"][0]["content"].startswith(shared)]
    assert len(same) == 2 and len(shared) > 60
    assert question["response_format"]["json_schema"]["strict"] is True
    assert "response_format" not in answer


def test_bad_replies_to_questions_are_dropped_and_counted(ask: Ask) -> None:
    """Those to answers are in faults/test_teacher.py."""

    def mixed(body: dict[str, Any]) -> Answer:
        if not asks_for_answer(body) and "Townd" in chunk_of(body):
            return Answer("Sorry, I cannot help.")
        if "Townh" in chunk_of(body):
            return Answer("this model's context is too short", status=400)
        return good(body)

    with teacher_server(mixed) as server:
        report, _ = ask(server)
    assert sum(report.rows.values()) == 8
    assert report.dropped == {"questions: none in the reply": 1, "questions: HTTP 400": 1}


def test_an_answer_that_was_cut_off_is_asked_once_more_with_room(ask: Ask) -> None:
    def short_of_room(body: dict[str, Any]) -> Answer:
        answer = good(body)
        if asks_for_answer(body) and body["max_tokens"] < 200:
            answer.finish, answer.text = "length", answer.text[:20]
        return answer

    with teacher_server(short_of_room) as server:
        report, _ = ask(server, teacher_max_tokens=100)
    assert sum(report.rows.values()) == 10 and not report.dropped
    assert len(server.seen) == 30


@pytest.mark.parametrize("status", [400, 503])
@pytest.mark.parametrize("good_calls", [0, 25])
def test_an_endpoint_that_fails_for_good_is_left_after_a_few_calls(
    ask: Ask, texts: Path, status: int, good_calls: int
) -> None:
    for number in range(40):
        (texts / f"more{number}.txt").write_text(f"More{number} was founded in {1900 + number}.")
    calls = 0
    lock = threading.Lock()

    def failing(body: dict[str, Any]) -> Answer:
        nonlocal calls
        with lock:
            calls += 1
            return good(body) if calls <= good_calls else Answer("no", status=status)

    with teacher_server(failing, seconds=0.02) as server:
        with pytest.raises(TeacherError, match=f"HTTP {status}") as error:
            ask(server, teacher_concurrency=16)
        assert error.value.exit_code == 2
        # Those under way when it began to fail, those when four in a row had failed, the probes.
        assert len(server.seen) <= good_calls + 2 * 16 + 10
        # What was paid is there for the next run.
        calls = -(10**6)
        paid = len(server.seen)
        report, _ = ask(server)
    assert sum(report.rows.values()) == 50
    assert len(server.seen) - paid >= 100 - good_calls
    if good_calls:
        assert len(server.seen) - paid <= 100 - good_calls + 16


def test_an_outage_is_waited_for(ask: Ask) -> None:
    calls = 0

    def flaky(body: dict[str, Any]) -> Answer:
        nonlocal calls
        calls += 1
        return Answer("busy", status=503) if 3 < calls < 10 else good(body)

    with teacher_server(flaky) as server:
        report, _ = ask(server)
    assert sum(report.rows.values()) == 10 and not report.dropped


def test_what_is_under_way_when_a_refusal_stops_the_run_is_not_paid_for_twice(ask: Ask) -> None:
    answered: list[str] = []
    has_credit = threading.Event()

    def short_of_credit(body: dict[str, Any]) -> Answer:
        if "Townd" in chunk_of(body) and not has_credit.is_set():
            return Answer("no credit", status=402)
        time.sleep(0.5)  # these are under way when the fourth is refused
        answered.append(json.dumps(body))
        return good(body)

    with teacher_server(short_of_credit) as server:
        with pytest.raises(TeacherError, match="402"):
            ask(server)
        before = len(answered)
        has_credit.set()
        report, _ = ask(server)
    assert before and sum(report.rows.values()) == 10
    assert len(answered) == len(set(answered)) == 20


def test_a_retry_keeps_to_the_limits_too(ask: Ask) -> None:
    times: list[float] = []

    def failing_once(body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return Answer("busy", status=503) if len(times) == 2 else good(body)

    with teacher_server(failing_once) as server:
        ask(server, teacher_concurrency=1, teacher_requests_per_minute=300)
    assert len(times) == 21 and times[2] - times[1] >= 0.15, "0.2 s apart, but for the network"


def test_a_teacher_that_thinks_too_long_is_asked_for_one_question(ask: Ask) -> None:
    def thinking(body: dict[str, Any]) -> Answer:
        if not asks_for_answer(body) and "response_format" in body:
            return Answer("<think>Let me see. What could", finish="length")
        return good(body)

    with teacher_server(thinking) as server:
        report, _ = ask(server)
    assert sum(report.rows.values()) == 10 and not report.dropped
    assert len(server.seen) == 30, "two requests for the question of each chunk, one for its answer"


def test_retry_after_is_respected(ask: Ask) -> None:
    times: list[float] = []

    def limited(body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        if len(times) == 3:
            return Answer("slow down", status=429, headers={"Retry-After": "1"})
        return good(body)

    with teacher_server(limited) as server:
        ask(server, teacher_concurrency=1)
    assert times[3] - times[2] >= 0.95
    assert len(times) == 21


def test_an_endpoint_without_schemas_gives_the_same_rows(ask: Ask, tmp_path: Path) -> None:
    def plain_only(body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return Answer("unknown field response_format", status=400)
        return good(body)

    with teacher_server(plain_only) as server:
        _, plain = ask(server, "plain")
        refused = sum("response_format" in body for body in server.seen)
        assert 1 <= refused <= WIDTH and len(server.seen) == 20 + refused
    with teacher_server() as server:
        assert ask(server, responses=str(tmp_path / "other"))[1] == plain


def test_results_come_in_order_while_later_calls_keep_starting(ask: Ask) -> None:
    """One chunk takes as long as all others together: the window must not drain."""

    def slow_once(body: dict[str, Any]) -> Answer:
        time.sleep(0.8 if "Townb" in chunk_of(body) else 0.05)
        return good(body)

    with teacher_server(slow_once) as server:
        _, rows = ask(server, teacher_concurrency=2)
        others = [body for body in server.seen if "Townb" not in chunk_of(body)]
        # Townb's answer is asked for after its question's 0.8 s; by then the others are through.
        place = next(
            number
            for number, body in enumerate(server.seen)
            if asks_for_answer(body) and "Townb" in chunk_of(body)
        )
    assert place > 8 and len(others) == 18
    assert server.most_at_once == 2
    ids = [row.chunk_id for row in rows if row.chunk_id != rows[-1].chunk_id]
    assert ids == sorted(ids)


def test_prompts_of_ones_own(ask: Ask, tmp_path: Path) -> None:
    question, answer = tmp_path / "question.txt", tmp_path / "answer.txt"
    question.write_text("Be brief.\n<DOCUMENT>\n$chunk\n</DOCUMENT>\nAsk $count.", encoding="utf-8")
    answer.write_text(
        "Be brief.\n<DOCUMENT>\n${chunk}\n</DOCUMENT>\nAnswer this question: $question for $$1",
        encoding="utf-8",
    )
    own = {"question_prompt": str(question), "answer_prompt": str(answer)}
    with teacher_server() as server:
        report, _ = ask(server, **own)
        assert sum(report.rows.values()) == 10
        prompts = [body["messages"][0]["content"] for body in server.seen]
    assert all(prompt.startswith("Be brief.\n<DOCUMENT>\nTown") for prompt in prompts)
    assert any(prompt.endswith("for $1") for prompt in prompts)


ENDPOINT, MODEL = {"teacher_endpoint": "http://t/v1"}, {"teacher_model": "m"}


@pytest.mark.parametrize(
    ("teacher", "settings", "problem"),
    [
        ("openai", MODEL, "--teacher-endpoint is missing"),
        ("openai", ENDPOINT, "--teacher-model is missing"),
        ("vllm", {}, "--teacher-model is missing: --teacher vllm needs it"),
        ("vllm", ENDPOINT | MODEL, "--teacher-endpoint: .* starts its own server"),
        ("extractive", ENDPOINT, "--teacher-endpoint: --teacher is extractive.*--teacher openai"),
        ("extractive", {"question_prompt": "p"}, "--question-prompt: --teacher is extractive"),
        ("openai", {"teacher_extra": '{"stream": true}'}, "--teacher-extra.*may not set stream"),
        ("openai", {"teacher_extra": '{"a"'}, "--teacher-extra.*not JSON"),
        ("openai", {"teacher_extra": "[1]"}, "--teacher-extra.*dictionary"),
    ],
)
def test_what_a_teacher_lacks_or_does_not_read_is_named(
    teacher: str, settings: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        GenerateConfig.parse({"documents": "d", "output": "o", "teacher": teacher, **settings})


def test_a_key_is_never_shown(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")  # as mounted secrets often end
    with teacher_server() as server:
        ask(server)
        for bad in ("sk-se\ncret", "sk-sécret"):
            monkeypatch.setenv("OPENAI_API_KEY", bad)
            with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters") as error:
                ask(server, "other")
            assert "cret" not in f"{error.value}{error.value.hint}"


def test_a_key_may_be_a_mounted_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("sk-mounted\n", encoding="utf-8")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == "sk-mounted"
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY_FILE .*none: cannot be read"):
        read_key()
