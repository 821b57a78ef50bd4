"""The API under /apis/v2beta1, over HTTP, as the real `kfp.Client` asks for it."""

import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.pipelines.kubeflow.driver import Backend
from tests.pipelines.kubeflow.executors import Executor
from tests.pipelines.kubeflow.run import Run
from tests.pipelines.kubeflow.specification import Refused, check_parameters, check_pipeline

API = "/apis/v2beta1"
VERSION = re.compile(r"/pipelines/[^/]+/versions/([^/]+)")
RUN = re.compile(r"/runs/([^:/]+)(?::(terminate|retry))?")


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class KfpServer:
    """The server's memory and its behaviour; `url` is where it listens."""

    backend: Backend = field(default_factory=Backend)
    executors: Mapping[str, Executor] = field(default_factory=dict)
    """What the steps of a run do, by task; see executors.py."""
    driver_faults: dict[str, int] = field(default_factory=dict)
    """How many times the driver of a task fails."""
    kind: str = "2"
    """"2"; "1" for a server of Kubeflow Pipelines 1; "login" for a page before the server."""
    token: str = ""
    """The bearer token that every request needs."""
    broken: int = 0
    """That many looks at a run get a 503 first."""
    url: str = ""
    experiments: list[dict[str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    requests: list[str] = field(default_factory=list)

    def create_experiment(self, body: dict[str, Any]) -> dict[str, Any]:
        entry = {**body, "experiment_id": str(uuid.uuid4()), "created_at": now()}
        self.experiments.append(entry)
        return entry

    def upload(self, query: dict[str, list[str]], file: bytes) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(file))
        self.check(documents)
        name = query.get("name", [documents[0]["pipelineInfo"]["name"]])[0]
        if any(entry["display_name"] == name for entry in self.pipelines):
            raise Refused(f"the pipeline name {name} already exists")
        entry = {"pipeline_id": str(uuid.uuid4()), "display_name": name, "created_at": now()}
        self.pipelines.append(entry)
        self._add_version(entry["pipeline_id"], name, documents)
        return entry

    def upload_version(self, query: dict[str, list[str]], file: bytes) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(file))
        self.check(documents)
        return self._add_version(query["pipelineid"][0], query["name"][0], documents)

    def _add_version(
        self, pipeline_id: str, name: str, documents: list[dict[str, Any]]
    ) -> dict[str, Any]:
        specification, *platforms = documents
        entry = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "display_name": name,
            "created_at": now(),
            "pipeline_spec": (
                {"pipeline_spec": specification, "platform_spec": platforms[0]}
                if platforms
                else specification
            ),
        }
        self.versions.append(entry)
        return entry

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("experiment_id") not in [entry["experiment_id"] for entry in self.experiments]:
            raise Refused(f"experiment {body.get('experiment_id')!r} not found")
        specification = body.get("pipeline_spec")
        if specification is None:
            wanted = body["pipeline_version_reference"]["pipeline_version_id"]
            (version,) = [v for v in self.versions if v["pipeline_version_id"] == wanted]
            specification = version["pipeline_spec"]
        documents = (
            [specification["pipeline_spec"], specification["platform_spec"]]
            if "pipeline_spec" in specification
            else [specification]
        )
        self.check(documents)
        check_parameters(documents[0], body.get("runtime_config", {}).get("parameters", {}))
        request = {**body, "created_at": now()}
        run = Run(request, documents, self.backend, self.executors, self.driver_faults)
        self.runs[run.id] = run
        return run.view()

    def check(self, documents: list[dict[str, Any]]) -> None:
        check_pipeline(documents)

    def look_at(self, run: Run) -> dict[str, Any]:
        run.advance()
        return run.view()


class Handler(BaseHTTPRequestHandler):
    """Routes of the API; `server.kfp` is the `KfpServer`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        kfp: KfpServer = self.server.kfp  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kfp.requests.append(f"{method} {self.path}")
        if kfp.kind == "login":
            return self._answer(200, b"<html>Log in to your account</html>", "text/html")
        if kfp.token and self.headers.get("Authorization") != f"Bearer {kfp.token}":
            return self._json(401, {"error": "unauthenticated", "code": 16})
        if kfp.kind == "1":
            if parts.path == "/apis/v1beta1/healthz":
                return self._json(200, {"commit_sha": "abc", "tag_name": "1.8.22"})
            return self._answer(404, b"404 page not found\n", "text/plain")
        try:
            with kfp.lock:
                answer = self._route(kfp, method, parts.path, parse_qs(parts.query), body)
        except Refused as refusal:
            return self._json(400, {"error": str(refusal), "message": str(refusal), "code": 3})
        if answer is None:
            return self._json(404, {"message": f"{parts.path} not found", "code": 5})
        if answer == "broken":
            return self._answer(503, b"upstream connect error", "text/plain")
        return self._json(200, answer)

    def _route(
        self, kfp: KfpServer, method: str, path: str, query: dict[str, list[str]], body: bytes
    ) -> Any:
        path = path.removeprefix(API)
        named = RUN.fullmatch(path)
        run = kfp.runs.get(named[1]) if named else None
        match (method, path):
            case ("GET", "/healthz"):
                return {"multi_user": False}
            case ("GET", "/experiments"):
                return {"experiments": _filtered(kfp.experiments, query)}
            case ("POST", "/experiments"):
                return kfp.create_experiment(json.loads(body))
            case ("GET", "/pipelines"):
                return {"pipelines": _filtered(kfp.pipelines, query)}
            case ("POST", "/pipelines/upload"):
                return kfp.upload(query, self._file(body))
            case ("POST", "/pipelines/upload_version"):
                return kfp.upload_version(query, self._file(body))
            case ("GET", _) if version := VERSION.fullmatch(path):
                (found,) = [v for v in kfp.versions if v["pipeline_version_id"] == version[1]]
                return found
            case ("GET", "/runs"):
                return {"runs": [run.view() for run in kfp.runs.values()]}
            case ("POST", "/runs"):
                return kfp.create_run(json.loads(body))
            case ("POST", _) if run is not None and named and named[2]:
                getattr(run, named[2])()
                return {}
            case ("GET", _) if run is not None:
                if kfp.broken:
                    kfp.broken -= 1
                    return "broken"
                return kfp.look_at(run)
        return None

    def _file(self, body: bytes) -> bytes:
        """The one file of a multipart form."""
        header = Message()
        header["Content-Type"] = self.headers["Content-Type"]
        boundary = str(header.get_param("boundary")).encode()
        part = body.split(b"--" + boundary)[1]
        return part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Set-Cookie", "session=secret-cookie")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _filtered(entries: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    for predicate in json.loads(query.get("filter", ["{}"])[0]).get("predicates", []):
        key, value = predicate["key"], predicate["stringValue"]
        entries = [entry for entry in entries if entry.get(key) == value]
    return entries


@contextmanager
def serving(kfp: KfpServer) -> Iterator[KfpServer]:
    """Let a `KfpServer` listen on a free port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.kfp = kfp  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    kfp.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
