"""Submits a compiled pipeline with kfp's own client, and shows its steps while they run."""

from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, RunError
from components.core.progress import headline, say
from pipelines.cluster.connection import NotThere, poll
from pipelines.cluster.kubeflow import connect, explained
from pipelines.cluster.parameters import Compiled, check_parameters, load, read_parameters
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
    """
    compiled = load(pipeline)
    values = check_parameters(compiled, read_parameters(parameters, settings))
    warn_without_registry(images_of(pipeline))
    client = connect(host, ca_certificate)
    with explained(client.address):
        run = client.create_run_from_pipeline_package(
            str(pipeline),
            values,
            run_name=name or None,
            experiment_name=experiment,
            namespace=namespace or None,
            pipeline_root=pipeline_root or None,
            service_account=service_account or None,
        )
    headline(pipeline.stem, f"run {run.run_id} in experiment {experiment}")
    _watch(client, run.run_id, compiled, host, wait)


def watch_run(run_id: str, pipeline: Path, *, host: str = "", ca_certificate: str = "") -> None:
    """Watch a run that was started before."""
    _watch(connect(host, ca_certificate), run_id, load(pipeline), host)


def terminate_run(run_id: str, *, host: str = "", ca_certificate: str = "") -> None:
    """Stop a run; its pods get SIGTERM."""
    client = connect(host, ca_certificate)
    with explained(client.address):
        client.terminate_run(run_id)
    say(f"run {run_id} is being stopped")


def _watch(client: Any, run_id: str, pipeline: Compiled, host: str, wait: bool = True) -> None:
    """Print a run's link and show its steps until it ends; how to do so later, if we do not."""
    prefix = client._get_url_prefix()  # a path without a host where the kubeconfig led us
    if "://" not in prefix:
        prefix = "http://localhost:8080"
        say("  to open the link: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80")
    link = f"{prefix.rstrip('/')}/#/runs/details/{run_id}"
    print(link, flush=True)
    arguments = f"{run_id} --host {host}" if host else run_id
    later = f"The run continues. To watch or to stop it:\n  raft watch {arguments}\n"
    later += f"  raft terminate {arguments}"
    if not wait:
        return say(later)
    steps = set(pipeline.steps)
    tasks: dict[str, tuple[str, str, str]] = {}
    try:
        run = poll(lambda: _look(client, run_id, steps, tasks), SECONDS_BETWEEN_LOOKS)
    except NotThere:
        raise
    except (ClusterError, KeyboardInterrupt, SystemExit):
        say(later)
        raise
    if run.state == "SUCCEEDED":
        return say(f"run {run_id} has succeeded")
    failed = {step: error for step, state, error in sorted(tasks.values()) if state == "FAILED"}
    outcome = "has failed" if run.state == "FAILED" else "has been cancelled"
    lines = [f"run {run_id} {outcome}" + (f" in {', '.join(failed)}" if failed else "")]
    lines += [f"{step}: {error}" for step, error in failed.items() if error]
    lines += [run.error.message] if run.error and run.error.message else []
    raise RunError("\n  ".join(lines), hint=f"The steps' logs: {link}")


def _look(client: Any, run_id: str, steps: set[str], tasks: dict[str, Any]) -> Any:
    """The run if it has ended; keeps step, state and error of each task, and shows what changes."""
    with explained(client.address):
        run = client._run_api.run_service_get_run(run_id=run_id, _request_timeout=30)
    for entry in getattr(run.run_details, "task_details", None) or []:
        # Kubeflow lists its own tasks, too; a driver prepares the step that it is named for.
        step = (entry.display_name or "").removesuffix("-driver")
        task = step, entry.state or "PENDING", (entry.error and entry.error.message) or ""
        is_shown = step in steps and (step == entry.display_name or entry.state == "FAILED")
        if is_shown and tasks.get(entry.task_id) != task:
            tasks[entry.task_id] = task
            say(f"  {step}: {task[1].lower()}")
    return run if run.state in ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED") else None
