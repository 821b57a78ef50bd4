"""Starts the compiled pipeline on a Kubeflow server and shows its steps while they run.

Parameters are checked here, against the inputs of the compiled YAML and the ranges of the stages
that they reach, before the cluster sees them: a wrong one would fail a step when the GPU is
already there. The server is spoken to by kfp's own client. Tokens and cookies come from the
environment or from kfp's configuration, and are never printed.
"""

import contextlib
import difflib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.config import allowed_values
from components.errors import ClusterError, ConfigError, NotPermitted, RunError, first_line
from components.progress import Task, headline, say, task
from components.redaction import keep_secret

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_WITHOUT_ANSWER = 300.0
"""A watched run goes on without us, so a server that restarts is waited for."""

TOKEN, COOKIES = "RAFT_KFP_TOKEN", "RAFT_KFP_COOKIES"
"""Environment variables with a bearer token, or the cookies of a session, for the server."""

FINISHED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}

KINDS = {
    "STRING": "a text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true | false",
    "LIST": "a list, or its JSON",
    "STRUCT": "a mapping, or its JSON",
}


# ---- parameters --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A parameter's value and where the user wrote it: `parameters.yaml:3` or `--set`."""

    value: object
    place: str


Origin = tuple[str, str | None]
"""A pipeline parameter; with a key, what each object in its list holds under that key."""

ITEM = re.compile(r"""parseJson\(string_value\)\["(.+)"\]""")


class Reader(NamedTuple):
    """A step that reads a pipeline parameter, or a key of each object in one that is a list."""

    stage: str
    field: str
    key: str | None = None


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline, as far as a submission needs to know it."""

    path: Path
    specification: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.specification["pipelineInfo"]["name"])

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name to definition of every pipeline parameter."""
        definitions = self.specification["root"].get("inputDefinitions", {})
        parameters: Mapping[str, Any] = definitions.get("parameters", {})
        return parameters

    @property
    def steps(self) -> list[str]:
        """Names of the tasks that run a container, in the order of the file."""
        return list(dict.fromkeys(name for name, _, _ in self._tasks(self.specification["root"])))

    def readers(self, parameter: str) -> Iterator["Reader"]:
        """What every step makes of a pipeline parameter that reaches it unchanged."""
        executors = self.specification["deploymentSpec"]["executors"]
        for _, component, origins in self._tasks(self.specification["root"]):
            command = executors[component["executorLabel"]].get("container", {}).get("command", [])
            if len(command) == 2 and command[0] == "raft":
                for name, (origin, key) in origins.items():
                    if origin == parameter:
                        yield Reader(command[1], name, key)

    def _tasks(
        self, parent: Mapping[str, Any], known: Mapping[str, Origin] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Origin]]]:
        """Name, component, and pipeline parameter behind each input, of every container task."""
        for name, step in parent["dag"]["tasks"].items():
            component = self.specification["components"][step["componentRef"]["name"]]
            origins = {}
            for key, source in step.get("inputs", {}).get("parameters", {}).items():
                found = source.get("componentInputParameter")
                if found is not None and (known is None or found in known):
                    origin, _ = (found, None) if known is None else known[found]
                    item = ITEM.fullmatch(source.get("parameterExpressionSelector", ""))
                    origins[key] = (origin, item[1] if item else None)
            if "dag" in component:
                loop = step.get("parameterIterator", {})
                items = loop.get("items", {}).get("inputParameter")
                if items in origins:
                    origins[loop["itemInput"]] = (origins[items][0], None)
                yield from self._tasks(component, origins)
            else:
                yield name, component, origins


def load(path: Path) -> Compiled:
    """Read a compiled pipeline.

    Raises:
        ConfigError: no such file, or not a compiled pipeline.
    """
    try:
        specification = next(yaml.safe_load_all(path.read_text(encoding="utf-8")), None)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", hint=f"raft compile --output {path}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    needed = {"pipelineInfo", "root", "components", "deploymentSpec"}
    if not isinstance(specification, dict) or not needed <= specification.keys():
        raise ConfigError(
            f"{path}: not a compiled pipeline (it needs {', '.join(sorted(needed))})",
            hint="raft compile --output pipelines/raft.yaml makes one.",
        )
    return Compiled(path, specification)


