"""Submits a compiled pipeline with kfp's own client, and shows its steps while they run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, RunError
from components.core.progress import headline, say
from pipelines.cluster.compiled import Compiled, load
from pipelines.cluster.connection import NotThere, poll
from pipelines.cluster.kubeflow import connect, explained
from pipelines.cluster.parameters import check_parameters, read_parameters
from pipelines.k8s.images import images_of, warn_without_registry

SECONDS_BETWEEN_LOOKS = 5.0


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
    title = compiled.specification["pipelineInfo"]["name"]
    values = check_parameters(compiled, read_parameters(parameters, settings))
    warn_without_registry(images_of(pipeline))
    client = connect(host, ca_certificate)
    with explained(client.address):
        home = client.create_experiment(experiment, namespace=namespace or None)
        run = client.run_pipeline(
            home.experiment_id,
            name or f"{title} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            str(pipeline),
            values,
            pipeline_root=pipeline_root or None,
            service_account=service_account or None,
        )
    headline(title, f"run {run.run_id} in experiment {experiment}")
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
    states: dict[str, str] = {}
    try:
        run = poll(lambda: _look(client, run_id, steps, states), SECONDS_BETWEEN_LOOKS)
    except (NotPermitted, NotThere):
        raise
    except ClusterError as error:
        error.hint = later
        raise
    except (KeyboardInterrupt, SystemExit):
        say(later)
        raise
    if run.state != "SUCCEEDED":
        raise RunError(_failure(run, steps), hint=f"The steps' logs: {_link(client, run_id)}")
    say(f"run {run_id} has succeeded")


def _look(client: Any, run_id: str, steps: set[str], states: dict[str, str]) -> Any:
    """The run if it has ended; shows each task of a step whose state is not that in `states`."""
    with explained(client.address):
        run = client.get_run(run_id)
    for step, entry in _tasks(run):
        # Kubeflow lists its own tasks, too; a driver prepares the step that it is named for.
        state = entry.state or "PENDING"
        is_ours = step in steps and (step == entry.display_name or state == "FAILED")
        if is_ours and states.get(entry.task_id) != state:
            states[entry.task_id] = state
            say(f"  {step}: {state.lower()}")
    return run if run.state in ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED") else None


def _failure(run: Any, steps: set[str]) -> str:
    """Which steps of a run failed, and with what message."""
    failed: dict[str, str] = {}
    for step, entry in _tasks(run):
        if entry.state == "FAILED":
            failed[step] = failed.get(step) or _message(entry)
    # The graph around a failed step fails too; name it only when no step of ours did.
    failed = {step: failed[step] for step in failed if step in steps} or failed
    outcome = "has failed" if run.state == "FAILED" else "has been cancelled"
    where = f" in {', '.join(failed)}" if failed else ""
    lines = [f"{step}: {message}" for step, message in failed.items() if message]
    messages = filter(None, [*lines, _message(run)])
    return "\n  ".join([f"run {run.run_id} {outcome}{where}", *messages])


def _tasks(run: Any) -> list[tuple[str, Any]]:
    entries = getattr(run.run_details, "task_details", None) or []
    return [((entry.display_name or "").removesuffix("-driver"), entry) for entry in entries]


def _message(entry: Any) -> str:
    """The error of a run or of a task in one line; "" if it has none."""
    return " ".join((entry.error.message or "").split()) if entry.error is not None else ""
