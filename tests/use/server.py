"""A small OpenAI-compatible server that streams answers, and fails on order."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StreamingServer:
    """A running server.

    Attributes:
        url: of the API.
        answer: the pieces of text that a request is answered with; the last is why it ends.
        models: those that it lists.
        status: what completions are answered with instead (0 = none), with `message`.
        raw: a body instead of a stream.
        seen: the bodies of requests.
    """

    answer: Callable[[dict[str, Any]], list[str]] = lambda body: ["<ANSWER>: yes", "stop"]
    models: list[str] = field(default_factory=lambda: ["base", "raft"])
    status: int = 0
    message: str = "out of order"
    raw: bytes = b""
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        models = [{"id": name} for name in self.server.ours.models]
        self._send(200 if models else 404, json.dumps({"data": models}).encode())

    def do_POST(self) -> None:
        ours: StreamingServer = self.server.ours
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ours.seen.append(body)
        if ours.status:
            error = {"error": {"message": ours.message, "code": None}}
            return self._send(ours.status, json.dumps(error).encode())
        if ours.raw:
            return self._send(200, ours.raw)
        *pieces, reason = ours.answer(body)
        events: list[dict[str, Any]] = [{"delta": {"role": "assistant"}}]
        events += [{"delta": {"content": piece}} for piece in pieces]
        events += [{"delta": {}, "finish_reason": reason}]
        lines = [json.dumps({"choices": [event]}) for event in events]
        usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 1}})
        text = "".join(f"data: {line}\n\n" for line in (*lines, usage, "[DONE]"))
        return self._send(200, text.encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def streaming(**fields: Any) -> Iterator[StreamingServer]:
    """Run a server on loopback."""
    ours = StreamingServer(**fields)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.ours = ours  # type: ignore[attr-defined]
    ours.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield ours
    finally:
        server.shutdown()
        server.server_close()
