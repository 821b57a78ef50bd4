"""Submits a compiled pipeline with kfp's own client, and shows its steps while they run."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, RunError
from components.core.progress import headline, say, task
from pipelines.cluster.compiled import load
from pipelines.cluster.kubeflow import connect, explained
from pipelines.cluster.parameters import check_parameters, read_parameters

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_WITHOUT_ANSWER = 300.0
"""A watched run continues without us, so a server that restarts is waited for."""

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
) -> str:
    """Check the parameters, start a run, print its link on standard output, and watch it.

    Args: those of `raft submit`; its help explains them.

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
    link = _link(client, run.run_id)
    if not link.startswith(client.address):
        say("  to open the link: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80")
    print(link, flush=True)
    if wait:
        _watch(client, run.run_id, pipeline, host)
    else:
        say(_how_to_go_on(run.run_id, host))
    return str(run.run_id)


def watch_run(run_id: str, pipeline: Path, *, host: str = "", ca_certificate: str = "") -> None:
    """Watch a run that was started before.

    Raises:
        ClusterError: the server cannot be reached, or knows no such run.
        RunError: the run failed or was cancelled.
    """
    client = connect(host, ca_certificate)
    print(_link(client, run_id), flush=True)
    _watch(client, run_id, pipeline, host)


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


def _how_to_go_on(run_id: str, host: str) -> str:
    where = f" --host {host}" if host else ""
    return (
        f"The run continues without this terminal.\n"
        f"  watch      raft watch {run_id}{where}\n"
        f"  terminate  raft terminate {run_id}{where}"
    )


def _watch(client: Any, run_id: str, pipeline: Path, host: str) -> None:
    """Show the steps' changes until the run has ended; a RunError unless it has succeeded."""
    steps = {step.name for step in load(pipeline).steps()}
    states: dict[str, str] = {}
    finished = 0
    last_answer = time.monotonic()
    try:
        with task("run", len(steps), "steps") as bar:
            while True:
                try:
                    with explained(client.address):
                        run = client.get_run(run_id)
                    last_answer = time.monotonic()
                except NotPermitted:
                    raise
                except ClusterError as error:
                    if not states or time.monotonic() - last_answer > SECONDS_WITHOUT_ANSWER:
                        error.hint = _how_to_go_on(run_id, host)
                        raise
                else:
                    done, running = _show_changes(_tasks(run), steps, states)
                    bar.advance(done - finished, running=",".join(running) or "none")
                    finished = done
                    if run.state in FINISHED:
                        break
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except (KeyboardInterrupt, SystemExit):
        say(_how_to_go_on(run_id, host))
        raise
    if run.state != "SUCCEEDED":
        raise RunError(_ending(run, steps), hint=f"The steps' logs: {_link(client, run_id)}")
    say(f"run {run_id} has succeeded")


def _tasks(run: Any) -> list[tuple[str, Any]]:
    """The run's tasks by step: Kubeflow's driver prepares the step that it is named for."""
    details = getattr(run.run_details, "task_details", None) or []
    return [((detail.display_name or "").removesuffix("-driver"), detail) for detail in details]


def _show_changes(
    tasks: list[tuple[str, Any]], steps: set[str], states: dict[str, str]
) -> tuple[int, list[str]]:
    """Print what differs from `states`; how many steps are done, and those that run."""
    by_step: dict[str, set[str]] = {}
    for step, detail in tasks:
        state = detail.state or "PENDING"
        # Kubeflow lists its own tasks, too.
        if step not in steps or (step != detail.display_name and state != "FAILED"):
            continue
        by_step.setdefault(step, set()).add(state)
        if states.get(detail.task_id) != state:
            states[detail.task_id] = state
            took = ""
            if state in FINISHED and detail.start_time and detail.end_time:
                seconds = (detail.end_time - detail.start_time).total_seconds()
                took = f" after {seconds:.0f} s" if seconds >= 0 else ""  # unset times are 1970
            say(f"  {step}: {state.lower()}{took}")
    # A step in a loop has several tasks, and is done when all of them are.
    done = sum(found <= FINISHED for found in by_step.values())
    return done, [step for step, found in by_step.items() if "RUNNING" in found]


def _ending(run: Any, steps: set[str]) -> str:
    """Which steps of a run failed, and with what message."""
    failed: dict[str, str] = {}
    for step, detail in _tasks(run):
        if detail.state == "FAILED":
            message = detail.error.message if detail.error is not None else ""
            failed[step] = failed.get(step) or " ".join((message or "").split())
    # The graph around a failed step fails too; name it only when no step of ours did.
    failed = {step: failed[step] for step in failed if step in steps} or failed
    outcome = "failed" if run.state == "FAILED" else "been cancelled"
    where = f" in {', '.join(failed)}" if failed else ""
    lines = [f"run {run.run_id} has {outcome}{where}"]
    lines += [f"  {step}: {message}" for step, message in failed.items() if message]
    if run.error is not None and run.error.message:
        lines.append(f"  {' '.join(run.error.message.split())}")
    return "\n".join(lines)
