"""A small Kubeflow Pipelines server that the real `kfp.Client` talks to over HTTP.

It takes pipelines and runs under /apis/v2beta1, refuses a YAML that the backend refuses (unknown
fields, names, cycles, missing inputs, parameter types, placeholders), and plays a run's states: one
step of the play for each time that the run is looked at, so that no test waits. `execute` replaces
the play by a callable that runs in a thread of its own, to run the containers for real.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from graphlib import CycleError, TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
OF_KFP = re.compile(r"pipelinechannel--.*|(memory|cpu)_(limit|request)|accelerator_(count|type)")
PLACEHOLDER = re.compile(r"\{\{\$\.(inputs|outputs)\.(parameters|artifacts)\['([^']+)'\]")
PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


class Refused(ValueError):
    """The backend would answer 400."""


# ---- what the backend checks -------------------------------------------------------------------


def check_pipeline(documents: list[dict[str, Any]]) -> None:
    """Refuse a compiled pipeline (specification, then platforms) that the backend refuses."""
    specification, *platforms = documents
    try:
        json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise Refused(f"invalid v2 pipeline spec: {error}") from None
    if not NAME.fullmatch(specification["pipelineInfo"]["name"]):
        raise Refused(f"invalid pipeline name {specification['pipelineInfo']['name']!r}")
    executors = specification["deploymentSpec"]["executors"]
    for platform in platforms:
        for settings in platform["platforms"].values():
            for label in settings.get("deploymentSpec", {}).get("executors", {}):
                if label not in executors:
                    raise Refused(f"platform settings for unknown executor {label!r}")
    for name, component in specification["components"].items():
        if "dag" in component:
            _check_dag(specification, name, component)
        elif component.get("executorLabel") not in executors:
            raise Refused(f"component {name!r} has no executor")
        else:
            _check_executor(name, component, executors[component["executorLabel"]])
    _check_dag(specification, "root", specification["root"])


def _names(component: dict[str, Any], side: str, kind: str) -> dict[str, Any]:
    names: dict[str, Any] = component.get(f"{side}Definitions", {}).get(kind, {})
    return names


def _check_executor(name: str, component: dict[str, Any], executor: dict[str, Any]) -> None:
    if "container" not in executor:
        return  # an importer
    container = executor["container"]
    if not container.get("image") or not container.get("command"):
        raise Refused(f"component {name!r} has no image or no command")
    for text in [*container["command"], *container.get("args", [])]:
        for side, kind, key in PLACEHOLDER.findall(str(text)):
            if key not in _names(component, side[:-1], kind):
                raise Refused(f"component {name!r}: placeholder of unknown {side} {key!r}")


def _check_dag(specification: dict[str, Any], name: str, parent: dict[str, Any]) -> None:
    tasks = parent["dag"]["tasks"]
    order: dict[str, set[str]] = {}
    for key, task in tasks.items():
        if task["componentRef"]["name"] not in specification["components"]:
            raise Refused(f"task {key!r} refers to unknown component")
    for key, task in tasks.items():
        if not NAME.fullmatch(key):
            raise Refused(f"invalid task name {key!r}")
        component = specification["components"][task["componentRef"]["name"]]
        producers = set(task.get("dependentTasks", []))
        inputs: dict[str, set[str]] = {}
        for kind in ("parameters", "artifacts"):
            sources = task.get("inputs", {}).get(kind, {})
            inputs[kind] = set(sources)
            for entry, source in sources.items():
                # Conditions, and resources that are parameters, add inputs of kfp's own.
                declared = _names(component, "input", kind).get(entry)
                if declared is None and not OF_KFP.fullmatch(entry):
                    raise Refused(f"task {key!r} passes undeclared input {entry!r}")
                producers |= _check_source(specification, parent, tasks, key, source, declared)
        for iterator in ("parameterIterator", "artifactIterator"):
            if iterator in task:
                inputs["parameters"].add(task[iterator]["itemInput"])
                inputs["artifacts"].add(task[iterator]["itemInput"])
        for kind, passed in inputs.items():
            for entry, declared in _names(component, "input", kind).items():
                if entry not in passed and not declared.get("isOptional"):
                    raise Refused(f"task {key!r} lacks required input {entry!r}")
        order[key] = producers
    for key, producers in order.items():
        if unknown := producers - tasks.keys():
            raise Refused(f"task {key!r} depends on unknown {sorted(unknown)}")
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        raise Refused(f"{name}: cycle of tasks {error.args[1]}") from None


def _check_source(
    specification: dict[str, Any],
    parent: dict[str, Any],
    tasks: dict[str, Any],
    task: str,
    source: dict[str, Any],
    declared: dict[str, Any] | None,
) -> set[str]:
    """The tasks that an input comes from; refuses one that is not there or of another type."""
    for kind, word in (("Parameter", "parameters"), ("Artifact", "artifacts")):
        if f"componentInput{kind}" in source:
            entry = source[f"componentInput{kind}"]
            definition = _names(parent, "input", word).get(entry)
            if definition is None:
                raise Refused(f"task {task!r}: unknown pipeline input {entry!r}")
            wanted = (declared or {}).get("parameterType")
            if (
                wanted
                and definition["parameterType"] != wanted
                and "parameterExpressionSelector" not in source
            ):
                raise Refused(
                    f"task {task!r}: {entry!r} is {definition['parameterType']}, not {wanted}"
                )
        output = source.get(f"taskOutput{kind}")
        if output:
            producer = tasks.get(output["producerTask"])
            if producer is None:
                raise Refused(f"task {task!r}: unknown producer {output['producerTask']!r}")
            component = specification["components"][producer["componentRef"]["name"]]
            key = output[f"output{kind}Key"]
            if key not in _names(component, "output", word):
                raise Refused(f"task {task!r}: {output['producerTask']!r} has no output {key!r}")
            return {output["producerTask"]}
    if "taskFinalStatus" in source:
        return {source["taskFinalStatus"]["producerTask"]}
    return set()


def check_parameters(specification: dict[str, Any], values: dict[str, Any]) -> None:
    """Refuse runtime parameters that are unknown, missing or of another type."""
    declared = _names(specification["root"], "input", "parameters")
    for name, value in values.items():
        if name not in declared:
            raise Refused(f"parameter {name} is not defined in the pipeline")
        kind = declared[name]["parameterType"]
        is_type = isinstance(value, PYTHON_TYPES[kind])
        if not is_type or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise Refused(f"input parameter {name} requires type {kind}, got {value!r}")
        if kind == "NUMBER_INTEGER" and float(value) != int(value):
            raise Refused(f"input parameter {name} requires an integer, got {value!r}")
    for name, definition in declared.items():
        if name not in values and not definition.get("isOptional"):
            raise Refused(f"parameter {name} is required")


# ---- runs --------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Run:
    """One run: what it was asked to do, and how far it is."""

    id: str
    request: dict[str, Any]
    documents: list[dict[str, Any]]
    """The pipeline's specification, then its platforms."""
    state: str = "PENDING"
    error: str = ""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    play: Iterator[None] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        values: dict[str, Any] = self.request.get("runtime_config", {}).get("parameters", {})
        return values

    @property
    def order(self) -> list[str]:
        """Tasks that run something, each after those that it needs; a loop's are there once."""
        return list(self._order(self.documents[0]["root"]))

    def _order(self, parent: dict[str, Any]) -> Iterator[str]:
        tasks = parent["dag"]["tasks"]
        needs = {name: task.get("dependentTasks", []) for name, task in tasks.items()}
        for name in TopologicalSorter(needs).static_order():
            component = self.documents[0]["components"][tasks[name]["componentRef"]["name"]]
            if "dag" in component:
                yield from self._order(component)
            else:
                yield name

    def set(self, task: str, state: str, error: str = "") -> None:
        """Give a task a state, as the workflow controller reports it."""
        entry = self.tasks.setdefault(
            task,
            {"task_id": f"{self.id}-{task}", "display_name": task, "run_id": self.id,
             "create_time": _now(), "start_time": _now(), "end_time": "1970-01-01T00:00:00Z"},
        )  # fmt: skip
        entry["state"] = state
        if error:
            entry["error"] = {"code": 13, "message": error}
        if state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"):
            entry["end_time"] = _now()

    def finish(self, state: str, error: str = "") -> None:
        """End the run."""
        self.set("root", state)
        self.state, self.error = state, error

    def view(self) -> dict[str, Any]:
        """The run as the API shows it."""
        return {
            **self.request,
            "run_id": self.id,
            "state": self.state,
            "run_details": {"task_details": list(self.tasks.values())},
            **({"error": {"code": 13, "message": self.error}} if self.error else {}),
        }


