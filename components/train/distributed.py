"""One training in several processes on one machine, one for each GPU: torch's launcher.

The stage itself stays one process: it reads, decides, and writes the artifact. Its processes end
when it does: they would otherwise write checkpoints next to those of the next attempt.
"""

import multiprocessing
import os
import signal
import socket
import sys
from typing import Any

from components.core.errors import RaftError
from components.core.redaction import guarded
from components.train.checkpoints import Checkpoints, Resumed
from components.train.config import TrainConfig
from components.train.rows import Rows
from components.train.signals import STOPPED

SECONDS_TO_STOP = 120.0
"""How long the processes may take to end when one has failed, before they are killed."""


def processes(config: TrainConfig) -> int:
    """How many: as given, else one for each GPU."""
    if config.processes:
        return config.processes
    import torch

    return max(int(torch.cuda.device_count()), 1)


def train_in_processes(
    config: TrainConfig,
    tokenizer: Any,
    rows: Rows,
    checkpoints: Checkpoints,
    resumed: Resumed | None,
    number: int,
) -> None:
    """Train in so many processes; the result is where `checkpoints` keeps it.

    Raises:
        RaftError: what a process raised, or it was killed.
        SystemExit: SIGTERM came.
    """
    from torch.multiprocessing import ProcessExitedException, start_processes

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    job = (config, tokenizer, rows, checkpoints.identity, resumed)
    started = start_processes(_train_share, (environment, errors, job), number, join=False)

    def stop(*_: object) -> None:
        for process in started.processes:
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while not started.join(grace_period=SECONDS_TO_STOP):
            pass
    except ProcessExitedException as error:
        if not errors.empty():
            raise errors.get() from None
        if error.exit_code in (STOPPED, -signal.SIGTERM):
            sys.exit(STOPPED)
        raise RaftError(
            f"a training process ended with exit code {error.exit_code}",
            hint="Its last lines are in the log above; -9 is a kill for lack of memory.",
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _train_share(rank: int, environment: dict[str, str], errors: Any, job: tuple[Any, ...]) -> None:
    """Train one process's share; an error is for the stage to raise."""
    # torch sends SIGINT when the stage has ended. By default it ends a process that waits, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    from components.train.trainer import train_adapter

    config, tokenizer, rows, identity, resumed = job
    with guarded():
        try:
            train_adapter(config, tokenizer, rows, Checkpoints.of(config, identity), resumed)
        except RaftError as error:
            errors.put(error)
            sys.exit(error.exit_code)
    torch.distributed.destroy_process_group()
