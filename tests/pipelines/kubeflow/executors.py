"""What stands for the containers of a run's steps: results that a test gives, or processes."""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from components.core.errors import ConfigError
from components.core.hardware import HardwareConfig

SECONDS_AFTER_SIGTERM = 0.9
"""The launcher has no handler for SIGTERM, so the container ends at about this time."""


@dataclass
class Pod:
    """One attempt at a step, as its driver has asked the cluster for it."""

    task: str
    image: str
    command: list[str]
    args: list[str]
    """As the cluster is told them."""
    started_with: list[str]
    """As the command gets them: from 2.17 on the same but for artifacts."""
    executor_input: dict[str, Any]
    resources: dict[str, dict[str, str]]
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    """The secret behind each variable that has one."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """The component's definitions of its outputs."""
    name: str = ""
    attempt: int = 0
    phase: str = "Pending"
    exit_code: int | None = None
    log: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that KFP sets."""
        return {"KFP_POD_NAME": self.name, "KFP_RETRY_INDEX": str(self.attempt)}


@dataclass(frozen=True)
class Result:
    """How an attempt ends, after some ticks of the run's clock."""

    exit_code: int = 0
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """The step's output parameters."""
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Metadata by output artifact."""
    ticks: int = 1
    deleted: bool = False
    """The pod is deleted rather than ending by itself."""
    log: str = ""


class Work(Protocol):
    """A container under way."""

    def poll(self) -> Result | None:
        """Asked once a tick: the end of the container, or None while it runs."""

    def stop(self) -> None:
        """SIGTERM, and the end soon after."""


Executor = Callable[[Pod], "Result | Work"]


@dataclass
class Waiting:
    """A result that comes after its ticks."""

    result: Result
    ticks: int = 0

    def poll(self) -> Result | None:
        self.ticks += 1
        return self.result if self.ticks >= self.result.ticks else None

    def stop(self) -> None:
        """Nothing runs."""


class Process:
    """A step that is a real process, so that signals and files are real."""

    def __init__(self, command: Sequence[str], result: Callable[[int], Result] = Result) -> None:
        self.process = subprocess.Popen(command)
        self.result = result

    def poll(self) -> Result | None:
        code = self.process.poll()
        return None if code is None else self.result(code)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(SECONDS_AFTER_SIGTERM)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def hardware(pod: Pod) -> Result:
    """The step `raft hardware`, given its command line as text, as the cluster does it."""
    flags = zip(pod.started_with[::2], pod.started_with[1::2], strict=True)
    settings = {flag.removeprefix("--").replace("-", "_"): value for flag, value in flags}
    settings.pop("executor_input", None)
    try:
        resolved = HardwareConfig.parse({"output": "-", **settings}).outputs()
    except ConfigError as error:
        return Result(2, log=str(error))
    names = pod.outputs.get("parameters", {})
    return Result(outputs=json.loads(json.dumps({name: getattr(resolved, name) for name in names})))


def gate_open(_: Pod) -> Result:
    """quantize-check passes."""
    return Result(outputs={"decision": "go"})


EXECUTORS: dict[str, Executor] = {"hardware": hardware, "quantize-check": gate_open}
"""By task; any other step succeeds without output parameters."""


def begin(executor: Executor, pod: Pod) -> Work:
    """Start an attempt."""
    started = executor(pod)
    return Waiting(started) if isinstance(started, Result) else started
