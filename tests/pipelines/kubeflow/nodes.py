"""The nodes of a workflow: named and linked as Argo does it, shown as KFP shows them."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

SECONDS_PER_TICK = 10
"""The controller looks at a workflow about this often; each hop of a run takes as long."""

STATES = {
    "Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Failed": "FAILED",
    "Error": "FAILED", "Skipped": "SKIPPED", "Omitted": None,
}  # fmt: skip
"""Argo's phases as states of the API, which has none for what was never to start."""

UNSET = "1970-01-01T00:00:00Z"


def hashed(text: str) -> int:
    """FNV-1a in 32 bits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


@dataclass
class Node:
    """One node; its name is the path through the workflow, its display name the last part."""

    name: str
    display_name: str
    kind: str
    started: int
    phase: str = "Running"
    finished: int | None = None
    message: str = ""
    children: list[str] = field(default_factory=list)
    outbound: list[str] = field(default_factory=list)
    """For a DAG: the nodes that its last tasks end in."""


class Nodes:
    """The nodes of one workflow, and the run's task_details, which outlive them."""

    def __init__(self, workflow: str, run_id: str, created: datetime) -> None:
        self.workflow = workflow
        self.run_id = run_id
        self.created = created
        self.tick = 0
        self.by_name: dict[str, Node] = {}
        self.details: dict[str, dict[str, Any]] = {}

    def id(self, name: str) -> str:
        """The node's id, which is also the name of its pod."""
        return name if name == self.workflow else f"{self.workflow}-{hashed(name)}"

    def time(self, tick: int | None) -> str:
        """A moment of the run, as the API writes it."""
        if tick is None:
            return UNSET
        moment = self.created + timedelta(seconds=tick * SECONDS_PER_TICK)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def succeeded(self, name: str) -> bool:
        """Whether the node ended well, in this attempt at the run or in one before a Retry."""
        return name in self.by_name and self.by_name[name].phase == "Succeeded"

    def start(self, name: str, display_name: str, kind: str) -> Node:
        """A new node, or one that a Retry has kept and resumes."""
        node = self.by_name.get(name)
        if node is None:
            node = self.by_name[name] = Node(name, display_name, kind, self.tick)
        self.set(node, "Pending" if kind == "Pod" else "Running")
        return node

    def never_started(self, name: str, display_name: str, phase: str, message: str) -> None:
        """A node that is omitted or skipped."""
        node = self.by_name[name] = Node(name, display_name, "Skipped", self.tick)
        self.set(node, phase, message)

    def set(self, node: Node, phase: str, message: str = "") -> None:
        """Give a node a phase, and the API its state."""
        node.phase, node.message = phase, message
        node.finished = None if phase in ("Pending", "Running") else self.tick
        self._show(node)

    def link(self, parents: Iterable[str], child: str) -> None:
        """Make a node the child of others."""
        for parent in parents:
            children = self.by_name[parent].children
            if child not in children:
                children.append(child)
            self._show(self.by_name[parent])

    def ends_of(self, name: str) -> list[str]:
        """The nodes that the followers of a node become children of."""
        node = self.by_name[name]
        if node.kind == "Retry":
            # Followers of an exit handler's graph would hang on its last attempt too.
            return [child for child in node.children if child.endswith(")")][-1:] or [name]
        if node.kind == "DAG":
            return [end for child in node.outbound for end in self.ends_of(child)]
        if node.kind == "TaskGroup":
            return [end for child in node.children for end in self.ends_of(child)] or [name]
        return [name]

    def below(self, name: str) -> list[Node]:
        """The nodes inside a node."""
        return [
            node for key, node in self.by_name.items() if key.startswith((f"{name}(", f"{name}."))
        ]

    def forget_failed(self) -> None:
        """Prepare a Retry as Argo does: delete what has not succeeded, but keep graphs."""
        for name, node in list(self.by_name.items()):
            if node.phase != "Succeeded" and node.kind != "DAG":
                del self.by_name[name]

    def table(self) -> list[tuple[str, str, str, str]]:
        """Display name, type, phase and message, in order of start."""
        ordered = sorted(self.by_name.values(), key=lambda node: (node.started, node.display_name))
        return [(node.display_name, node.kind, node.phase, node.message) for node in ordered]

    def _show(self, node: Node) -> None:
        detail = self.details.setdefault(
            node.name,
            {"run_id": self.run_id, "task_id": str(uuid.uuid4()),
             "display_name": node.display_name, "create_time": self.time(0), "state_history": []},
        )  # fmt: skip
        state = STATES[node.phase]
        detail["start_time"], detail["end_time"] = self.time(node.started), self.time(node.finished)
        entry = {"update_time": self.time(self.tick)} | ({"state": state} if state else {})
        history = detail["state_history"]
        if not history or history[-1].get("state") != state:
            history.append(entry)
        detail.pop("state", None)
        if state:
            detail["state"] = state
        if node.children:
            detail["child_tasks"] = [{"pod_name": self.id(child)} for child in node.children]
