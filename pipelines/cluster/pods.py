"""What the pods of a run wait for or do, as the cluster of kubectl's kubeconfig shows it.

Kubeflow's server reports no more than that a pod is pending or running.
"""

import re
from contextlib import suppress
from typing import Any

from components.core.errors import ClusterError
from components.core.progress import say
from pipelines.cluster.connection import connect

STEP = "app.kubernetes.io/component"
PROGRESS = re.compile(r"\d+/\d+ \w+")
"""What a line of a log that shows progress has; see components/core/progress.py."""


class Pods:
    """The pods of one run; nothing is shown where the cluster cannot be asked."""

    def __init__(self, run_id: str, namespace: str) -> None:
        self.selector, self.namespace = f"pipeline/runid={run_id},{STEP}", namespace
        try:
            self.core: Any = connect()[0]
        except ClusterError:  # there is no kubeconfig
            self.core = None

    def phases(self) -> dict[str, str]:
        """By step, what its pod waits for or does; nothing of trials that run side by side."""
        if self.core is None:
            return {}
        try:
            pods = self.core.list_namespaced_pod(
                self.namespace, label_selector=self.selector, _request_timeout=10
            ).items
            active = [pod for pod in pods if pod.status.phase in ("Pending", "Running")]
            steps = [pod.metadata.labels[STEP] for pod in active]
            phases = {step: self._phase(pod) for step, pod in zip(steps, active, strict=True)}
            return {step: text for step, text in phases.items() if text and steps.count(step) == 1}
        except ClusterError as error:
            say(f"  what pods wait for is not shown: {error}")
            self.core = None
            return {}

    def _phase(self, pod: Any) -> str:
        if pod.status.phase == "Running":
            return self._progress(pod.metadata.name)
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"waiting for a node ({condition.message})"
        waiting = [
            status.state.waiting
            for status in pod.status.container_statuses or []
            if status.state.waiting
        ]
        detail = next((entry.message or entry.reason for entry in waiting), "ContainerCreating")
        return f"pulling its image ({detail})"

    def _progress(self, pod: str) -> str:
        """The last line of a step's log that shows its progress."""
        with suppress(ClusterError):  # the pod is gone, or its container has not started
            text = self.core.read_namespaced_pod_log(
                pod, self.namespace, container="main", tail_lines=20
            )
            lines = [line.strip() for line in text.splitlines() if PROGRESS.search(line)]
            return lines[-1] if lines else ""
        return ""
