"""The OpenAI-compatible teacher against a small server that speaks the protocol over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.core import breaker
from components.core.endpoint import read_key
from components.core.errors import ConfigError, TeacherError
from components.core.records import RaftRow, read_jsonl
from components.generate import generate
from components.generate.config import GenerateConfig
from tests.generate.teacher_server import (
    Answer,
    asks_for_answer,
    chunk_of,
    good,
    teacher_server,
)

WIDTH = 4


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.01)


def config(texts: Path, output: Path, endpoint: str, **settings: Any) -> GenerateConfig:
    return GenerateConfig(
        documents=str(texts),
        output=str(output),
        teacher="openai",
        teacher_endpoint=endpoint,
        teacher_model="teacher",
        **{"teacher_concurrency": WIDTH, **settings},
    )


def test_rows_from_an_endpoint(texts: Path, tmp_path: Path) -> None:
    with teacher_server() as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert report.rows == {"train": 9, "validation": 1} and not report.dropped
    made = list(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
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


def test_bad_replies_are_dropped_and_counted(texts: Path, tmp_path: Path) -> None:
    def mixed(body: dict[str, Any]) -> Answer:
        answer, chunk = good(body), chunk_of(body)
        if asks_for_answer(body):
            if "Towna" in chunk:
                answer.finish = "length"
            if "Townb" in chunk:
                answer.text = answer.text.replace("founded", "burned").replace("1801", "1901")
            if "Townc" in chunk:
                answer.text = "I do not know."
            if "Towne" in chunk:
                answer.finish = "content_filter"
            if "Townf" in chunk:
                answer = Answer("filtered", status=400, code="content_filter")
            if "Towng" in chunk:
                answer.text = answer.text.split("**")[0] + "When was Towng founded?"
        elif "Townd" in chunk:
            answer.text = "Sorry, I cannot help."
        return answer

    with teacher_server(mixed) as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert sum(report.rows.values()) == 3
    assert report.dropped == {
        "answer: refused by the content filter": 2,
        "answer: cut off, even with 2 times --teacher-max-tokens": 1,
        "quote not in the oracle": 1,
        "no answer marker": 1,
        "questions: none in the reply": 1,
        "answer is the question": 1,
    }


def test_a_reply_that_was_cut_off_is_asked_once_more_with_room(texts: Path, tmp_path: Path) -> None:
    def short_of_room(body: dict[str, Any]) -> Answer:
        answer = good(body)
        if body["max_tokens"] < 200:
            answer.finish, answer.text = "length", answer.text[:20]
        return answer

    with teacher_server(short_of_room) as server:
        report = generate.run(
            config(texts, tmp_path / "out", server.endpoint, teacher_max_tokens=100)
        )
    assert sum(report.rows.values()) == 10 and not report.dropped
    assert len(server.seen) == 40


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_costs_one_call(texts: Path, tmp_path: Path, status: int) -> None:
    with teacher_server(lambda _: Answer("bad key", status=status)) as server:
        with pytest.raises(TeacherError, match=f"HTTP {status}.*bad key"):
            generate.run(config(texts, tmp_path / "out", server.endpoint))
        assert len(server.seen) == 1
    assert not (tmp_path / "out" / "train.jsonl").exists()


@pytest.mark.parametrize("status", [400, 503])
@pytest.mark.parametrize("good_calls", [0, 25])
def test_an_endpoint_that_fails_for_good_is_left_after_a_few_calls(
    texts: Path, tmp_path: Path, status: int, good_calls: int
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
            generate.run(config(texts, tmp_path / "out", server.endpoint, teacher_concurrency=16))
        assert error.value.exit_code == 2
        # Those under way when it began to fail, those when four in a row had failed, the probes.
        assert len(server.seen) <= good_calls + 2 * 16 + 10
        # What was paid is there for the next run.
        calls = -(10**6)
        paid = len(server.seen)
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert sum(report.rows.values()) == 50
    assert len(server.seen) - paid >= 100 - good_calls
    if good_calls:
        assert len(server.seen) - paid <= 100 - good_calls + 16


def test_one_refused_chunk_is_left_out_and_nothing_else(texts: Path, tmp_path: Path) -> None:
    def picky(body: dict[str, Any]) -> Answer:
        if "Townh" in chunk_of(body):
            return Answer("this model's context is too short", status=400)
        return good(body)

    with teacher_server(picky) as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert sum(report.rows.values()) == 9 and report.dropped == {"questions: HTTP 400": 1}


def test_an_outage_is_waited_for(texts: Path, tmp_path: Path) -> None:
    calls = 0

    def flaky(body: dict[str, Any]) -> Answer:
        nonlocal calls
        calls += 1
        return Answer("busy", status=503) if 3 < calls < 10 else good(body)

    with teacher_server(flaky) as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert sum(report.rows.values()) == 10 and not report.dropped


def test_retry_after_is_respected(texts: Path, tmp_path: Path) -> None:
    import time

    times: list[float] = []

    def limited(body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        if len(times) == 3:
            return Answer("slow down", status=429, headers={"Retry-After": "1"})
        return good(body)

    with teacher_server(limited) as server:
        generate.run(config(texts, tmp_path / "out", server.endpoint, teacher_concurrency=1))
    assert times[3] - times[2] >= 0.95
    assert len(times) == 21


def test_an_endpoint_without_schemas_gives_the_same_rows(texts: Path, tmp_path: Path) -> None:
    def plain_only(body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return Answer("unknown field response_format", status=400)
        return good(body)

    def rows(name: str, server: Any) -> bytes:
        generate.run(config(texts, tmp_path / name, server.endpoint))
        return (tmp_path / name / "train.jsonl").read_bytes()

    with teacher_server(plain_only) as server:
        plain = rows("plain", server)
        refused = sum("response_format" in body for body in server.seen)
        assert 1 <= refused <= WIDTH and len(server.seen) == 20 + refused
    with teacher_server() as server:
        assert rows("structured", server) == plain


def test_results_come_in_order_while_later_calls_keep_starting(texts: Path, tmp_path: Path) -> None:
    """The first chunk takes as long as all others together: the window must not drain."""
    import time

    def slow_first(body: dict[str, Any]) -> Answer:
        time.sleep(0.8 if "Towna" in chunk_of(body) else 0.05)
        return good(body)

    with teacher_server(slow_first) as server:
        generate.run(config(texts, tmp_path / "out", server.endpoint, teacher_concurrency=2))
        others = [body for body in server.seen if "Towna" not in chunk_of(body)]
        # Towna's answer is asked for after its question's 0.8 s; by then the others are through.
        place = next(
            number
            for number, body in enumerate(server.seen)
            if asks_for_answer(body) and "Towna" in chunk_of(body)
        )
    assert place > 8 and len(others) == 18
    assert server.most_at_once == 2
    ids = [row.chunk_id for row in read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow)]
    assert ids == sorted(ids)


def test_requests_a_minute_are_limited(texts: Path, tmp_path: Path) -> None:
    import time

    with teacher_server() as server:
        started = time.monotonic()
        generate.run(
            config(texts, tmp_path / "out", server.endpoint, teacher_requests_per_minute=600)
        )
        seconds = time.monotonic() - started
    assert seconds >= 0.9, "20 requests at 10 a second, 10 of them at once"


def test_prompts_of_ones_own(texts: Path, tmp_path: Path) -> None:
    question, answer = tmp_path / "question.txt", tmp_path / "answer.txt"
    question.write_text("Be brief.\n<DOCUMENT>\n$chunk\n</DOCUMENT>\nAsk $count.", encoding="utf-8")
    answer.write_text(
        "Be brief.\n<DOCUMENT>\n${chunk}\n</DOCUMENT>\nAnswer this question: $question for $$1",
        encoding="utf-8",
    )
    own = {"question_prompt": str(question), "answer_prompt": str(answer)}
    with teacher_server() as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint, **own))
        assert sum(report.rows.values()) == 10
        prompts = [body["messages"][0]["content"] for body in server.seen]
    assert all(prompt.startswith("Be brief.\n<DOCUMENT>\nTown") for prompt in prompts)
    assert any(prompt.endswith("for $1") for prompt in prompts)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("about $chunk", r"lacks \$count"),
        ("$chunk $count $nonsense", r"does not know \$nonsense"),
        ("$chunk $count costs 5 $", "begins no placeholder"),
    ],
)
def test_a_bad_prompt_is_named(texts: Path, tmp_path: Path, text: str, complaint: str) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"--question-prompt .*prompt.txt: .*{complaint}"):
        generate.run(
            config(texts, tmp_path / "out", "http://127.0.0.1:9/v1", question_prompt=str(prompt))
        )


def test_an_endpoint_that_is_not_there(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="http://127.0.0.1:9/v1, .*: cannot be reached") as error:
        generate.run(config(texts, tmp_path / "out", "http://127.0.0.1:9/v1"))
    assert "curl http://127.0.0.1:9/v1/models" in error.value.hint


def test_endpoint_and_model_are_needed(texts: Path, tmp_path: Path) -> None:
    given = {"documents": str(texts), "output": str(tmp_path / "out"), "teacher": "openai"}
    for name in ("teacher_endpoint", "teacher_model"):
        other = {"teacher_endpoint": "http://t/v1", "teacher_model": "m"} | {name: ""}
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is missing"):
            GenerateConfig.parse(given | other)


def test_an_endpoint_without_a_scheme_is_named(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher-endpoint 'localhost:8000/v1': begins neither"):
        generate.run(config(texts, tmp_path / "out", "localhost:8000/v1"))


def test_half_a_character_in_a_reply_loses_nothing(texts: Path, tmp_path: Path) -> None:
    def broken(body: dict[str, Any]) -> Answer:
        answer = good(body)
        answer.text = answer.text.replace(" so\n", " so \ud83d \ud83d\ude00\n")
        return answer

    with teacher_server(broken) as server:
        report = generate.run(config(texts, tmp_path / "out", server.endpoint))
    assert sum(report.rows.values()) == 10
    row = next(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
    assert "so ? \U0001f600" in row.cot_answer


def test_a_page_instead_of_the_protocol(texts: Path, tmp_path: Path) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>not an API</html>")

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{http.server_port}"
        with pytest.raises(TeacherError, match="does not answer as an OpenAI-compatible endpoint"):
            generate.run(config(texts, tmp_path / "out", endpoint))
    finally:
        http.shutdown()
        http.server_close()


def test_a_key_is_never_shown(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")  # as mounted secrets often end
    with teacher_server() as server:
        generate.run(config(texts, tmp_path / "out", server.endpoint))
    for bad in ("sk-se\ncret", "sk-sécret"):
        monkeypatch.setenv("OPENAI_API_KEY", bad)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters") as error:
            generate.run(config(texts, tmp_path / "other", "http://127.0.0.1:9/v1"))
        assert "cret" not in f"{error.value}{error.value.hint}"


def test_a_key_may_be_a_mounted_file(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("sk-mounted\n", encoding="utf-8")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == "sk-mounted"
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY_FILE .*none: cannot be read"):
        read_key()