def read_parameters(path: Path | None, settings: tuple[str, ...] = ()) -> dict[str, Given]:
    """Parameters of a YAML or JSON file, and `name=value` settings, which win.

    Raises:
        ConfigError: a file that is missing, not a mapping, or names a parameter twice; a setting
            without `=`.
    """
    given = {} if path is None else _read_file(path)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting!r}: no value", hint="Write --set name=value.")
        given[name.strip()] = Given(value, "--set")
    return given


def _read_file(path: Path) -> dict[str, Given]:
    try:
        text = path.read_text(encoding="utf-8")
        # JSON is YAML but for its tabs, which it allows between values only.
        root = yaml.compose(text.replace("\t", " ") if path.suffix == ".json" else text)
        values = yaml.SafeLoader("")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="Check --parameters.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not text in UTF-8", hint="Check --parameters.") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{path}{line}: neither YAML nor JSON ({error.problem})", hint="Fix that line."
        ) from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}: holds no mapping of names to values",
            hint="Write one parameter a line, such as `documents: gs://BUCKET/documents`.",
        )
    given: dict[str, Given] = {}
    for key, value in root.value:
        name, place = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name in given:
            raise ConfigError(
                f"{place}: {name} is given twice (first in {given[name].place})",
                hint="Keep one of the two.",
            )
        try:
            given[name] = Given(values.construct_document(value), place)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{place}: {name}: {error}", hint="Put it in quotes.") from None
    return given


def check_parameters(pipeline: Compiled, given: Mapping[str, Given]) -> dict[str, Any]:
    """The typed values to hand to Kubeflow.

    Raises:
        ConfigError: a parameter is unknown, missing, of another type, or out of the range of a
            stage that it reaches; names each with file and line and what is allowed.
    """
    faults = []
    values = {}
    for name, entry in given.items():
        try:
            values[name] = _checked(pipeline, name, entry.value)
        except ValueError as error:
            faults.append(f"{entry.place}: {error}")
    for name, definition in pipeline.inputs.items():
        if name not in given and not definition.get("isOptional", False):
            description = " ".join(definition.get("description", "").split())
            faults.append(f"{name} is missing: {description}")
    if faults:
        raise ConfigError(
            "\n".join(faults),
            hint=f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs.",
        )
    return values


def _checked(pipeline: Compiled, name: str, value: object) -> Any:
    if name not in pipeline.inputs:
        close = difflib.get_close_matches(name, pipeline.inputs, n=1)
        raise ValueError(
            f"{name}: unknown parameter"
            + (f"; did you mean {close[0]}?" if close else "")
            + f" (allowed: {', '.join(pipeline.inputs)})"
        )
    kind = pipeline.inputs[name]["parameterType"]
    if kind not in KINDS:
        raise ValueError(f"{name}: set by Kubeflow, not by a user")
    try:
        typed = _typed(kind, value)
    except ValueError:
        hint = "; put it in quotes" if kind == "STRING" else ""
        raise ValueError(f"{name} {value!r}: not {KINDS[kind]}{hint}") from None
    _check_range(pipeline, name, typed)
    return typed


def _typed(kind: str, value: Any) -> Any:
    """A value, perhaps given as text, as the type that the pipeline declares."""
    if kind == "STRING":
        if isinstance(value, str):
            return value
    elif kind == "BOOLEAN":
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif kind in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if kind == "NUMBER_DOUBLE" and math.isfinite(number):
                return number
            if kind == "NUMBER_INTEGER" and number.is_integer():
                return int(value)
    else:
        expected = list if kind == "LIST" else dict
        parsed = json.loads(value) if isinstance(value, str) else value
        if isinstance(parsed, expected):
            return parsed
    raise ValueError(value)


def _check_range(pipeline: Compiled, name: str, value: object) -> None:
    """Refuse what a stage would refuse, by the same config class.

    Raises:
        ValueError: names the stage and what it allows.
    """
    from pipelines.manifests import hardware_of

    try:
        hardware_of({name: value})
    except ConfigError as error:
        raise ValueError(error) from None
    readers = list(pipeline.readers(name))
    keys = {reader.key for reader in readers if reader.key is not None}
    items = value if keys and isinstance(value, list) else []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or item.keys() != keys:
            raise ValueError(
                f"{name}[{number}] {item!r}: not an object with exactly these keys: "
                f"{', '.join(sorted(keys))}"
            )
    for reader in readers:
        if reader.key is None:
            _ask(reader, name, value)
        for number, item in enumerate(items if reader.key else []):
            _ask(reader, f"{name}[{number}].{reader.key}", item[reader.key])


