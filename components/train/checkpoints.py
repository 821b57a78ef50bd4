"""Checkpoints of a run that may be stopped at any moment, in a local folder and, if given, gs://.

    CHECKPOINTS/checkpoint-20/    as the trainer writes it, then run.json, manifest.json last
    CHECKPOINTS/finished/         the adapter and training.json, once it is trained

In `state`, CHECKPOINTS is a place of these settings, data and base alone, and stays for later runs.

A folder without its manifest is incomplete and never resumed; one whose checksums do not match is
skipped for an older one. `run.json` names what the checkpoint belongs to: resuming it under other
settings is refused, and the difference named. This file knows nothing of torch: what a checkpoint
contains is the trainer's.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from components.core import storage
from components.core.config import flag
from components.core.errors import ConfigError, DataError, RaftError, StorageError
from components.core.progress import say
from components.core.records import Run, read_json
from components.train.config import TrainConfig

CHECKPOINTS = "checkpoints"
PREFIX = "checkpoint-"
FINISHED = "finished"
CHECKPOINTS_KEPT = 2
"""The newest, and the one before it, should the newest be damaged."""


class Resumed(NamedTuple):
    """The checkpoint that a training resumes from."""

    folder: Path
    run: Run


class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        folder: where they are on this machine; also the trainer's output folder.
        remote: a gs:// prefix to which each is copied during training, or "".
        identity: what the weights depend on, by the flag's name.
        shared: whether they are kept for later runs too, in `state`.
    """

    def __init__(
        self,
        folder: Path,
        remote: str,
        identity: Mapping[str, str] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.folder = folder
        self.shared = shared
        self.remote = remote
        self.identity = dict(identity or {})
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._uploading: Future[None] | None = None

    @classmethod
    def of(cls, config: TrainConfig, identity: Mapping[str, str] | None = None) -> Self:
        """Those of a training with these settings."""
        local, remote = Path(config.output) / CHECKPOINTS, config.resume_location(identity)
        if not remote.startswith(storage.SCHEME):
            local, remote = Path(remote or local), ""
        shared = bool(config.state and not config.checkpoints)
        return cls(local, remote.rstrip("/"), identity, shared=shared)

    @property
    def result(self) -> Path:
        """The folder of a finished training's adapter."""
        return self.folder / FINISHED

    # ---- reading ---------------------------------------------------------------------------

    def finished(self) -> Path | None:
        """The folder of a training that reached its end, or None.

        Raises:
            ConfigError: it was trained with other settings; names them.
        """
        return self._take(FINISHED)

    def newest(self) -> Resumed | None:
        """The newest complete checkpoint, on this machine's disk, or None.

        Raises:
            ConfigError: it belongs to other settings, data or another base; names the difference.
            StorageError: the bucket cannot be read.
        """
        for step in sorted(self._steps(), reverse=True):
            if folder := self._take(f"{PREFIX}{step}"):
                return Resumed(folder, read_json(folder / Run.FILE, Run))
        return None

    def _steps(self) -> set[int]:
        names = {path.name for path in self.folder.glob(f"{PREFIX}*")}
        if self.remote:
            names |= storage.folders(self.remote)
        return {step for name in names if (step := _step(name)) >= 0}

    def _take(self, name: str) -> Path | None:
        """A complete folder of this training, fetched if it is only remote, or None."""
        folder, remote = self.folder / name, f"{self.remote}/{name}" if self.remote else ""
        if not (folder / storage.MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
        # A copy in the bucket may be complete where the one here is damaged.
        for source in (folder, remote) if remote else (folder,):
            if not (folder.exists() if source is folder else storage.is_artifact(remote)):
                continue
            try:
                if source is remote:
                    storage.fetch(remote, folder)
                storage.verify(folder, "--checkpoints")
                run = read_json(folder / Run.FILE, Run)
            except DataError as error:
                say(f"  a checkpoint is skipped: {error}")
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self._refuse_another(run, remote or folder)
            return folder
        return None

    def _refuse_another(self, run: Run, place: Path | str) -> None:
        differences = [
            f"{flag(name)} was {run.identity.get(name, 'not set')} there and is "
            f"{self.identity.get(name, 'not set')} now"
            for name in sorted(run.identity.keys() | self.identity.keys())
            if run.identity.get(name) != self.identity.get(name)
        ]
        if differences:
            raise ConfigError(
                f"{place}: this checkpoint is of another run: {'; '.join(differences)}",
                hint="Use the settings that it was made with, pass another --output, or discard "
                "it with --fresh true.",
            )

    # ---- writing ---------------------------------------------------------------------------

    def add(self, folder: Path, step: int, seconds: float, *, wait: bool = False) -> None:
        """Make a folder that the trainer has written a checkpoint.

        Copying to gs:// runs during training, one checkpoint at a time; with `wait` the
        checkpoint is durable when this returns.
        """
        self._finish_artifact(folder, step, seconds)
        if self.remote and wait:
            # Ahead of an older one: when the machine goes away, the newest is what counts.
            self._publish_or_warn(folder)
        elif self.remote:
            self.wait()
            self._uploading = self._pool.submit(self._publish_or_warn, folder)

    def finish(self, write: Callable[[Path], None], step: int, seconds: float) -> None:
        """Keep the trained adapter, as `write` puts it in a folder, and remove the checkpoints.

        Raises:
            StorageError: it cannot be written or copied.
        """
        shutil.rmtree(self.result, ignore_errors=True)
        write(self.result)
        self._finish_artifact(self.result, step, seconds)
        self.wait()
        if self.remote:
            storage.publish(self.result, f"{self.remote}/{FINISHED}")
        for done in self._steps():
            storage.remove(str(self.folder / f"{PREFIX}{done}"))
            if self.remote:
                with suppress(StorageError):  # what remains costs a little; the result is there
                    storage.remove(f"{self.remote}/{PREFIX}{done}")

    def discard(self) -> None:
        """Remove everything of this training, and nothing else that is there.

        Raises:
            StorageError: not allowed.
        """
        for name in (FINISHED, *(f"{PREFIX}{step}" for step in self._steps())):
            storage.remove(str(self.folder / name))
            if self.remote:
                storage.remove(f"{self.remote}/{name}")
        with suppress(OSError):  # not empty: somebody else's
            self.folder.rmdir()

    def wait(self) -> None:
        """Until what is being copied is durable."""
        if self._uploading is not None:
            self._uploading.result()
            self._uploading = None

    def _finish_artifact(self, folder: Path, step: int, seconds: float) -> None:
        run = Run(identity=self.identity, step=step, seconds=round(seconds, 3))
        storage.write_json(folder / Run.FILE, run)
        storage.finish_artifact(folder)

    def _publish_or_warn(self, folder: Path) -> None:
        # A bucket that does not answer for a while must not end the training; the next
        # checkpoint tries again.
        try:
            storage.publish(folder, f"{self.remote}/{folder.name}", quiet=True)
            remote = [name for name in storage.folders(self.remote) if name.startswith(PREFIX)]
            for name in sorted(remote, key=_step)[:-CHECKPOINTS_KEPT]:
                storage.remove(f"{self.remote}/{name}")
        except RaftError as error:
            say(f"  {folder.name} is on this disk only, it could not be copied: {error}")


def _step(name: str) -> int:
    """The step of a checkpoint's folder; -1 for any other name."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdecimal() else -1
