"""The tasks of a run: for each task of the pipeline its driver, and then its container or graph."""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

from tests.pipelines.kubeflow.driver import (
    Driver,
    DriverError,
    Outputs,
    Scope,
    condition_holds,
    defaults,
    resolve_inputs,
)
from tests.pipelines.kubeflow.executors import EXECUTORS, Executor, Pod, Result, begin
from tests.pipelines.kubeflow.graph import Course, RetryStrategy, Task, Workflow
from tests.pipelines.kubeflow.nodes import Node

COMPLETED = "ALL_UPSTREAM_TASKS_COMPLETED"
SIGNALLED = "main: Error (exit code 143)"
FAILED = "main: Error (exit code 1)"
DELETED = "pod deleted"


class Tasks:
    """The tasks of one run and their results, which a Retry keeps."""

    def __init__(
        self,
        documents: list[dict[str, Any]],
        parameters: Mapping[str, Any],
        workflow: Workflow,
        driver: Driver,
    ) -> None:
        self.specification, *self.platforms = documents
        self.workflow = workflow
        self.nodes = workflow.nodes
        self.driver = driver
        self.executors: Mapping[str, Executor] = {}
        self.driver_faults: dict[str, int] = {}
        self.driver_logs: dict[str, str] = {}
        self.pods: list[Pod] = []
        self.to_delete: set[str] = set()
        self._inputs = Scope({**defaults(self.specification["root"]), **parameters}, {})
        self._resolved: dict[str, Any] = {}
        """What drivers have resolved for their tasks, by the driver's node."""
        self._reports: dict[str, str] = {}
        """What launchers have reported, by the task's node."""
        self._artifacts = 0

    def course(self) -> Course:
        """The whole workflow, or what a Retry has left of it to do."""
        root = self.specification["root"]
        tasks = {
            "root-driver": Task([], lambda name: self._driver(name, "root", lambda: self._inputs)),
            "root": Task(["root-driver"], lambda name: self._graph(name, root, self._inputs)),
        }
        name = self.nodes.workflow
        return self.workflow.dag(name, name, lambda _: tasks)

    # ---- graphs ----

    def _graph(self, name: str, component: Mapping[str, Any], scope: Scope) -> Course:
        """A component that is a graph."""
        display_name = name.rpartition(".")[2]
        return self.workflow.dag(
            name, display_name, lambda node: self._tasks_of(node, component, scope)
        )

    def _tasks_of(self, node: str, component: Mapping[str, Any], scope: Scope) -> dict[str, Task]:
        hooks = {
            key: task for key, task in component["dag"]["tasks"].items()
            if task.get("triggerPolicy", {}).get("strategy") == COMPLETED
        }  # fmt: skip
        tasks: dict[str, Task] = {}
        for key, task in component["dag"]["tasks"].items():
            if key in hooks:
                continue
            tasks |= self._with_driver(node, key, task, scope)
            for name, hook in hooks.items():
                if key in hook["dependentTasks"]:
                    exit_tasks = self._with_driver(node, name, hook | {"dependentTasks": []}, scope)
                    tasks[key] = self._with_hook(tasks[key], exit_tasks)
        return tasks

    def _with_driver(
        self, node: str, key: str, task: Mapping[str, Any], scope: Scope
    ) -> dict[str, Task]:
        """The driver of a task and the task itself; a loop has its driver inside."""
        needs = list(task.get("dependentTasks", []))
        if "parameterIterator" in task:
            return {key: Task(needs, lambda name: self._loop(name, key, task, scope))}

        def resolve() -> Any:
            return self._resolve(node, key, task, scope)

        return {
            f"{key}-driver": Task(needs, lambda name: self._driver(name, key, resolve)),
            key: Task([f"{key}-driver"], lambda name: self._task(name, key, task, scope)),
        }

    def _with_hook(self, task: Task, exit_tasks: dict[str, Task]) -> Task:
        """A task with an exit handler: it runs once for each task that it waits for."""

        def course(name: str) -> Course:
            phase = yield from task.course(name)
            self.nodes.link([name], f"{name}.onExit")
            display_name = f"{name.rpartition('.')[2]}.onExit"
            yield from self.workflow.dag(f"{name}.onExit", display_name, lambda _: exit_tasks)
            return phase

        return Task(task.needs, course)

    def _loop(self, name: str, key: str, task: Mapping[str, Any], scope: Scope) -> Course:
        component = self._component(task)
        driver = f"{self.workflow.inside(name)}.iteration-driver"

        def iterations(group: str) -> Course:
            return self.workflow.each(
                group,
                [self._iteration(key, component, item) for item in self._resolved[driver]],
            )

        tasks = {
            "iteration-driver": Task(
                [], lambda node: self._driver(node, key, lambda: items(task, scope))
            ),
            "iteration-iterations": Task(["iteration-driver"], iterations),
        }
        phase = yield from self.workflow.dag(name, key, lambda _: tasks)
        if phase == "Succeeded":
            scope.tasks[key] = outputs(component, self._resolved[driver], is_loop=True)
        return phase

    def _iteration(
        self, key: str, component: Mapping[str, Any], scope: Scope
    ) -> Callable[[str], Course]:
        tasks = {
            "iteration-item-driver": Task([], lambda name: self._driver(name, key, lambda: scope)),
            "iteration-item": Task(
                ["iteration-item-driver"], lambda name: self._graph(name, component, scope)
            ),
        }
        return lambda name: self.workflow.dag(name, name.rpartition(".")[2], lambda _: tasks)

    # ---- tasks ----

    def _component(self, task: Mapping[str, Any]) -> dict[str, Any]:
        component: dict[str, Any] = self.specification["components"][task["componentRef"]["name"]]
        return component

    def _driver(self, name: str, task: str, resolve: Callable[[], Any]) -> Course:
        """The pod of a driver; what it resolves is kept for the task, and for a Retry."""

        def work(_: Node, __: int) -> Generator[None, None, tuple[str, str]]:
            yield
            if self.workflow.stopped(name):
                return "Failed", SIGNALLED
            if self._is_deleted(f"{task}-driver"):
                return "Error", DELETED
            try:
                if self.driver_faults.get(task, 0):
                    self.driver_faults[task] -= 1
                    raise DriverError("rpc error: code = DeadlineExceeded")
                self._resolved[name] = resolve()
            except DriverError as error:
                self.driver_logs[task] = str(error)
                return "Failed", FAILED
            return "Succeeded", ""

        return self.workflow.pod(name, self._strategy({}), work)

    def _resolve(self, node: str, key: str, task: Mapping[str, Any], scope: Scope) -> Any:
        """What a driver resolves: a pod, or a graph's inputs and whether its condition holds."""
        component = self._component(task)
        inputs = resolve_inputs(task, scope, lambda task: self._final_status(node, task))
        if "dag" in component:
            condition = task.get("triggerPolicy", {}).get("condition")
            holds = condition is None or condition_holds(condition, inputs.parameters)
            return replace(inputs, parameters={**defaults(component), **inputs.parameters}), holds
        label = component["executorLabel"]
        platform: dict[str, Any] = {}
        for document in self.platforms:
            settings = document["platforms"].get("kubernetes", {}).get("deploymentSpec", {})
            platform |= settings.get("executors", {}).get(label, {})
        container = self.specification["deploymentSpec"]["executors"][label]["container"]
        return self.driver.pod(key, task, component, container, platform, inputs, scope)

    def _task(self, name: str, key: str, task: Mapping[str, Any], scope: Scope) -> Course:
        resolved = self._resolved[f"{name}-driver"]
        if isinstance(resolved, Pod):
            executor = Task([], lambda node: self._executor(node, name, task, resolved, scope))
            return (yield from self.workflow.dag(name, key, lambda _: {"executor": executor}))
        inputs, holds = resolved
        if not holds:
            message = "when 'false != false' evaluated false"
            self.nodes.never_started(name, key, "Skipped", message)
            return "Skipped"
        component = self._component(task)
        phase = yield from self._graph(name, component, inputs)
        if phase == "Succeeded":
            scope.tasks[key] = outputs(component, [inputs])
        return phase

    def _executor(
        self, name: str, task_node: str, task: Mapping[str, Any], template: Pod, scope: Scope
    ) -> Course:
        """A step's pod: the launcher, and in it the executor."""

        def work(node: Node, attempt: int) -> Generator[None, None, tuple[str, str]]:
            pod = replace(template, name=self.nodes.id(node.name), attempt=attempt)
            self.pods.append(pod)
            executors = {**EXECUTORS, **self.executors}
            running = begin(executors.get(pod.task, lambda _: Result()), pod)
            result = None
            while result is None:
                yield
                is_stopped = self.workflow.stopped(name)
                if is_stopped or self._is_deleted(pod.task):
                    running.stop()
                    pod.phase, pod.exit_code = "Failed", 143
                    return ("Failed", SIGNALLED) if is_stopped else ("Error", DELETED)
                result = running.poll()
                pod.phase = "Running"
                if result is None:
                    self.nodes.set(node, "Running")
            pod.log, pod.phase = result.log, "Failed"
            if result.deleted:
                return "Error", DELETED
            if result.exit_code:
                pod.exit_code = 1  # the launcher's, whatever the step's own
                self._reports[task_node] = "FAILED"
                return "Failed", FAILED
            pod.exit_code, pod.phase = 0, "Succeeded"
            self._reports[task_node] = "COMPLETE"
            scope.tasks[pod.task] = self._published(pod, result)
            return "Succeeded", ""

        return self.workflow.pod(name, self._strategy(task), work)

    def _is_deleted(self, task: str) -> bool:
        is_deleted = task in self.to_delete
        self.to_delete.discard(task)
        return is_deleted

    def _strategy(self, task: Mapping[str, Any]) -> RetryStrategy | None:
        has_defaults = self.driver.backend.template_defaults
        retried = "Error" if has_defaults else "Failed"
        policy = task.get("retryPolicy")
        if policy is None:
            return RetryStrategy(2, retried) if has_defaults else None
        seconds = float(policy["backoffDuration"].removesuffix("s"))
        return RetryStrategy(policy["maxRetryCount"], retried, seconds, policy["backoffFactor"])

    def _final_status(self, node: str, task: str) -> dict[str, Any]:
        """What an exit handler receives; RUNNING where no launcher could report the end."""
        name = f"{node}.{task}"
        reports = {
            s for key, s in self._reports.items() if key.startswith((f"{name}(", f"{name}."))
        }
        skipped = any(inner.kind == "Skipped" for inner in self.nodes.below(name))
        state = "RUNNING"
        if "FAILED" in reports:
            state = "FAILED"
        elif self.nodes.succeeded(name) and not skipped and self.driver.backend.reports_success:
            state = "COMPLETE"
        return {
            "error": {},
            "pipelineJobResourceName": self.nodes.workflow,
            "pipelineTaskName": task,
            "state": state,
        }

    def _published(self, pod: Pod, result: Result) -> Outputs:
        """A step's results as the metadata store has them."""
        missing = pod.outputs.get("parameters", {}).keys() - result.outputs.keys()
        assert not missing, f"the executor of {pod.task} gives no {sorted(missing)}"
        artifacts = {}
        for key, entry in pod.executor_input["outputs"]["artifacts"].items():
            self._artifacts += 1
            (artifact,) = entry["artifacts"]
            metadata = {"display_name": key, **result.metadata.get(key, {})}
            artifacts[key] = [
                {"name": str(self._artifacts), "uri": artifact["uri"], "metadata": metadata}
            ]
        return Outputs(dict(result.outputs), artifacts)


