"""One training in several processes on one machine, one for each GPU: torchrun's launcher.

The stage itself stays one process: it reads, decides, and writes the artifact. `torchrun`, as a
library, starts this module once for each process, passes SIGTERM on, and ends the others when one
fails. What it cannot tell them is in a file: the job, and in return the error to report.
"""

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from components.core.errors import RaftError
from components.core.records import Record, Run, read_json
from components.core.redaction import guarded
from components.train.checkpoints import Checkpoints, Resumed
from components.train.config import TrainConfig
from components.train.signals import STOPPED

JOB, ERROR = "job.json", "error.json"
SECONDS_TO_STOP = 120
"""How long the processes may take to write a checkpoint, before they are killed."""


class Job(Record):
    """A training's settings, what its checkpoints depend on, and the one to resume, or "".

    stage: the process that waits for them.
    """

    config: dict[str, Any]
    identity: dict[str, str]
    resumed: str
    stage: int


class Failure(Record):
    """The error of a process, for the stage to raise."""

    problem: str
    hint: str
    exit_code: int


def processes(config: TrainConfig) -> int:
    """How many: as given, else one for each GPU."""
    if config.processes:
        return config.processes
    import torch

    return max(int(torch.cuda.device_count()), 1)


def train_in_processes(
    config: TrainConfig, checkpoints: Checkpoints, resumed: Resumed | None, number: int
) -> None:
    """Train in so many processes; the result is where `checkpoints` keeps it.

    Raises:
        RaftError: what a process raised, or it was killed.
        SystemExit: SIGTERM came.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    job = Job(
        config=config.model_dump(mode="json"),
        identity=checkpoints.identity,
        resumed=str(resumed.folder) if resumed else "",
        stage=os.getpid(),
    )
    before = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory(prefix="raft-processes-") as scratch:
        (Path(scratch) / JOB).write_text(job.model_dump_json(), encoding="utf-8")
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGTERM",
            shutdown_timeout=SECONDS_TO_STOP,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            elastic_launch(launch, sys.executable)("-m", "components.train.distributed", scratch)
        except SignalException:
            sys.exit(STOPPED)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            _raise(Path(scratch) / ERROR, failure.exitcode)
        finally:
            signal.signal(signal.SIGTERM, before)


def _raise(error: Path, exit_code: int) -> None:
    if error.exists():
        failure = read_json(error, Failure)
        raised = RaftError(failure.problem, hint=failure.hint)
        raised.exit_code = failure.exit_code
        raise raised
    if exit_code in (STOPPED, -signal.SIGTERM):
        sys.exit(STOPPED)  # a process was sent SIGTERM, and not this one
    raise RaftError(
        f"a training process ended with exit code {exit_code}",
        hint="Its last lines are in the log above; -9 is a kill for lack of memory.",
    )


# ---- in each process ----------------------------------------------------------------------------


def work(scratch: Path) -> None:
    """Read the job, and train this process's share."""
    job = read_json(scratch / JOB, Job)
    _end_with(job.stage)
    import torch

    from components.core.models import load_tokenizer
    from components.train.rows import read_rows
    from components.train.trainer import train_adapter

    config = TrainConfig.parse(job.config)
    checkpoints = Checkpoints.of(config, job.identity)
    folder = Path(job.resumed)
    resumed = Resumed(folder, read_json(folder / Run.FILE, Run)) if job.resumed else None
    try:
        tokenizer = load_tokenizer(config.base_model)
        rows = read_rows(config, tokenizer)
        train_adapter(config, tokenizer, rows, checkpoints, resumed)
    except RaftError as error:
        failure = Failure(problem=str(error), hint=error.hint, exit_code=error.exit_code)
        (scratch / ERROR).write_text(failure.model_dump_json(), encoding="utf-8")
        sys.exit(error.exit_code)
    torch.distributed.destroy_process_group()


def _end_with(stage: int) -> None:
    """End this process when the stage has ended.

    A stage that is killed cannot end its processes, and they would write checkpoints next to those
    of the next attempt.
    """

    def watch() -> None:
        while os.getppid() == stage:
            time.sleep(0.5)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    with guarded():
        try:
            work(Path(sys.argv[1]))
        except Exception:
            traceback.print_exc()  # here, where secrets are taken out of it
            sys.exit(1)