Play = Callable[[Run], Iterator[None]]


def succeed(run: Run) -> Iterator[None]:
    """Every step runs, then succeeds."""
    run.state = "RUNNING"
    run.set("root-driver", "SUCCEEDED")
    run.set("root", "RUNNING")
    for task in run.order:
        run.set(f"{task}-driver", "SUCCEEDED")
        run.set(task, "RUNNING")
        yield
        run.set(task, "SUCCEEDED")
        yield
    run.finish("SUCCEEDED")


def fail(step: str, message: str, *, task: str = "") -> Play:
    """Steps succeed until one fails; `task` names the task that fails, if not the step itself."""

    def play(run: Run) -> Iterator[None]:
        run.state = "RUNNING"
        for name in run.order:
            run.set(name, "RUNNING")
            yield
            if name == step:
                run.set(task or name, "FAILED", message)
                run.finish("FAILED")
                return
            run.set(name, "SUCCEEDED")

    return play


def linger(run: Run) -> Iterator[None]:
    """The first step runs for ever."""
    run.state = "RUNNING"
    while True:
        run.set(run.order[0], "RUNNING")
        yield


# ---- the server --------------------------------------------------------------------------------


@dataclass
class KfpServer:
    """The server's memory and its behaviour; `url` is where it listens."""

    play: Play = succeed
    execute: Callable[[Run], None] | None = None
    """Runs a run for real in a thread, calling `set` and `finish`; replaces `play`."""
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
    requests: list[str] = field(default_factory=list)

    def create_experiment(self, body: dict[str, Any]) -> dict[str, Any]:
        entry = {**body, "experiment_id": str(uuid.uuid4()), "created_at": _now()}
        self.experiments.append(entry)
        return entry

    def upload(self, query: dict[str, list[str]], file: bytes) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(file))
        check_pipeline(documents)
        name = query.get("name", [documents[0]["pipelineInfo"]["name"]])[0]
        if any(entry["display_name"] == name for entry in self.pipelines):
            raise Refused(f"the pipeline name {name} already exists")
        entry = {"pipeline_id": str(uuid.uuid4()), "display_name": name, "created_at": _now()}
        self.pipelines.append(entry)
        self._add_version(entry["pipeline_id"], name, documents)
        return entry

    def upload_version(self, query: dict[str, list[str]], file: bytes) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(file))
        check_pipeline(documents)
        return self._add_version(query["pipelineid"][0], query["name"][0], documents)

    def _add_version(
        self, pipeline_id: str, name: str, documents: list[dict[str, Any]]
    ) -> dict[str, Any]:
        specification, *platforms = documents
        entry = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "display_name": name,
            "created_at": _now(),
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
        check_pipeline(documents)
        check_parameters(documents[0], body.get("runtime_config", {}).get("parameters", {}))
        run = Run(str(uuid.uuid4()), {**body, "created_at": _now()}, documents)
        self.runs[run.id] = run
        if self.execute is not None:
            threading.Thread(target=self.execute, args=(run,), daemon=True).start()
        else:
            run.play = self.play(run)
        return run.view()

    def look_at(self, run: Run) -> dict[str, Any]:
        if run.play is not None and run.state not in ("CANCELING", "CANCELED"):
            next(run.play, None)
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
        parts = urlsplit(self.path.replace("//", "/"))
        # The way of kfp with a kubeconfig: through the API server's proxy to the service.
        parts = parts._replace(path=parts.path.removeprefix(PROXY))
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
        run = kfp.runs.get(path.removeprefix("/runs/").removesuffix(":terminate"))
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
            case ("GET", "/runs"):
                return {"runs": [run.view() for run in kfp.runs.values()]}
            case ("POST", "/runs"):
                return kfp.create_run(json.loads(body))
            case ("POST", _) if run is not None and path.endswith(":terminate"):
                run.state = "CANCELED"
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
