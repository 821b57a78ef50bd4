"""The OpenAI-compatible teacher against a small server that speaks the protocol over real HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError, TeacherError
from components.generate import generate
from components.generate.config import GenerateConfig
from components.records import RaftRow, read_jsonl

Reply = Callable[[str], tuple[int, str, str]]
"""Prompt to HTTP status, text and finish reason."""


def good(prompt: str) -> tuple[int, str, str]:
    chunk = prompt.split("<DOCUMENT>\n")[1].split("\n</DOCUMENT>", maxsplit=1)[0]
    if "Answer this question" not in prompt:
        return 200, f"Here is a question:\n1. When was {chunk.split()[0]} founded?", "stop"
    quote = chunk.split(". ")[0] + "."
    year = quote.split()[-1].rstrip(".")
    return 200, f"##begin_quote##{quote}##end_quote## so\n<ANSWER>:\n**{year}**", "stop"


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback; yields its base URL and the requests it has seen."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            status, text, finish = reply(body["messages"][0]["content"])
            content: dict[str, Any] = {"error": {"message": text}}
            if status == 200:
                content = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": finish,
                                 "message": {"role": "assistant", "content": text}}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }  # fmt: skip
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", seen
    finally:
        http.shutdown()
        http.server_close()


def config(texts: Path, output: Path, endpoint: str) -> GenerateConfig:
    return GenerateConfig(
        documents=str(texts),
        output=str(output),
        teacher="openai",
        teacher_endpoint=endpoint,
        teacher_model="teacher",
        teacher_concurrency=4,
    )


def test_rows_from_an_endpoint(texts: Path, tmp_path: Path) -> None:
    with server(good) as (endpoint, seen):
        report = generate.run(config(texts, tmp_path / "out", endpoint))
    assert report.rows == {"train": 9, "validation": 1} and not report.dropped
    made = list(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
    assert all(row.question == f"When was {row.document_id[:-4]} founded?" for row in made)
    assert all(f"founded in {row.answer}." in row.oracle_context for row in made)
    assert len(seen) == 20, "two requests a row"
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text(encoding="utf-8"))
    assert (ledger["requests"], ledger["tokens_in"], ledger["tokens_out"]) == (20, 200, 100)
    assert ledger["cost"] == pytest.approx(20 * 0.0012)
    # Both prompts open alike, chunk included, so a prefix cache can serve the second.
    question, answer = (body["messages"][0]["content"] for body in seen[:2])
    shared = question.split("</DOCUMENT>")[0]
    assert answer.startswith(shared) and len(shared) > 60


def test_bad_replies_are_dropped_and_counted(texts: Path, tmp_path: Path) -> None:
    def mixed(prompt: str) -> tuple[int, str, str]:
        status, text, finish = good(prompt)
        if "Answer this question" in prompt:
            if "Towna" in prompt:
                return status, text, "length"
            if "Townb" in prompt:
                return status, text.replace("founded", "burned"), finish
            if "Townc" in prompt:
                return status, "I do not know.", finish
        elif "Townd" in prompt:
            return status, "Sorry, I cannot help.", finish
        return status, text, finish

    with server(mixed) as (endpoint, _):
        report = generate.run(config(texts, tmp_path / "out", endpoint))
    assert sum(report.rows.values()) == 6
    assert report.dropped == {
        "answer cut off at --teacher-max-tokens": 1,
        "quote not in the oracle": 1,
        "no quote": 1,
        "no question in the reply": 1,
    }


def test_a_wrong_key_costs_one_call(texts: Path, tmp_path: Path) -> None:
    with server(lambda _: (401, "bad key", "")) as (endpoint, seen):
        with pytest.raises(TeacherError, match="HTTP 401.*bad key"):
            generate.run(config(texts, tmp_path / "out", endpoint))
        assert len(seen) == 1
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_an_endpoint_that_is_not_there(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="http://127.0.0.1:9/v1: cannot be reached") as error:
        generate.run(config(texts, tmp_path / "out", "http://127.0.0.1:9/v1"))
    assert "curl http://127.0.0.1:9/v1/models" in error.value.hint


def test_endpoint_and_model_are_needed(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher-endpoint is missing"):
        generate.run(config(texts, tmp_path / "out", ""))


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
    with server(good) as (endpoint, _):
        generate.run(config(texts, tmp_path / "out", endpoint))
    for bad in ("sk-se\ncret", "sk-sécret"):
        monkeypatch.setenv("OPENAI_API_KEY", bad)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters") as error:
            generate.run(config(texts, tmp_path / "out", "http://127.0.0.1:9/v1"))
        assert "cret" not in f"{error.value}{error.value.hint}"
