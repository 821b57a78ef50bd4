"""Submits a compiled pipeline with kfp's own client, and shows its steps while they run."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, RunError
from components.core.progress import Task, headline, say, task
from pipelines.cluster.compiled import Compiled, load
from pipelines.cluster.kubeflow import connect, explained
from pipelines.cluster.parameters import check_parameters, read_parameters
from pipelines.cluster.polling import poll
from pipelines.k8s.images import images_of, warn_without_registry

SECONDS_BETWEEN_LOOKS = 5.0
FINISHED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


def submit_run(
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
) -> None:
    """Check the parameters, start a run, print its link on standard output, and watch it.

    The arguments are those of `raft submit`, whose help explains them.

    Raises:
        ConfigError: a parameter is wrong; nothing was sent.
        ClusterError: the server cannot be reached or refuses.
        RunError: the run failed or was cancelled.
    """
    compiled = load(pipeline)
    values = check_parameters(compiled, read_parameters(parameters, settings))
    warn_without_registry(images_of(pipeline))
    client = connect(host, ca_certificate)
    with explained(client.address):
        home = client.create_experiment(experiment, namespace=namespace or None)
        run = client.run_pipeline(
            home.experiment_id,
            name or f"{compiled.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            str(pipeline),
            values,
            pipeline_root=pipeline_root or None,
            service_account=service_account or None,
        )
    headline(compiled.name, f"run {run.run_id} in experiment {experiment}")
    if not _link(client, "").startswith(client.address):
        say("  to open the link: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80")
    _watch(client, run.run_id, compiled, host, wait)


def watch_run(run_id: str, pipeline: Path, *, host: str = "", ca_certificate: str = "") -> None:
    """Watch a run that was started before.

    Raises:
        ClusterError: the server cannot be reached, or knows no such run.
        RunError: the run failed or was cancelled.
    """
    _watch(connect(host, ca_certificate), run_id, load(pipeline), host)


def terminate_run(run_id: str, *, host: str = "", ca_certificate: str = "") -> None:
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


def _watch(client: Any, run_id: str, pipeline: Compiled, host: str, wait: bool = True) -> None:
    """Print a run's link and show its steps until it ends; how to do so later, if we do not."""
    where = f" --host {host}" if host else ""
    later = (
        f"The run continues without this terminal.\n"
        f"  watch      raft watch {run_id}{where}\n"
        f"  terminate  raft terminate {run_id}{where}"
    )
    print(_link(client, run_id), flush=True)
    if not wait:
        return say(later)
    steps = {step.name for step in pipeline.steps()}
    try:
        with task("run", len(steps), "steps") as bar:
            view = _View(client, run_id, steps, bar)
            poll(view.look, SECONDS_BETWEEN_LOOKS, answered=False)
    except ClusterError as error:
        error.hint = error.hint if isinstance(error, NotPermitted) else later
        raise
    except (KeyboardInterrupt, SystemExit):
        say(later)
        raise
    if view.run.state != "SUCCEEDED":
        raise RunError(view.failure(), hint=f"The steps' logs: {_link(client, run_id)}")
    say(f"run {run_id} has succeeded")


@dataclass
class _View:
    """A run as it was last shown, so that only changes are."""

    client: Any
    run_id: str
    steps: set[str]
    bar: Task
    run: Any = None
    states: dict[str, str] = field(default_factory=dict)
    finished: int = 0

    def look(self) -> bool:
        """Show what has changed; True when the run has ended."""
        with explained(self.client.address):
            self.run = self.client.get_run(self.run_id)
        by_step: dict[str, set[str]] = {}
        for step, entry in self._tasks():
            # Kubeflow lists its own tasks, too; a driver prepares the step that it is named for.
            state = entry.state or "PENDING"
            if step not in self.steps or (step != entry.display_name and state != "FAILED"):
                continue
            by_step.setdefault(step, set()).add(state)
            if self.states.get(entry.task_id) != state:
                self.states[entry.task_id] = state
                say(f"  {step}: {state.lower()}{_took(entry)}")
        running = [step for step, states in by_step.items() if "RUNNING" in states]
        # A step in a loop has several tasks, and is done when all of them are.
        finished = sum(states <= FINISHED for states in by_step.values())
        self.bar.advance(finished - self.finished, running=",".join(running) or "none")
        self.finished = finished
        return self.run.state in FINISHED

    def failure(self) -> str:
        """Which steps of a run failed, and with what message."""
        failed: dict[str, str] = {}
        for step, entry in self._tasks():
            if entry.state == "FAILED":
                failed[step] = failed.get(step) or _message(entry)
        # The graph around a failed step fails too; name it only when no step of ours did.
        failed = {step: failed[step] for step in failed if step in self.steps} or failed
        outcome = "has failed" if self.run.state == "FAILED" else "has been cancelled"
        where = f" in {', '.join(failed)}" if failed else ""
        lines = [f"  {step}: {message}" for step, message in failed.items() if message]
        lines += [f"  {message}"] if (message := _message(self.run)) else []
        return "\n".join([f"run {self.run_id} {outcome}{where}", *lines])

    def _tasks(self) -> list[tuple[str, Any]]:
        entries = getattr(self.run.run_details, "task_details", None) or []
        return [((entry.display_name or "").removesuffix("-driver"), entry) for entry in entries]


def _message(entry: Any) -> str:
    """The error of a run or of a task in one line; "" if it has none."""
    return " ".join((entry.error.message or "").split()) if entry.error is not None else ""


def _took(entry: Any) -> str:
    if entry.state not in FINISHED or not (entry.start_time and entry.end_time):
        return ""
    seconds = (entry.end_time - entry.start_time).total_seconds()
    return f" after {seconds:.0f} s" if seconds >= 0 else ""  # unset times are 1970
