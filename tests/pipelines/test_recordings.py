"""The test server replays every recording of a real backend."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from kfp_server_api import ApiClient

from pipelines.cluster import runs
from tests.pipelines.kubeflow.driver import Backend
from tests.pipelines.kubeflow.executors import Executor, Pod, Result
from tests.pipelines.kubeflow.run import Run
from tests.pipelines.recorded_runs import (
    NAMES,
    metadata_of,
    pipeline_of_ed2a150,
    recording,
    repaired,
)

SECONDS_IN_A_HOP = 4
"""Nodes that start within this time of another belong to the same look of the controller."""


@dataclass(frozen=True)
class Scenario:
    """What was run, on which backend, and what happened to it."""

    pipeline: Callable[[], list[dict[str, Any]]] = lambda: repaired("raft")
    backend: Backend | None = None
    results: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    """How the attempts at a step end, where they do not just succeed."""
    course: Callable[[Run], object] = Run.to_the_end


def until_running(run: Run, task: str) -> None:
    while not any(pod.task == task and pod.phase == "Running" for pod in run.tasks.pods):
        assert run.state in ("PENDING", "RUNNING")
        run.advance()


def terminated_in_train(run: Run) -> None:
    until_running(run, "train")
    run.terminate()
    run.to_the_end()


def retried(run: Run) -> None:
    run.to_the_end()
    run.retry()
    run.to_the_end()


GATE_OPEN, GATE_CLOSED = Result(outputs={"decision": "go"}), Result(outputs={"decision": "stop"})
REFUSED = Result(exit_code=2)
DELETED, KILLED, SUCCEEDED = Result(deleted=True, ticks=3), Result(137, ticks=3), Result()

SCENARIOS = {
    "t3": Scenario(lambda: pipeline_of_ed2a150("raft")),
    "t4": Scenario(lambda: pipeline_of_ed2a150("raft"), Backend("2.17.1")),
    "e1s": Scenario(),
    "e1s-216": Scenario(backend=Backend("2.16.1", template_defaults=False)),
    "t5": Scenario(results={"quantize-check": (GATE_CLOSED,)}),
    "t6": Scenario(results={"train": (REFUSED,)}),
    "t6b": Scenario(backend=Backend(template_defaults=False), results={"train": (REFUSED,) * 4}),
    "t7a": Scenario(results={"train": (DELETED, KILLED)}),
    "t7a-retried": Scenario(results={"train": (DELETED, KILLED, SUCCEEDED)}, course=retried),
    "t10": Scenario(lambda: repaired("study")),
    "t11": Scenario(results={"train": (Result(ticks=100),)}, course=terminated_in_train),
}


def executors(scenario: Scenario, recorded: dict[str, Any]) -> dict[str, Executor]:
    """Steps that end as the scenario has it, with the metadata of the recording."""
    metadata = metadata_of(recorded)
    results = {"quantize-check": (GATE_OPEN,), **scenario.results}

    def executor(task: str) -> Executor:
        ends = itertools.cycle(results.get(task, (SUCCEEDED,)))
        each = {name: itertools.cycle(known) for name, known in metadata[task].items()}

        def run(_: Pod) -> Result:
            end = next(ends)
            announced = {name: next(known) for name, known in each.items()}
            return Result(end.exit_code, end.outputs, announced, end.ticks, end.deleted)

        return run

    steps = ("generate", "train", "quantize-check", "eval", "compare", "summary")
    return {task: executor(task) for task in steps}


@dataclass
class Replay:
    """A recording and the run that replays it."""

    recorded: dict[str, Any]
    run: Run

    def normal(self, value: Any) -> Any:
        """Without what is another in each run: ids, UUIDs, times."""
        text = json.dumps(value, sort_keys=True)
        folder = f"{self.run.request['runtime_config']['pipeline_root']}/"
        folder += f"{self.run.documents[0]['pipelineInfo']['name']}/{self.run.id}"
        text = text.replace(folder, "RUN").replace("/gcs/" + folder.removeprefix("gs://"), "/RUN")
        text = re.sub(r"(RUN/[\w-]+)/[^/\"]+/", r"\1/*/", text)
        text = re.sub(r'"name": "\d+"', '"name": "#"', text)
        text = re.sub(r"deadline [\d: -]+\+0000 UTC", "deadline", text)
        return json.loads(text)


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def replay(request: pytest.FixtureRequest) -> Replay:
    scenario, recorded = SCENARIOS[request.param], recording(request.param)
    run = Run(
        {"runtime_config": recorded["runtime_config"]},
        scenario.pipeline(),
        scenario.backend,
        executors(scenario, recorded),
        workflow=workflow_of(recorded),
    )
    scenario.course(run)
    return Replay(recorded, run)


def workflow_of(recorded: dict[str, Any]) -> str:
    status = recorded["executor_inputs"]["summary"]["inputs"]["parameterValues"]["status"]
    return str(status["pipelineJobResourceName"])


def test_every_recording_is_replayed() -> None:
    assert sorted(SCENARIOS) == NAMES


def test_the_run_has_the_recorded_states(replay: Replay) -> None:
    recorded = [state for state in replay.recorded["states"] if state]
    assert [entry["state"] for entry in replay.run.history] == recorded


def test_the_nodes_end_as_recorded(replay: Replay) -> None:
    recorded = Counter(
        (name, kind, phase, replay.normal(message))
        for name, kind, phase, _, message in replay.recorded["nodes"]
    )
    nodes = Counter((*row[:3], replay.normal(row[3])) for row in replay.run.nodes.table())
    assert nodes == recorded


def test_the_nodes_start_in_the_recorded_order(replay: Replay) -> None:
    recorded: list[list[str]] = []
    last = -SECONDS_IN_A_HOP
    for name, _, _, seconds, _ in sorted(replay.recorded["nodes"], key=lambda node: node[3]):
        if seconds - last >= SECONDS_IN_A_HOP:
            recorded.append([])
        recorded[-1].append(name)
        last = seconds
    ordered = sorted(replay.run.nodes.by_name.values(), key=lambda node: node.started)
    groups = itertools.groupby(ordered, key=lambda node: node.started)
    started = [sorted(node.display_name for node in group) for _, group in groups]
    assert started == [sorted(group) for group in recorded]


def test_the_api_shows_the_recorded_tasks(replay: Replay) -> None:
    def shown(task: dict[str, Any], states: list[str | None], children: list[str]) -> Any:
        # How long a pod was seen to run depends on when the server looked.
        seen = [state for state in states if state != "RUNNING" or "PENDING" not in states]
        return task["display_name"], task.get("state"), tuple(seen), tuple(sorted(children))

    recorded = Counter(
        shown(task, task["states"], task["children"]) for task in replay.recorded["tasks"]
    )
    details = replay.run.view()["run_details"]["task_details"]
    tasks = Counter(
        shown(
            task,
            [entry.get("state") for entry in task["state_history"]],
            [child["pod_name"] for child in task.get("child_tasks", [])],
        )
        for task in details
    )
    assert tasks == recorded


OUTCOMES = {
    "t3": ("failed", "generate did not start"),
    "t5": ("succeeded", "gate closed"),
    "t6": ("failed", "train failed 1"),
    "t6b": ("failed", "train failed 4"),
    "t7a": ("failed", "train failed 2"),
    "t7a-retried": ("succeeded", "train succeeded 3"),
    "t11": ("terminated", "train failed 1"),
}
"""What raft says of the recorded runs, beside successes at the first attempt."""


def test_raft_says_how_the_run_has_ended(replay: Replay, request: pytest.FixtureRequest) -> None:
    run = ApiClient().deserialize(SimpleNamespace(data=json.dumps(replay.run.view())), "V2beta1Run")
    outcome = runs.outcome_of(run)
    said = ["gate closed"] * outcome.gate_closed
    for step in outcome.steps:
        if step.state != "succeeded" or step.attempts > 1:
            said.append(f"{step.step} {step.state} {step.attempts or ''}".strip())
    expected = OUTCOMES.get(request.node.callspec.params["replay"], ("succeeded",))
    assert (outcome.state, *said) == expected


def test_steps_are_handed_the_recorded_inputs(replay: Replay) -> None:
    """The exit handler's status among them."""

    def comparable(inputs: Any) -> Any:
        for entry in inputs["inputs"].get("artifacts", {}).values():
            entry["artifacts"].sort(key=json.dumps)
        return inputs

    for step, inputs in replay.recorded["executor_inputs"].items():
        handed = [
            comparable(replay.normal(pod.executor_input))
            for pod in replay.run.tasks.pods
            if pod.task == step
        ]
        assert comparable(replay.normal(inputs)) in handed, step


def test_pods_are_as_recorded(replay: Replay) -> None:
    pods = [
        {
            "step": pod.task,
            "args": [*pod.command, *pod.args],
            "limits": pod.resources.get("limits", {}),
            "node_selector": pod.node_selector,
            "tolerations": pod.tolerations,
            "exit_code": pod.exit_code,
            "attempt": pod.attempt,
        }
        for pod in replay.run.tasks.pods
    ]
    for recorded in replay.recorded["pods"]:
        assert recorded in pods
