"""A model hub for the real client: one model, in the form of the hub's API, from a folder.

Beside the folder's files it lists what transformers does not load, and answers for none of it.
"""

import base64
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOT_LOADED = ("pytorch_model.bin", "consolidated.safetensors", "original/params.json")


@dataclass
class Hub:
    """A running hub.

    Attributes:
        url: for HF_ENDPOINT.
        folder: the files of the model.
        requests: method and path of each, in order.
        downloads: the names of files, one entry for every download.
        status: what every request is answered with instead (0 = none).
        token: what is asked for ("" = nothing).
        pushed: the files of commits, by repository and path.
    """

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    status: int = 0
    token: str = ""
    pushed: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def answer(self, path: str) -> object:
        """What the hub says about its model; None of anything else."""
        names = [*sorted(file.name for file in self.folder.iterdir()), *NOT_LOADED]
        if path.startswith(f"/api/models/{MODEL}/revision/"):
            return {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if path == f"/api/models/{MODEL}/tree/{COMMIT}":
            return [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        allowed = not self.hub.token or self.headers.get("Authorization") == (
            f"Bearer {self.hub.token}"
        )
        file = self.hub.folder / path.rpartition("/")[2]
        answer = self.hub.answer(path)
        if self.hub.status or not allowed:
            self._send(self.hub.status or 401, b"")
        elif answer is not None:
            self._send(200, json.dumps(answer).encode())
        elif path.startswith(f"/{MODEL}/resolve/") and file.is_file():
            content = file.read_bytes()
            if self.command == "GET":
                self.hub.downloads.append(file.name)
            self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self._send(404, b"")

    def do_POST(self) -> None:
        """Make a repository, say that its files are no large ones, and take a commit."""
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status or self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(self.hub.status or 401, b"")
        name = path.removeprefix("/api/models/").rsplit("/", 2)[0]
        answer: object = {"errors": [], "warnings": []}  # of the card's header
        if path == "/api/repos/create":
            made = json.loads(content)
            self.hub.pushed.setdefault(f"{made['organization']}/{made['name']}", {})
            assert made["visibility"] == "private"
            answer = {"url": f"{self.hub.url}/{made['organization']}/{made['name']}"}
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            fields = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **fields} for file in files]}
        elif "/commit/" in path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    value = base64.b64decode(line["value"]["content"])
                    self.hub.pushed[name][line["value"]["path"]] = value
            answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        return self._send(200, json.dumps(answer).encode())

    do_HEAD = do_GET  # noqa: N815 (the base class names it)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """Run a hub that has one model, on loopback."""
    running = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": running})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
