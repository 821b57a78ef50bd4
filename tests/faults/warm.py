"""The `raft` command as a process of its own that starts in an instant, to be killed.

Start-up is most of a small run's life: seconds of importing torch. A mother process that has the
libraries loaded forks for every run; the fork is the command, with a process id, memory, open
files, threads and an end of its own. (That start-up survives a kill too is tried cold.)

It can kill itself with SIGKILL at its n-th change of a file under a folder, and count the calls of
one method in a file that outlives it.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.conftest import REPOSITORY

LIBRARIES = (
    "torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "trl",
    "bitsandbytes", "datasets", "lm_eval", "aiohttp", "google.cloud.storage",
    "tensorboardX", "components.train.trainer", "components.eval.eval",
    "components.generate.generate", "components.quantize_check.quantize_check",
)  # fmt: skip

CHANGES = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link",
}  # fmt: skip
"""Audit events of a change, beside `open` for writing."""


@dataclass
class Order:
    """One run of the command.

    Attributes:
        arguments: of `raft`.
        log: the file that receives standard output and error.
        environment: variables that differ from the mother's; None takes one away.
        group: a memory cgroup's folder that the process joins first, or "".
        under: changes of files count in these folders, and below.
        changes: a file that receives a byte for every change, or "".
        kill_at: the change, from 1, before which the process is killed; 0 is never.
        method: "module:Class.method" whose calls are counted, or "".
        calls: a file that receives a byte for every call of it.
    """

    arguments: list[str]
    log: str
    environment: dict[str, str | None] = field(default_factory=dict)
    group: str = ""
    under: list[str] = field(default_factory=list)
    changes: str = ""
    kill_at: int = 0
    method: str = ""
    calls: str = ""


class Mother:
    """The process that forks; use as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=REPOSITORY,
            # One thread: how threads split a sum decides its last digits.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, order: Order) -> "Run":
        """Start a run; one at a time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return Run(int(self._line()), Path(order.log), self._line)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Run:
    """A run under way: its process id, and its exit code once it has ended (-9 after SIGKILL)."""

    def __init__(self, pid: int, log: Path, read: Any) -> None:
        self.pid = pid
        self.log = log
        self.code: int | None = None
        self.started = time.monotonic()
        self.seconds = 0.0
        self._read = read
        self._waiting = threading.Thread(target=self._wait)
        self._waiting.start()

    def _wait(self) -> None:
        self.code = int(self._read())
        self.seconds = time.monotonic() - self.started

    def wait(self, seconds: float = 120) -> int:
        """Until it has ended.

        Raises:
            AssertionError: it still runs after so many seconds; it is killed.
        """
        self._waiting.join(seconds)
        late = self.code is None
        if late:
            self.signal(signal.SIGKILL)
            self._waiting.join()
        assert not late, f"still running after {seconds} s:\n{self.printed()}"
        assert self.code is not None
        return self.code

    def ended_within(self, seconds: float) -> bool:
        """Wait so long; whether it has ended by then."""
        self._waiting.join(seconds)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


# ---- in the mother -----------------------------------------------------------------------------


def serve() -> Order | None:
    """Fork for every order; returns the order in a fork, None in the mother at the end."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return Order(**json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(order: Order) -> None:
    """Run the command in this fork; the end is the command's own."""
    if order.group:
        (Path(order.group) / "cgroup.procs").write_text(str(os.getpid()))
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    for name, value in order.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None  # the mother's, from before TMPDIR was set
    if order.method:
        count_calls(order.method, order.calls)
    if order.under:
        mind_changes(order)
    from pipelines.cli import main

    try:
        main(order.arguments)
    except SystemExit as end:
        # As Python ends, but without clearing away what is loaded: that would copy the mother's
        # memory into the fork, which is then killed for memory that the command never took.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        os._exit(int(end.code or 0))


def count_calls(method: str, path: str) -> None:
    """Append a byte to a file at every call of a method, after the call."""
    module, _, name = method.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, last)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counted(*args: Any, **named: Any) -> Any:
        result = original(*args, **named)
        os.write(file, b".")
        return result

    setattr(owner, last, counted)


def mind_changes(order: Order) -> None:
    """Count the changes of files, and die before the one that is ordered."""
    file = os.open(order.changes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    folders = tuple(order.under)
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            # Of os.open and open: path, mode, flags.
            change = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            change = event in CHANGES
        if not change or not any(str(path).startswith(folders) for path in arguments[:2]):
            return
        seen[0] += 1
        if seen[0] == order.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(file, b".")

    sys.addaudithook(hook)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 (loads lazily)
    from trl import SFTTrainer  # noqa: F401 (the same)

    gc.freeze()  # what is loaded is not looked through, and so not copied, in every fork
    print("ready", flush=True)
    ordered = serve()
    if ordered is not None:
        become(ordered)
