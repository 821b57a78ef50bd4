"""Starts the compiled pipeline on a Kubeflow server and shows its steps while they run."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, RunError
from components.core.progress import Task, headline, say, task
from pipelines.cluster.kubeflow import connect, explained, quiet
from pipelines.cluster.parameters import check_parameters, load, read_parameters
from pipelines.k8s.images import images_of, warn_without_registry

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_WITHOUT_ANSWER = 300.0
"""A watched run goes on without us, so a server that restarts is waited for."""

FINISHED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


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
    warn_without_registry(images_of(pipeline))
    client = connect(host, ca_certificate)
    with explained(client.address), quiet():
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
    """The dashboard's page of a run; if no host was named, behind kubeflow.py's port-forward."""
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
