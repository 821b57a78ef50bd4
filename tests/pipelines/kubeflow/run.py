"""One run: what the API can do with it, and how it shows it.

Time goes in ticks, one for each look at the run, so that no test waits.
"""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.pipelines.kubeflow.driver import Backend, Driver
from tests.pipelines.kubeflow.executors import Executor
from tests.pipelines.kubeflow.graph import Workflow, step
from tests.pipelines.kubeflow.nodes import Nodes
from tests.pipelines.kubeflow.specification import Refused
from tests.pipelines.kubeflow.tasks import Tasks

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
FINISHED = ("SUCCEEDED", "FAILED")


class Run:
    """One run of a pipeline on a backend."""

    def __init__(
        self,
        request: dict[str, Any],
        documents: list[dict[str, Any]],
        backend: Backend | None = None,
        executors: Mapping[str, Executor] | None = None,
        driver_faults: dict[str, int] | None = None,
        *,
        workflow: str = "",
    ) -> None:
        """A run that waits for its first look.

        Args:
            request: the body of the request that created the run.
            documents: the pipeline's specification, then its platforms.
            backend: version and settings of the server.
            executors: what the steps do, by task, where it is not what `EXECUTORS` has.
            driver_faults: how many times a task's driver fails, as for a time-out.
            workflow: name of the workflow, where a test wants the nodes' ids of a recording.
        """
        self.id = str(uuid.uuid4())
        self.request = request
        self.documents = documents
        self.history: list[dict[str, Any]] = []
        name = documents[0]["pipelineInfo"]["name"]
        self.nodes = Nodes(workflow or f"{name}-{self.id[:5]}", self.id, datetime.now(UTC))
        backend = backend or Backend()
        self._workflow = Workflow(self.nodes, backend)
        root = request.get("runtime_config", {}).get("pipeline_root", DEFAULT_ROOT)
        driver = Driver(backend, f"{root}/{name}/{self.id}")
        self.tasks = Tasks(documents, self.parameters, self._workflow, driver)
        self.tasks.executors = executors or {}
        self.tasks.driver_faults = driver_faults if driver_faults is not None else {}
        self._course = self.tasks.course()
        self._set("PENDING")

    @property
    def state(self) -> str:
        """The run's state."""
        return str(self.history[-1]["state"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The run's parameters, as they were given."""
        values: dict[str, Any] = self.request.get("runtime_config", {}).get("parameters", {})
        return values

    def advance(self) -> None:
        """One tick of the clock."""
        if self.state in FINISHED:
            return
        if self.state == "PENDING":
            self._set("RUNNING")
        phase = step(self._course)
        if phase:
            self._set("SUCCEEDED" if phase == "Succeeded" else "FAILED")
        self.nodes.tick += 1

    def to_the_end(self, ticks: int = 1000) -> "Run":
        """Let the run end."""
        for _ in range(ticks):
            self.advance()
            if self.state in FINISHED:
                return self
        raise AssertionError(f"the run has not ended: {self.nodes.table()}")

    def terminate(self) -> None:
        """Stop the run: the signal comes a tick later, then the exit handler runs.

        Raises:
            Refused: it has ended.
        """
        if self.state in FINISHED:
            raise Refused(f"run {self.id} has ended and cannot be terminated")
        self._set("CANCELING")
        self._workflow.deadline = self.nodes.tick + 1

    def retry(self) -> None:
        """Run again what has failed; what has succeeded is kept, and so is the exit handler.

        Raises:
            Refused: it has not failed.
        """
        if self.state != "FAILED":
            raise Refused("workflow must be Failed/Error to retry")
        self._workflow.deadline = None
        self.nodes.forget_failed()
        self._course = self.tasks.course()
        self._set("RUNNING")

    def delete_pod(self, task: str) -> None:
        """As `kubectl delete pod`, of the pod that works at a task, or of its `-driver`."""
        self.tasks.to_delete.add(task)

    def view(self) -> dict[str, Any]:
        """The run as the API shows it."""
        ended = self.state in FINISHED
        return {
            **self.request,
            "run_id": self.id,
            "state": self.state,
            "storage_state": "AVAILABLE",
            "created_at": self.nodes.time(0),
            "state_history": self.history,
            "run_details": {"task_details": list(self.nodes.details.values())},
            **({"finished_at": self.history[-1]["update_time"]} if ended else {}),
        }

    def _set(self, state: str) -> None:
        self.history.append({"update_time": self.nodes.time(self.nodes.tick), "state": state})
