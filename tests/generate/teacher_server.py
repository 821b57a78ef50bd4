"""A small server that speaks the OpenAI protocol over real HTTP, and fails on order."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server does with one request."""

    text: str = ""
    finish: str = "stop"
    status: int = 200
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


Reply = Callable[[dict[str, Any]], Answer]


def chunk_of(body: dict[str, Any]) -> str:
    """The chunk that a request asks about."""
    return body["messages"][0]["content"].split("<DOCUMENT>\n")[1].split("\n</DOCUMENT>")[0]


def asks_for_answer(body: dict[str, Any]) -> bool:
    return "Answer this question" in body["messages"][0]["content"]


def good(body: dict[str, Any]) -> Answer:
    """A teacher that does all that it is told."""
    chunk = chunk_of(body)
    if not asks_for_answer(body):
        question = f"When was {chunk.split()[0]} founded?"
        if "response_format" in body:
            return Answer(json.dumps({"questions": [question]}))
        return Answer(f"Here is a question:\n1. {question}")
    quote = chunk.split(". ")[0] + "."
    year = quote.split()[-1].rstrip(".")
    return Answer(f"##begin_quote##{quote}##end_quote## so\n<ANSWER>:\n**{year}**")


class TeacherServer:
    """A server on loopback. `seen` holds the bodies of its requests, in their order."""

    def __init__(self, reply: Reply, *, seconds: float = 0.0) -> None:
        self.seen: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append(body)
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                time.sleep(seconds)
                answer = reply(body)
                with lock:
                    outer._at_once -= 1
                content: dict[str, Any] = {"error": {"message": answer.text, "code": answer.code}}
                if answer.status == 200:
                    content = {
                        "id": "x", "object": "chat.completion", "created": 0,
                        "model": body["model"],
                        "choices": [{"index": 0, "finish_reason": answer.finish,
                                     "message": {"role": "assistant", "content": answer.text}}],
                        "usage": {"prompt_tokens": 10, "completion_tokens": 5,
                                  "total_tokens": 15},
                    }  # fmt: skip
                data = json.dumps(content).encode()
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client was killed
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass

        self._http = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}/v1"

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def teacher_server(reply: Reply = good, *, seconds: float = 0.0) -> Iterator[TeacherServer]:
    """Run a server for the length of a block."""
    server = TeacherServer(reply, seconds=seconds)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    """Serve `good` from a process of its own until standard input ends: SECONDS."""
    with teacher_server(seconds=float(sys.argv[1])) as server:
        print(server.endpoint, flush=True)
        sys.stdin.read()
        print(len(server.seen), server.most_at_once, flush=True)


if __name__ == "__main__":
    main()
