"""Watches a run on a Kubeflow server: shows its steps, retries what fails, and sums it up."""

import time
from typing import Any

from components.core.errors import RunError
from components.core.pages import for_terminal
from components.core.progress import say
from components.report.summary import as_reported
from pipelines.cluster.kubeflow import connect
from pipelines.cluster.pods import Pods
from pipelines.cluster.runs import ENDED, WAITING, outcome_of, phases_of, results_of

NAMESPACE = "kubeflow"
"""Where the pods are, on a server without profiles."""

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_BEFORE_RETRY = 60.0
"""What made a run fail, such as a server that restarts, is given time."""


def watch_run(
    run_id: str, *, host: str, ca_certificate: str = "", namespace: str, retries: int
) -> None:
    """Watch a run that was started before."""
    client = connect(host, ca_certificate)
    introduce(client, host, run_id)
    watch(client, run_id, namespace, retries)


def introduce(client: Any, host: str, run_id: str) -> None:
    """Print a run's link, and how to come back to it."""
    print(_link(client, run_id), flush=True)
    for command in ("watch", "terminate"):
        say(f"  raft {command} {run_id} --host {host}")


def watch(client: Any, run_id: str, namespace: str, retries: int) -> None:
    """Follow a run until it has ended and is not retried again.

    A run whose inputs are wrong is not retried, and what a person has terminated stays terminated.

    Raises:
        RunError: the run did not succeed; the exit code is 2 where its inputs are wrong.
    """
    pods = Pods(run_id, namespace)
    for retry in range(retries + 1):
        run = _follow(client, run_id, pods)
        outcome, results = outcome_of(run), results_of(client, run)
        problem = "; ".join(f"{what}: {why}" for what, why in outcome.problems(results))
        entries = [entry for _, entry in outcome.failures(results) if entry]
        wrong_inputs = not all(entry.repeatable for entry in entries)
        if retry == retries or outcome.state != "failed" or wrong_inputs:
            break
        done = [step.step for step in outcome.among("succeeded") if step.step != "summary"]
        finished = f", {', '.join(done)} is kept" if done else ""
        say(f"  {problem}; Retry {retry + 1} of {retries} resumes it{finished}")
        time.sleep(SECONDS_BEFORE_RETRY)
        if client.get_run(run_id).state in ENDED:  # nobody else has retried it
            client._run_api.run_service_retry_run(run_id=run_id)
    say("\n" + for_terminal(as_reported(outcome, results)))
    if outcome.state != "succeeded":
        link = _link(client, run_id)
        failure = RunError(f"run {run_id}: {problem}", hint=f"The logs: {link}")
        failure.exit_code = 2 if wrong_inputs else 1
        raise failure
    say(f"run {run_id} has succeeded")


def _link(client: Any, run_id: str) -> str:
    return f"{client._get_url_prefix().rstrip('/')}/#/runs/details/{run_id}"


def _follow(client: Any, run_id: str, pods: Pods) -> Any:
    """Show a run's steps as their states change; the run when it has ended."""
    printed: dict[str, tuple[str, str]] = {}
    while True:
        run = client.get_run(run_id)
        phases = phases_of(run)
        active = {task: seen for task, seen in phases.items() if seen[1] in ("running", WAITING)}
        more = pods.phases() if active else {}
        phases |= {task: (step, more.get(step, phase)) for task, (step, phase) in active.items()}
        for task, (step, phase) in phases.items():
            if printed.get(task) != (step, phase):
                say(f"  {step}: {phase}")
        if run.state in ENDED:
            return run
        printed = phases
        time.sleep(SECONDS_BETWEEN_LOOKS)
