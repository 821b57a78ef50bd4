"""One training in several processes on one machine, one for each GPU.

The stage itself stays one process: it reads, decides, and writes the artifact. For each setting
it starts the workers, hands them a file that says what to do, passes SIGTERM on, and waits. They
find each other by torch's usual environment variables. If one fails, the others are ended.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components.core.errors import Diverged, RaftError
from components.core.records import Record, Run, TrainingRecord, read_json
from components.core.redaction import guarded
from components.train.checkpoints import FINISHED, Checkpoints
from components.train.config import TrainConfig

JOB, ERROR = "job.json", "error.json"


class Job(Record):
    """What the workers are told: one setting, its checkpoints, and the one to go on from, or "".

    stage: the process that waits for them.
    """

    config: dict[str, Any]
    found: str
    answers: int
    folder: str
    remote: str
    kept: int
    identity: dict[str, str]
    stage: int


class Failure(Record):
    """Why a worker gave up, for the stage to say.

    diverged: the stage may go on with the next setting of a sweep.
    """

    problem: str
    hint: str
    exit_code: int
    diverged: bool


def processes(config: TrainConfig) -> int:
    """How many: as given, else one for each GPU."""
    if config.processes:
        return config.processes
    import torch

    return max(int(torch.cuda.device_count()), 1)


def fit(
    config: TrainConfig,
    checkpoints: Checkpoints,
    found: tuple[Path, Run] | None,
    number: int,
    answers: int,
) -> TrainingRecord:
    """Train one setting in so many processes.

    Raises:
        Diverged: the training did.
        RaftError: what else a worker raised.
        SystemExit: SIGTERM came, or a worker was killed.
    """
    with tempfile.TemporaryDirectory(prefix="raft-workers-") as scratch:
        job = Job(
            config=config.model_dump(mode="json"),
            found=str(found[0]) if found else "",
            answers=answers,
            folder=str(checkpoints.folder),
            remote=checkpoints.remote,
            kept=checkpoints.kept,
            identity=checkpoints.identity,
            stage=os.getpid(),
        )
        (Path(scratch) / JOB).write_text(job.model_dump_json(), encoding="utf-8")
        port = _free_port()
        workers = [_start(scratch, rank, number, port) for rank in range(number)]
        with _passing_on_sigterm(workers) as heard:
            code = _wait(workers)
        if (Path(scratch) / ERROR).exists():
            failure = read_json(Path(scratch) / ERROR, Failure)
            kind = Diverged if failure.diverged else RaftError
            error = kind(failure.problem, hint=failure.hint)
            error.exit_code = failure.exit_code
            raise error
        code = code if code >= 0 else 128 - code
        if heard.is_set() or code == 128 + signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)  # also when they were done before it could reach them
        if code:
            raise RaftError(
                f"a worker ended with exit code {code}",
                hint="Its last words are in the log above; 137 is a kill for lack of memory.",
            )
    return read_json(checkpoints.folder / FINISHED / TrainingRecord.FILE, TrainingRecord)


def _start(scratch: str, rank: int, number: int, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": number,
        "LOCAL_WORLD_SIZE": number,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return subprocess.Popen(  # noqa: S603 (ourselves)
        [sys.executable, "-m", "components.train.distributed", scratch],
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _passing_on_sigterm(workers: "list[subprocess.Popen[bytes]]") -> Iterator[threading.Event]:
    heard = threading.Event()

    def pass_on(*_: object) -> None:
        heard.set()
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.kill()
            worker.wait()


def _wait(workers: "list[subprocess.Popen[bytes]]") -> int:
    """Until all have ended, or one has failed; the first code that is not 0."""
    while True:
        codes = [worker.poll() for worker in workers]
        if failed := [code for code in codes if code]:
            for worker in workers:
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(timeout=20)  # one that was stopped leaves with its checkpoint
            return failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


# ---- a worker -----------------------------------------------------------------------------------


def work(scratch: Path) -> None:
    """What a worker does: read the job, and train its share."""
    job = read_json(scratch / JOB, Job)
    _end_with(job.stage)
    import torch

    from components.core.models import load_tokenizer
    from components.train.chat import read_examples
    from components.train.trainer import fit as train_alone

    config = TrainConfig.parse(job.config)
    tokenizer = load_tokenizer(config.base_model)
    checkpoints = Checkpoints(Path(job.folder), job.remote, job.kept, job.identity)
    folder = Path(job.found)
    found = (folder, read_json(folder / Run.FILE, Run)) if job.found else None
    try:
        examples = read_examples(config, tokenizer)
        train_alone(config, tokenizer, examples, checkpoints, found, job.answers)
    except RaftError as error:
        failure = Failure(
            problem=str(error),
            hint=error.hint,
            exit_code=error.exit_code,
            diverged=isinstance(error, Diverged),
        )
        (scratch / ERROR).write_text(failure.model_dump_json(), encoding="utf-8")
        sys.exit(error.exit_code)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _end_with(stage: int) -> None:
    """End this process when the stage has ended.

    A stage that is killed cannot end its workers, and they would go on writing checkpoints beside
    those of the next attempt.
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