def items(task: Mapping[str, Any], scope: Scope) -> list[Scope]:
    """The inputs of each iteration of a loop."""
    inputs = resolve_inputs(task, scope, lambda _: None)
    iterator = task["parameterIterator"]
    source = iterator["items"]
    values = source["raw"] if "raw" in source else inputs.parameters[source["inputParameter"]]
    values = json.loads(values) if isinstance(values, str) else values
    name = iterator["itemInput"]
    return [Scope({**inputs.parameters, name: value}, inputs.artifacts) for value in values]


def outputs(component: Mapping[str, Any], scopes: list[Scope], is_loop: bool = False) -> Outputs:
    """The results of a graph, or of all iterations of a loop as lists."""
    declared = component["dag"].get("outputs", {})
    artifacts = {
        name: [
            artifact
            for scope in scopes
            for selector in selectors["artifactSelectors"]
            if selector["producerSubtask"] in scope.tasks
            for artifact in scope.tasks[selector["producerSubtask"]].artifacts[
                selector["outputArtifactKey"]
            ]
        ]
        for name, selectors in declared.get("artifacts", {}).items()
    }
    parameters = {}
    for name, source in declared.get("parameters", {}).items():
        selectors = source.get("valueFromOneof", {}).get("parameterSelectors", [])
        values = [
            scope.tasks[selector["producerSubtask"]].parameters[selector["outputParameterKey"]]
            for scope in scopes
            for selector in selectors or [source["valueFromParameter"]]
            if selector["producerSubtask"] in scope.tasks
        ]
        parameters[name] = values if is_loop else values[0]
    return Outputs(parameters, artifacts)
