"""A small server that speaks the OpenAI protocol over real HTTP, and fails on order."""

import json
import socket
import struct
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
    """What the server does with one request.

    Attributes:
        raw: a body that replaces the one made of the rest.
        message: fields that replace those of the completion's message.
        fields: fields that replace those of the completion.
        stall: seconds that the connection is silent before the answer.
        cut: bytes of the body after which the connection is reset.
    """

    text: str = ""
    finish: str = "stop"
    status: int = 200
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    message: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    stall: float = 0.0
    cut: int | None = None


Reply = Callable[[dict[str, Any]], Answer]


def chunk_of(body: dict[str, Any]) -> str:
    """The chunk that a request asks about."""
    return body["messages"][0]["content"].split("<DOCUMENT>\n")[1].split("\n</DOCUMENT>")[0]


def asks_for_answer(body: dict[str, Any]) -> bool:
    return "Answer this question" in body["messages"][0]["content"]


def good(body: dict[str, Any]) -> Answer:
    """A teacher that does all that it is told."""
    if "<DOCUMENT>" not in body["messages"][0]["content"]:
        return Answer("Yes.")
    chunk = chunk_of(body)
    if not asks_for_answer(body):
        question = f"When was {chunk.split()[0]} founded?"
        if "response_format" in body:
            return Answer(json.dumps({"questions": [question]}))
        return Answer(f"Here is a question:\n1. {question}")
    quote = chunk.split(". ")[0] + "."
    year = quote.split()[-1].rstrip(".")
    return Answer(f"##begin_quote##{quote}##end_quote## so\n<ANSWER>:\n**{year}**")


def reset(connection: socket.socket) -> None:
    """End a connection with RST, so that the other side reads an error."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()


def encoded(body: dict[str, Any], answer: Answer) -> bytes:
    """An answer's body as the protocol has it."""
    if answer.raw is not None:
        return answer.raw
    content: dict[str, Any] = {"error": {"message": answer.text, "code": answer.code}}
    if answer.status == 200:
        message = {"role": "assistant", "content": answer.text} | answer.message
        content = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": answer.finish, "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        } | answer.fields  # fmt: skip
    return json.dumps(content).encode()


class TeacherServer:
    """A server on loopback. `seen` holds the bodies of its requests, in their order; `paths` too.

    `authorized` holds the value of every Authorization header that came, whatever the method.
    """

    def __init__(self, reply: Reply, *, seconds: float = 0.0, port: int = 0) -> None:
        self.seen: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.authorized: list[str] = []
        self.most_at_once = self._at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:  # what a client makes of a redirected POST
                if self.path in ("/health", "/metrics"):  # of vLLM's server
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                outer.authorized += self.headers.get_all("Authorization") or []
                self.send_error(405)

            def do_POST(self) -> None:
                outer.authorized += self.headers.get_all("Authorization") or []
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append(body)
                    outer.paths.append(self.path)
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                time.sleep(seconds)
                answer = reply(body)
                with lock:
                    outer._at_once -= 1
                data = encoded(body, answer)
                time.sleep(answer.stall)
                try:
                    if "Date" in answer.headers:
                        self.send_response_only(answer.status)
                    else:
                        self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data if answer.cut is None else data[: answer.cut])
                    if answer.cut is not None:
                        reset(self.connection)
                        self.close_connection = True
                except OSError:  # the client was killed
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass

        self._http = Server(("127.0.0.1", port), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}/v1"

    def serve(self) -> None:
        self._http.serve_forever()

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

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
