"""What the Kubeflow server reports of a run, and the results that it has left in its bucket."""

from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from typing import Any

from components.core.errors import MissingDependencyError
from components.core.locations import SCHEME
from components.report.outcome import NOT_STARTED, Outcome, StepState
from components.report.results import RunResults, read_runs
from components.report.summary import as_reported
from pipelines.cluster.kubeflow import connect
from pipelines.stages import COMMANDS

OWN_ROOT = "server://pipeline-root"
"""Of a run that was started without a pipeline root; its server does not report which it took."""
STEPS = {*COMMANDS, "compare"}
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
DRIVER, WAITING = "-driver", "waiting for its pod"
OF_POD = {"PENDING": WAITING, "FAILED": "a pod has failed; waiting for the next attempt"}
"""Phases of a step that runs, by the state of its last pod."""


def summarize_run(run_id: str, *, host: str, ca_certificate: str = "") -> None:
    """Print the summary of a run: what its server reports, and its results if they can be read."""
    client = connect(host, ca_certificate)
    run = client.get_run(run_id)
    print(as_reported(outcome_of(run), results_of(client, run)), end="")


def tasks_of(run: Any) -> list[Any]:
    """The tasks that have a state, in order of their start; Kubeflow's own are among them."""
    tasks = (run.run_details and run.run_details.task_details) or []
    return sorted((task for task in tasks if task.state), key=lambda task: task.start_time)


def outcome_of(run: Any) -> Outcome:
    """The state of a run.

    A run that is terminated ends as failed, too. Its history has the ends before each Retry.
    """
    tasks = tasks_of(run)
    history = [entry.state for entry in run.state_history or []]
    ends = [number for number, state in enumerate(history[:-1]) if state in ENDED]
    since_retry = history[ends[-1] + 1 :] if ends else history
    state = {"SUCCEEDED": "succeeded", "FAILED": "failed"}.get(run.state, "running")
    if run.state in ENDED and {"CANCELING", "CANCELED"} & {*since_retry}:
        state = "terminated"
    states = _with_attempts(tasks) + [
        StepState(task.display_name.removesuffix(DRIVER), NOT_STARTED)
        for task in tasks
        if task.display_name.endswith(DRIVER) and task.state == "FAILED"
    ]
    closed = any(task.state == "SKIPPED" for task in tasks)
    return Outcome(run.run_id, state, tuple(states), closed)


def phases_of(run: Any) -> dict[str, tuple[str, str]]:
    """Step and phase of the tasks that a person knows, by the task's id.

    A driver prepares the step that it is named for, which has no state before.
    """
    tasks = tasks_of(run)
    names = [task.display_name for task in tasks]
    phases = {}
    for task in tasks:
        step = task.display_name.removesuffix(DRIVER)
        phase = task.state.lower()
        if step != task.display_name:
            phase = {"succeeded": "", "failed": NOT_STARTED}.get(phase, "driver")
        elif phase == "running" and names.count(step) == 1:
            states = [pod.state for pod in _pods(tasks) if pod.start_time >= task.start_time]
            phase = OF_POD.get(states[-1] if states else "", phase)
        if step in STEPS and phase:
            phases[task.task_id] = step, phase
    return phases


def _with_attempts(tasks: list[Any]) -> list[StepState]:
    """The steps with their attempts, those before a Retry too.

    No task names the step a pod belongs to. A step starts with its first pod; the pods that are
    started later are its own if no other step was under way.
    """
    spans = [(task, list(_spans(task))) for task in tasks if task.display_name in STEPS]
    begins = {begin for _, of_step in spans for begin, _ in of_step}
    later = [
        (at, pod.start_time) for pod in _pods(tasks) for at, _ in _spans(pod) if at not in begins
    ]
    states = []
    for step, own in spans:
        further = [(at, start) for at, start in later if _within(at, own)]
        alone = all(sum(_within(at, other) for _, other in spans) == 1 for at, _ in further)
        since = max([step.start_time, *(start for _, start in further)])
        attempts = (len(own) + len(further)) * alone
        states.append(StepState(step.display_name, step.state.lower(), attempts, since))
    return states


def _pods(tasks: list[Any]) -> list[Any]:
    """The tasks that are pods of steps."""
    return [task for task in tasks if task.display_name.startswith("executor(")]


def _within(at: datetime, spans: list[tuple[datetime, datetime | None]]) -> bool:
    return any(begin <= at and (end is None or at <= end) for begin, end in spans)


def _spans(task: Any) -> Iterator[tuple[datetime, datetime | None]]:
    """From when to when a task was under way: again after each Retry."""
    history = [entry for entry in task.state_history or [] if entry.state]  # else: omitted
    looks = [(entry.state in ENDED, entry.update_time) for entry in history]
    begin = None
    for ended, times in groupby(looks, key=lambda look: look[0]):
        first = next(times)[1]
        if not ended:
            begin = first
        else:
            yield begin or first, first
            begin = None
    if begin:
        yield begin, None


def results_of(client: Any, run: Any) -> RunResults:
    """What a run has left below its pipeline root, or below `state`, whichever is on gs://."""
    runtime = run.runtime_config
    root = (runtime and runtime.pipeline_root) or ""
    state = str(((runtime and runtime.parameters) or {}).get("state", ""))
    if not (root.startswith(SCHEME) or state.startswith(SCHEME)):
        where = root or "the server's own pipeline root"
        note = f"The results are below {where}, which is not read here; the run's page shows them."
        return RunResults({}, [], [], [note])
    specification = run.pipeline_spec
    if specification is None:
        version = run.pipeline_version_reference
        specification = client.get_pipeline_version(
            version.pipeline_id, version.pipeline_version_id
        ).pipeline_spec
    specification = specification.get("pipeline_spec", specification)
    name = specification["pipelineInfo"]["name"]
    folder = f"{root.rstrip('/') or OWN_ROOT}/{name}/{run.run_id}"
    try:
        return read_runs([folder], state)
    except MissingDependencyError as error:
        return RunResults({}, [], [], [f"The results are below {folder}. {error} {error.hint}"])
