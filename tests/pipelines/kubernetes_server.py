"""A small Kubernetes API server that the real client talks to over HTTP.

What can be read is a folder of recorded answers, by path; a change to them makes another cluster.
Jobs can be created, followed and deleted: a play gives the pods and the Job's conditions, one frame
for each time that the pods are looked at. A dry run stores nothing; what it is asked to admit is
kept in `dry_runs`, and answered by a recorded refusal under `POST pods` or `POST pods train`.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

RECORDED = Path(__file__).parent / "recorded"
JOBS = re.compile(r"/apis/batch/v1/namespaces/([\w-]+)/jobs(?:/([\w-]+))?")
PODS = re.compile(r"/api/v1/namespaces/([\w-]+)/pods(?:/([\w-]+)/log)?")


def recorded(*names: str) -> dict[str, Any]:
    """Answers by path: those of the first recording, changed by the following ones."""
    answers: dict[str, Any] = {}
    for name in names:
        answers |= json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return answers


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    """A refusal in the API's form."""
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }  # fmt: skip


@dataclass
class Frame:
    """What a look at a Job shows."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    """Events about the Job and its pods: reason to message."""


def pod(phase: str, *, uid: str = "1", ended: tuple[int, str] | None = None) -> dict[str, Any]:
    """A stage's pod in one of its states, as the API shows it; exit code and reason if it ended."""
    state: dict[str, Any] = {"running": {"startedAt": "2026-01-02T03:04:05Z"}}
    if ended:
        state = {"terminated": {"exitCode": ended[0], "reason": ended[1]}}
    status = {"name": "train", "state": state, "image": "raft-train:0.1.0", "imageID": "",
              "ready": False, "restartCount": 0}  # fmt: skip
    return {
        "metadata": {
            "name": f"pod-{uid}",
            "uid": uid,
            "creationTimestamp": f"2026-01-02T03:04:0{uid}Z",
        },
        "spec": {"containers": [{"name": "train", "image": "raft-train:0.1.0"}]},
        "status": {"phase": phase, "containerStatuses": [] if phase == "Pending" else [status]},
    }


COMPLETE = [{"type": "Complete", "status": "True"}]


def failed(reason: str, message: str) -> list[dict[str, Any]]:
    return [{"type": "Failed", "status": "True", "reason": reason, "message": message}]


@dataclass
class KubernetesServer:
    """The cluster's memory; `url` is where it listens."""

    answers: dict[str, Any] = field(default_factory=dict)
    play: list[Frame] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Pod to the lines of its log."""
    cut_log_after: int = 0
    """The first stream of a log ends after that many lines."""
    broken: int = 0
    """That many looks at the pods get a 503 first."""
    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    dry_runs: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    selectors: list[str] = field(default_factory=list)
    frame: Frame = field(default_factory=Frame)
    log_opened: threading.Event = field(default_factory=threading.Event)
    endless_log: bool = False

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if (match := JOBS.fullmatch(path)) and method != "GET":
            return self._change_job(method, *match.groups(), body)
        if (match := JOBS.fullmatch(path)) and match[2] in self.jobs:
            return self.jobs[match[2]] | {"status": {"conditions": self.frame.conditions}}
        if PODS.fullmatch(path) and self.jobs and path not in self.answers:
            if self.broken:
                self.broken -= 1
                return status(503, "ServiceUnavailable", "etcd is electing a leader")
            if self.play:
                self.frame = self.play.pop(0)
            return {"kind": "PodList", "apiVersion": "v1", "items": self.frame.pods}
        if path in self.answers:
            answer: dict[str, Any] = self.answers[path]
            return answer
        if path.endswith("/events"):
            return {"kind": "EventList", "apiVersion": "v1", "items": list(self._events())}
        kind, _, name = path.rpartition("/")
        return status(404, "NotFound", f'{kind.rpartition("/")[2]} "{name}" not found')

    def _events(self) -> Iterator[dict[str, Any]]:
        """The warnings of the frame, and one about something else."""
        about = [
            (f"{name}-x1", *entry) for name in self.jobs for entry in self.frame.warnings.items()
        ]
        for name, reason, message in [("other", "BackOff", "crashes"), *about]:
            yield {"metadata": {"name": "e"}, "involvedObject": {"name": name},
                   "type": "Warning", "reason": reason, "message": message}  # fmt: skip

    def dry_run(self, path: str, query: dict[str, list[str]], body: bytes) -> dict[str, Any]:
        """Admit an object or refuse it, and store nothing."""
        assert query == {"dryRun": ["All"], "fieldValidation": ["Strict"]}
        entry: dict[str, Any] = json.loads(body)
        self.dry_runs.append(entry)
        stage = entry["metadata"]["labels"]["app.kubernetes.io/component"]
        kind = path.rpartition("/")[2]
        for key in (f"POST {kind} {stage}", f"POST {kind}"):
            if key in self.answers:
                refusal: dict[str, Any] = self.answers[key]
                return refusal
        return entry

    def _change_job(
        self, method: str, namespace: str, name: str | None, body: bytes
    ) -> dict[str, Any]:
        refusal = self.answers.get(f"{method} jobs")
        if refusal:
            assert isinstance(refusal, dict)
            return refusal
        if method == "DELETE" and name is not None:
            if name not in self.jobs:
                return status(404, "NotFound", f'jobs.batch "{name}" not found')
            self.deleted.append(name)
            del self.jobs[name]
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 200}
        job: dict[str, Any] = json.loads(body)
        assert job["kind"] == "Job"
        assert job["metadata"]["namespace"] == namespace
        assert all(isinstance(text, str) for text in _container(job)["args"])
        self.jobs[job["metadata"]["name"]] = job
        self.created.append(json.loads(body))
        return _with_defaults(job)


def _with_defaults(job: dict[str, Any]) -> dict[str, Any]:
    """A Job with what the API server fills in, and the client wants to see."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        for condition in rule.get("onPodConditions", []):
            condition.setdefault("status", "True")
    return job


