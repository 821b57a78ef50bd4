"""The Kubeflow server of tests/pipelines/kubeflow, with runs that only play states.

A play gives a run's tasks their states by name, one step for each time that the run is looked at;
`execute` replaces it by a callable in a thread of its own. Where the course of a run matters, use
`kubeflow.server.KfpServer`, which does what a real backend does.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from tests.pipelines.kubeflow import server
from tests.pipelines.kubeflow.server import PROXY, now, serving
from tests.pipelines.kubeflow.specification import Refused, check_parameters, check_pipeline

__all__ = ["PROXY", "KfpServer", "Refused", "Run", "check_parameters", "check_pipeline", "serving"]


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
             "create_time": now(), "start_time": now(), "end_time": "1970-01-01T00:00:00Z"},
        )  # fmt: skip
        entry["state"] = state
        if error:
            entry["error"] = {"code": 13, "message": error}
        if state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"):
            entry["end_time"] = now()

    def finish(self, state: str, error: str = "") -> None:
        """End the run."""
        self.set("root", state)
        self.state, self.error = state, error

    def advance(self) -> None:
        """The next step of the play."""
        if self.play is not None and self.state not in ("CANCELING", "CANCELED"):
            next(self.play, None)

    def terminate(self) -> None:
        """End the play."""
        self.state = "CANCELED"

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


@dataclass
class KfpServer(server.KfpServer):
    """A server whose runs play states."""

    play: Play = succeed
    execute: Callable[[Run], None] | None = None
    """Runs a run for real in a thread, calling `set` and `finish`; replaces `play`."""

    def check(self, documents: list[dict[str, Any]]) -> None:
        check_pipeline(documents)

    def start(self, request: dict[str, Any], documents: list[dict[str, Any]]) -> Run:
        run = Run(str(uuid.uuid4()), request, documents)
        if self.execute is not None:
            threading.Thread(target=self.execute, args=(run,), daemon=True).start()
        else:
            run.play = self.play(run)
        return run
