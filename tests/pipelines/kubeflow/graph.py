"""Argo's way through a workflow: graphs of tasks, pods and their attempts, in ticks of a clock.

A course is a generator: it yields once a tick and ends in a phase, so that graphs run side by side.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from tests.pipelines.kubeflow.driver import Backend
from tests.pipelines.kubeflow.nodes import SECONDS_PER_TICK, Node, Nodes

NOT_MET = "omitted: depends condition not met"

Course = Generator[None, None, str]
PodWork = Callable[[Node, int], Generator[None, None, tuple[str, str]]]
"""Given the pod's node and the attempt's number; ends in a phase and a message."""


@dataclass(frozen=True)
class RetryStrategy:
    """When a pod is tried again."""

    limit: int
    retried: str
    """The phase that is retried: Failed (Argo's own choice) or Error (a deleted pod)."""
    seconds: float = 0
    factor: float = 1

    def ticks(self, attempt: int) -> int:
        """How long the controller waits before it looks at the attempt again."""
        return round(self.seconds * self.factor**attempt / SECONDS_PER_TICK)


@dataclass
class Task:
    """A task of a graph: what it waits for, and its course under a node's name."""

    needs: list[str]
    course: Callable[[str], Course]


class Workflow:
    """The controller's work on one workflow."""

    def __init__(self, nodes: Nodes, backend: Backend) -> None:
        self.nodes = nodes
        self.backend = backend
        self.deadline: int | None = None
        """The tick at which a terminated workflow's pods get their signal."""

    def stopped(self, name: str) -> bool:
        """Whether the workflow is terminated for a node; exit handlers run all the same."""
        after = self.deadline is not None and self.nodes.tick >= self.deadline
        return after and ".onExit" not in name

    def inside(self, name: str) -> str:
        """The node that a graph's tasks are named after."""
        return f"{name}(0)" if self.backend.template_defaults else name

    def dag(
        self, name: str, display_name: str, tasks_of: Callable[[str], dict[str, Task]]
    ) -> Course:
        """A graph; `tasks_of` is given the name of its node."""
        if self.nodes.succeeded(name):
            return "Succeeded"
        if not self.backend.template_defaults:
            return (yield from self._tasks(self.nodes.start(name, display_name, "DAG"), tasks_of))
        retry = self.nodes.start(name, display_name, "Retry")
        self.nodes.link([name], f"{name}(0)")
        dag = self.nodes.start(f"{name}(0)", f"{display_name}(0)", "DAG")
        phase = yield from self._tasks(dag, tasks_of)
        self.nodes.set(retry, phase, self._deadline_message(name, phase))
        return phase

    def _tasks(self, dag: Node, tasks_of: Callable[[str], dict[str, Task]]) -> Course:
        """Start each task when those that it needs have ended, until all have."""
        tasks = tasks_of(dag.name)
        phases: dict[str, str] = {}
        active: dict[str, Course] = {}
        while len(phases) < len(tasks):
            ready = [
                key for key, task in tasks.items()
                if key not in phases and key not in active and phases.keys() >= set(task.needs)
            ]  # fmt: skip
            for key in ready:
                name, needs = f"{dag.name}.{key}", tasks[key].needs
                parents = [
                    end for need in needs for end in self.nodes.ends_of(f"{dag.name}.{need}")
                ]
                self.nodes.link(parents or [dag.name], name)
                if all(phases[need] == "Succeeded" for need in needs):
                    active[key] = tasks[key].course(name)
                else:
                    self.nodes.never_started(name, key, "Omitted", NOT_MET)
                    phases[key] = "Omitted"
            if not ready:
                yield
            for key in ready or list(active):
                if key in active and (phase := step(active[key])):
                    del active[key]
                    phases[key] = phase
        needed = {need for task in tasks.values() for need in task.needs}
        dag.outbound = [f"{dag.name}.{key}" for key in tasks if key not in needed]
        phase = "Failed" if "Failed" in phases.values() else "Succeeded"
        self.nodes.set(dag, phase)
        return phase

    def pod(self, name: str, strategy: RetryStrategy | None, work: PodWork) -> Course:
        """A pod, and further attempts where it fails."""
        if self.nodes.succeeded(name):
            return "Succeeded"
        display_name = name.rpartition(".")[2]
        if strategy is None:
            pod = self.nodes.start(name, display_name, "Pod")
            phase, message = yield from work(pod, 0)
            self.nodes.set(pod, phase, message)
            return "Succeeded" if phase == "Succeeded" else "Failed"
        retry = self.nodes.start(name, display_name, "Retry")
        for attempt in range(strategy.limit + 1):
            self.nodes.link([name], f"{name}({attempt})")
            pod = self.nodes.start(f"{name}({attempt})", f"{display_name}({attempt})", "Pod")
            phase, message = yield from work(pod, attempt)
            self.nodes.set(pod, phase, message)
            if phase == "Succeeded":
                break
            if attempt == strategy.limit:
                message = "No more retries left"
                break
            # The controller looks at what the policy allows only after the backoff.
            for _ in range(strategy.ticks(attempt)):
                if not self.stopped(name):
                    yield
            if self.stopped(name) or phase != strategy.retried:
                break
        self.nodes.set(retry, phase, self._deadline_message(name, phase) or message)
        return "Succeeded" if phase == "Succeeded" else "Failed"

    def each(self, name: str, iterations: list[Callable[[str], Course]]) -> Course:
        """The iterations of a loop, side by side."""
        group = self.nodes.start(name, name.rpartition(".")[2], "TaskGroup")
        names = [f"{name}({index}:{index})" for index in range(len(iterations))]
        for iteration in names:
            self.nodes.link([name], iteration)
        active = [course(iteration) for course, iteration in zip(iterations, names, strict=True)]
        phases: list[str] = []
        while active:
            ended = {id(course): phase for course in active if (phase := step(course))}
            active = [course for course in active if id(course) not in ended]
            phases += ended.values()
            if active:
                yield
        phase = "Failed" if "Failed" in phases else "Succeeded"
        self.nodes.set(group, phase)
        return phase

    def _deadline_message(self, name: str, phase: str) -> str:
        if phase == "Succeeded" or not self.stopped(name):
            return ""
        start = f"{self.nodes.created:%Y-%m-%d %H:%M:%S}"
        return f"retry exceeded workflow deadline {start} +0000 UTC"


def step(course: Course) -> str:
    """Let a course go on to its next tick; its phase if that was its end."""
    try:
        next(course)
    except StopIteration as end:
        return str(end.value)
    return ""