def _container(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _selected(answer: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
    """The nodes of a list that have the labels of a query."""
    if answer.get("kind") != "NodeList" or not query.get("labelSelector"):
        return answer
    wanted = dict(pair.split("=") for pair in query["labelSelector"][0].split(","))
    nodes = [n for n in answer["items"] if wanted.items() <= n["metadata"]["labels"].items()]
    return answer | {"items": nodes}


class Handler(BaseHTTPRequestHandler):
    """Routes of the API; `server.cluster` is the `KubernetesServer`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        cluster: KubernetesServer = self.server.cluster  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = parse_qs(parts.query)
        dry = "dry run of " if "dryRun" in query else ""
        cluster.requests.append(f"{dry}{self.command} {parts.path}")
        cluster.selectors += query.get("labelSelector", [])
        log = PODS.fullmatch(parts.path)
        if log and log[2] and parts.path not in cluster.answers:
            self._stream(cluster, log[2], query)
            return
        if dry:
            answer = cluster.dry_run(parts.path, query, body)
        else:
            answer = _selected(cluster.answer(self.command, parts.path, body), query)
        text = json.dumps(answer).encode()
        self.send_response(answer["code"] if answer.get("kind") == "Status" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 (the base class names them)

    def _stream(self, cluster: KubernetesServer, name: str, query: dict[str, list[str]]) -> None:
        lines = cluster.logs.get(name, [])
        if cluster.cut_log_after:
            lines, cluster.cut_log_after = lines[: cluster.cut_log_after], 0
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        assert query.get("follow") == ["True"] or "tailLines" in query
        text = "".join(f"{line}\n" for line in lines).encode()
        for start in range(0, len(text), 23):  # a line may come in pieces
            piece = text[start : start + 23]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()
        cluster.log_opened.set()
        while cluster.endless_log:
            threading.Event().wait(0.05)
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(cluster: KubernetesServer) -> Iterator[KubernetesServer]:
    """Let a `KubernetesServer` listen on a free port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.cluster = cluster  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cluster
    finally:
        cluster.endless_log = False
        server.shutdown()
        server.server_close()


def kubeconfig(url: str, path: Path, context: str = "test", token: str = "kube-t0ken") -> Path:
    """Write a kubeconfig that leads to a server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": context, "context": {"cluster": "c", "user": "u"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path