def _ask(reader: Reader, place: str, value: object) -> None:
    """Let a stage's config class look at one of its fields.

    Raises:
        ValueError: the stage would refuse the value.
    """
    from pydantic import ValidationError

    from pipelines.cli import STAGES, StageCommand, raft

    command = raft.commands.get(reader.stage)
    if reader.stage not in STAGES or not isinstance(command, StageCommand):
        return
    config = command.load()
    try:
        config.model_validate({reader.field: value})
    except ValidationError as error:
        # The other fields of the stage are missing here, and not at fault.
        for fault in error.errors():
            if fault["loc"][:1] == (reader.field,) and fault["type"] != "missing":
                problem = str(fault["msg"]).removeprefix("Value error, ")
                allowed = allowed_values(config.model_fields[reader.field])
                raise ValueError(
                    f"{place} {value!r}: {reader.stage} refuses it: {problem}"
                    + (f" (allowed: {allowed})" if allowed else "")
                ) from None


# ---- the server --------------------------------------------------------------------------------


def connect(host: str = "", ca_certificate: str = "", context: str = "") -> Any:
    """A kfp client whose server is known to answer.

    Args:
        host: URL of the server; "" leaves it to kfp: KF_PIPELINES_ENDPOINT, the service inside a
            cluster, or the cluster of the kubeconfig.
        ca_certificate: file with the authority that signed the server's certificate.
        context: context of the kubeconfig; "" takes the current one.

    Raises:
        ClusterError: there is no server, or not one of Kubeflow Pipelines 2.
        NotPermitted: the server wants another account.
    """
    import kfp

    class Client(kfp.Client):
        """kfp's client; its own health check tries five times, with a traceback each."""

        def _load_config(self, *arguments: Any) -> Any:
            config = super()._load_config(*arguments)
            host, refresh = config.host, config.refresh_api_key_hook
            if refresh is not None:
                # Refreshing a kubeconfig's token, before each request, also puts back its host and
                # its hook, and so takes away the path to Kubeflow's service that kfp has added.
                def refresh_token(config: Any) -> None:
                    refresh(config)
                    config.host, config.refresh_api_key_hook = host, refresh_token

                config.refresh_api_key_hook = refresh_token
            return config

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            if not named and self.address == "http://localhost":  # kfp found none, and guesses
                raise ClusterError("no Kubeflow server named, and no kubeconfig found", hint=_WHERE)
            health = self._healthz_api.healthz_service_get_healthz
            # Parsed by kfp, the page of a login form would look like an empty answer.
            if not isinstance(
                json.loads(health(_request_timeout=10, _preload_content=False).data), dict
            ):
                raise ValueError
            return health(_request_timeout=10)

        def get_run(self, run_id: str) -> Any:
            return self._run_api.run_service_get_run(run_id=run_id, _request_timeout=30)

        @property
        def address(self) -> str:
            return str(self._existing_config.host)

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # one message is enough
    named = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    with explained(named or "Kubeflow in the cluster of the kubeconfig"), _quiet():
        client = Client(
            host=host or None,
            existing_token=os.environ.get(TOKEN) or None,
            cookies=os.environ.get(COOKIES) or None,
            ssl_ca_cert=ca_certificate or None,
            kube_context=context or None,
        )
        for value in (client._existing_config.api_key or {}).values():
            keep_secret(str(value).removeprefix("Bearer "))
        client.get_kfp_healthz()
    return client


_WHERE = (
    "Run `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80` and give "
    "--host http://localhost:8080."
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's prints and warnings off the terminal: we say the same in one line."""
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,  # noqa: PTH123 (not a file of ours)
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what the client raises into errors that a person can act on.

    Raises:
        ClusterError: no answer, or not the answer of Kubeflow Pipelines 2.
        NotPermitted: the server wants another account.
    """
    from google.auth.exceptions import GoogleAuthError
    from kfp_server_api.exceptions import ApiException, OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        cause = getattr(error, "reason", None) or error
        raise ClusterError(
            f"{address} does not answer ({_first_line(cause)})", hint=_WHERE
        ) from None
    except ApiException as error:
        # Its own text has the response's headers, and with them cookies.
        if error.status in (401, 403):
            raise NotPermitted(
                f"{address} refuses this account ({error.status}: {_message(error)})",
                hint=f"Put a bearer token in {TOKEN}, or the session's cookies in {COOKIES}.",
            ) from None
        if _body(error).get("kind") == "Status":
            raise ClusterError(
                f"the cluster has no Kubeflow Pipelines that answers ({_message(error)})",
                hint="https://www.kubeflow.org/docs/components/pipelines says how to install it.",
            ) from None
        if error.status == 404 and not _body(error):
            raise ClusterError(
                f"{address} answers, but has no v2beta1 API: it is Kubeflow Pipelines 1, or "
                "another program",
                hint="raft needs Kubeflow Pipelines 2; check --host, or upgrade the server.",
            ) from None
        raise ClusterError(f"{address} refuses: {_message(error)}", hint=_refusal()) from None
    except GoogleAuthError as error:
        raise NotPermitted(
            f"{address} wants a Google account ({_first_line(error)})",
            hint="gcloud auth application-default login",
        ) from None
    except (OpenApiException, ValueError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"{address} answers, but not as Kubeflow Pipelines 2 does, perhaps with a login page "
            f"({_first_line(error)})",
            hint=f"Check --host; put a bearer token in {TOKEN}, or the session's cookies in "
            f"{COOKIES}.",
        ) from None


def _refusal() -> str:
    from importlib.metadata import version

    return (
        f"The pipeline is compiled by kfp {version('kfp')}; a server that does not know one of "
        "its fields is older and needs an upgrade."
    )


def _first_line(cause: object) -> str:
    """A connection error without the connection that urllib3 describes before it."""
    return first_line(cause).rpartition(": ")[2]


def _body(error: Any) -> dict[str, Any]:
    """An error's body, where it is the server's own JSON and not another program's page."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _message(error: Any) -> str:
    text = str(_body(error).get("message") or _body(error).get("error") or error.reason)
    return " ".join(text.split())[:500]


# ---- runs --------------------------------------------------------------------------------------


def run(
    pipeline: Path,
    parameters: Path | None,
    settings: tuple[str, ...] = (),
    *,
    host: str = "",
    ca_certificate: str = "",
    experiment: str = "raft",
    name: str = "",
    namespace: str = "",
    pipeline_root: str = "",
    service_account: str = "",
    wait: bool = True,
) -> str:
    """Check the parameters, start a run, print its link on standard output, and watch it.

    Args:
        pipeline: the compiled YAML.
        parameters: YAML or JSON file of parameters, or None.
        settings: `name=value` parameters, which win over the file's.
        host: URL of the server; see `connect`.
        ca_certificate: see `connect`.
        experiment: the experiment that the run belongs to; made where it is missing.
        name: the run's name; "" takes the pipeline's and the time.
        namespace: the user's profile, on a server with several users.
        pipeline_root: where artifacts go; "" takes the server's default.
        service_account: account of the steps' pods; "" takes the server's default.
        wait: watch the run until it ends.

    Returns:
        The run's id.

    Raises:
        ConfigError: a parameter is wrong; nothing was sent.
        ClusterError: the server cannot be reached or refuses.
        RunError: the run failed or was cancelled.
    """
    compiled = load(pipeline)
    values = check_parameters(compiled, read_parameters(parameters, settings))
    client = connect(host, ca_certificate)
    with explained(client.address), _quiet():
        home = client.create_experiment(experiment, namespace=namespace or None)
        started = client.run_pipeline(
            home.experiment_id,
            name or f"{compiled.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            str(pipeline),
            values,
            pipeline_root=pipeline_root or None,
            service_account=service_account or None,
        )
    headline(compiled.name, f"run {started.run_id} in experiment {experiment}")
    link = _link(client, started.run_id)
    if not link.startswith(client.address):
        say("  to open the link: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80")
    print(link, flush=True)
    if wait:
        _watch(client, started.run_id, compiled.steps, host)
    else:
        say(_how_to_go_on(started.run_id, host))
    return str(started.run_id)


def watch(run_id: str, pipeline: Path, *, host: str = "", ca_certificate: str = "") -> None:
    """Watch a run that was started before.

    Raises:
        ClusterError: the server cannot be reached, or knows no such run.
        RunError: the run failed or was cancelled.
    """
    steps = load(pipeline).steps
    client = connect(host, ca_certificate)
    print(_link(client, run_id), flush=True)
    _watch(client, run_id, steps, host)


def terminate(run_id: str, *, host: str = "", ca_certificate: str = "") -> None:
    """Stop a run; its pods get SIGTERM.

    Raises:
        ClusterError: the server cannot be reached, or knows no such run.
    """
    client = connect(host, ca_certificate)
    with explained(client.address):
        client.terminate_run(run_id)
    say(f"run {run_id} is being stopped")


def _link(client: Any, run_id: str) -> str:
    """The dashboard's page of a run; behind the port-forward of `_WHERE` if no host was named."""
    prefix = client._get_url_prefix()  # a path without a host where the kubeconfig led us
    prefix = prefix.rstrip("/") if "://" in prefix else "http://localhost:8080"
    return f"{prefix}/#/runs/details/{run_id}"


def _how_to_go_on(run_id: str, host: str) -> str:
    where = f" --host {host}" if host else ""
    return (
        f"The run goes on without this terminal.\n"
        f"  watch      raft watch {run_id}{where}\n"
        f"  terminate  raft terminate {run_id}{where}"
    )


@dataclass
class _View:
    """What was last said about each task, so that only changes are said."""

    steps: list[str]
    bar: Task
    states: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    finished: int = 0

    def update(self, details: list[Any]) -> None:
        running = []
        by_step: dict[str, list[str]] = {}
        for detail in details:
            # Kubeflow lists its own tasks too; a driver prepares the step that it is named for.
            step = (detail.display_name or "").removesuffix("-driver")
            state = detail.state or "PENDING"
            if state == "FAILED" and detail.error is not None and detail.error.message:
                self.errors.setdefault(step, " ".join(detail.error.message.split()))
            is_driver = step != detail.display_name
            if step not in self.steps or (is_driver and state != "FAILED"):
                continue
            by_step.setdefault(step, []).append(state)
            if self.states.get(detail.task_id) != state:
                self.states[detail.task_id] = state
                say(f"  {step}: {state.lower()}{_took(detail)}")
            if state == "RUNNING":
                running.append(step)
        # A step in a loop has several tasks, and is done when all of them are.
        done = sum(set(states) <= FINISHED for states in by_step.values())
        self.bar.advance(done - self.finished, running=",".join(running) or "none")
        self.finished = done


def _took(detail: Any) -> str:
    if detail.state not in FINISHED or not (detail.start_time and detail.end_time):
        return ""
    seconds = (detail.end_time - detail.start_time).total_seconds()
    return f" after {seconds:.0f} s" if seconds >= 0 else ""  # unset times are 1970


def _watch(client: Any, run_id: str, steps: list[str], host: str) -> None:
    try:
        with task("run", len(steps), "steps") as bar:
            view = _View(steps, bar)
            last_answer = time.monotonic()
            while True:
                try:
                    with explained(client.address):
                        found = client.get_run(run_id)
                except NotPermitted:
                    raise
                except ClusterError as error:
                    if not view.states or time.monotonic() - last_answer > SECONDS_WITHOUT_ANSWER:
                        error.hint = _how_to_go_on(run_id, host)
                        raise
                else:
                    last_answer = time.monotonic()
                    view.update(getattr(found.run_details, "task_details", None) or [])
                    if found.state in FINISHED:
                        break
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except (KeyboardInterrupt, SystemExit):
        say(_how_to_go_on(run_id, host))
        raise
    if found.state == "SUCCEEDED":
        say(f"run {run_id} has succeeded")
        return
    raise _ending(client, found, view)


def _ending(client: Any, found: Any, view: _View) -> RunError:
    """The error of a run that did not succeed: which steps failed, and what they said."""
    failed = list(
        dict.fromkeys(
            (detail.display_name or "").removesuffix("-driver")
            for detail in getattr(found.run_details, "task_details", None) or []
            if detail.state == "FAILED"
        )
    )
    # The graph around a failed step fails too; name it only when no step of ours did.
    failed = [step for step in failed if step in view.steps] or failed
    lines = [f"run {found.run_id} has {'failed' if found.state == 'FAILED' else 'been cancelled'}"]
    if failed:
        lines[0] += f" in {', '.join(failed)}"
    lines += [f"  {step}: {view.errors[step]}" for step in failed if step in view.errors]
    if found.error is not None and found.error.message:
        lines.append(f"  {' '.join(found.error.message.split())}")
    return RunError("\n".join(lines), hint=f"The steps' logs: {_link(client, found.run_id)}")
