"""Checkpoints of a run that may be stopped at any moment, in a local folder and, if asked, gs://.

    CHECKPOINTS/1/checkpoint-20/    as the trainer writes it, then run.json, manifest.json last
    CHECKPOINTS/1/finished/         the adapter and training.json, once the setting is trained

(`1` is the first setting of a sweep, or the only one.) A folder without its manifest is half
written and never resumed; one whose checksums do not match is passed over for an older one.
`run.json` says what the checkpoint belongs to: resuming it under other settings is refused, and
the difference named. This file knows nothing of torch: what lies in a checkpoint is the trainer's.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from components.core import storage
from components.core.config import flag
from components.core.errors import ConfigError, DataError, RaftError, StorageError
from components.core.progress import say
from components.core.records import Run, read_json

FINISHED = "finished"
PREFIX = "checkpoint-"


class Checkpoints:
    """The checkpoints of one setting.

    Attributes:
        folder: where they lie on this machine; also the trainer's output folder.
        remote: a gs:// prefix to which each is copied while training goes on, or "".
        kept: how many of the newest are kept.
        identity: what the weights depend on, by the flag's name.
    """

    def __init__(
        self, folder: Path, remote: str, kept: int, identity: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.remote = remote
        self.kept = kept
        self.identity = dict(identity or {})
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._uploading: Future[None] | None = None
        self._not_copied: set[str] = set()  # what the bucket did not take

    # ---- looking ---------------------------------------------------------------------------

    def finished(self) -> Path | None:
        """The folder of a setting that was trained to the end, or None.

        Raises:
            ConfigError: it was trained with other settings; names them.
        """
        return self._take(FINISHED)

    def newest(self) -> tuple[Path, Run] | None:
        """The newest whole checkpoint, on this machine's disk, or None.

        Raises:
            ConfigError: it belongs to other settings, data or another base; names the difference.
            StorageError: the bucket cannot be read.
        """
        for step in sorted(self._steps(), reverse=True):
            if found := self._take(f"{PREFIX}{step}"):
                return found, read_json(found / Run.FILE, Run)
        return None

    def _steps(self) -> set[int]:
        names = {path.name for path in self.folder.glob(f"{PREFIX}*")}
        if self.remote:
            names |= storage.folders(self.remote)
        numbers = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
        return {int(number) for number in numbers if number.isdecimal()}

    def _take(self, name: str) -> Path | None:
        """A whole folder of this setting, fetched if it is only remote; None if it is not whole."""
        folder, remote = self.folder / name, f"{self.remote}/{name}" if self.remote else ""
        if not (folder / storage.MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)  # half written
        # A copy in the bucket may be whole where the one here is damaged.
        for source in (folder, remote) if remote else (folder,):
            if not (folder.exists() if source is folder else storage.is_artifact(remote)):
                continue
            try:
                if source is remote:
                    storage.fetch(remote, folder)
                storage.verify(folder, "--checkpoints")
                run = read_json(folder / Run.FILE, Run)
            except DataError as error:
                say(f"  a checkpoint is passed over: {error}")
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
                hint="Go on with the settings it was made with, give another --output, or throw "
                "it away with --fresh true.",
            )

    # ---- writing ---------------------------------------------------------------------------

    def add(self, folder: Path, step: int, seconds: float, *, wait: bool = False) -> None:
        """Make a folder that the trainer has written a checkpoint; the oldest are removed.

        Copying to gs:// goes on beside training, one checkpoint at a time; with `wait` the
        checkpoint is durable when this returns.
        """
        self._seal(folder, step, seconds)
        if not self.remote:
            self._prune_local(self.kept)
            return
        if wait:
            # Not behind an older one: what is newest is what counts when the machine goes away.
            self._publish_or_say(folder)
        else:
            self.wait()
            self._uploading = self._pool.submit(self._publish_or_say, folder)

    def finish(self, write: Callable[[Path], None], step: int, seconds: float) -> Path:
        """Keep the result of a setting, as `write` puts it in a folder, and drop its checkpoints.

        Raises:
            StorageError: it cannot be written or copied.
        """
        folder = self.folder / FINISHED
        shutil.rmtree(folder, ignore_errors=True)
        write(folder)
        self._seal(folder, step, seconds)
        self.wait()
        if self.remote:
            storage.publish(folder, f"{self.remote}/{FINISHED}")
        for done in self._steps():
            self._remove(f"{PREFIX}{done}")
        return folder

    def discard(self) -> None:
        """Remove everything of this setting, and nothing else that lies there.

        Raises:
            StorageError: not allowed.
        """
        for name in (FINISHED, *(f"{PREFIX}{step}" for step in self._steps())):
            storage.remove(str(self.folder / name))
            if self.remote:
                storage.remove(f"{self.remote}/{name}")
        for folder in (self.folder, self.folder.parent):
            with suppress(OSError):  # not empty: somebody else's
                folder.rmdir()

    def outlook(self, step: int) -> str:
        """Where the same command goes on, in words."""
        if f"{PREFIX}{step}" not in self._not_copied:
            return "the same command goes on there"
        return (
            f"that is in {self.folder} only: where this disk is gone, the same command goes on "
            f"with what {self.remote} has"
        )

    def wait(self) -> None:
        """Until what is being copied is durable."""
        if self._uploading is not None:
            self._uploading.result()
            self._uploading = None

    def _seal(self, folder: Path, step: int, seconds: float) -> None:
        run = Run(identity=self.identity, step=step, seconds=round(seconds, 3))
        storage.write_json(folder / Run.FILE, run)
        storage.finish_artifact(folder)

    def _publish(self, folder: Path) -> None:
        storage.publish(folder, f"{self.remote}/{folder.name}", quiet=True)
        remote = [name for name in storage.folders(self.remote) if name.startswith(PREFIX)]
        for name in sorted(remote, key=_step)[: -self.kept]:
            storage.remove(f"{self.remote}/{name}")
        self._prune_local(1)

    def _publish_or_say(self, folder: Path) -> None:
        # A bucket that does not answer for a while must not end the training; the next
        # checkpoint tries again.
        try:
            self._publish(folder)
        except RaftError as error:
            say(f"  {folder.name} could not be copied: {error}")
            self._not_copied.add(folder.name)
            self._prune_local(self.kept)

    def _prune_local(self, kept: int) -> None:
        whole = [
            path for path in self.folder.glob(f"{PREFIX}*") if (path / storage.MANIFEST).exists()
        ]
        for path in sorted(whole, key=lambda path: _step(path.name))[:-kept]:
            storage.remove(str(path))

    def _remove(self, name: str) -> None:
        storage.remove(str(self.folder / name))
        if self.remote:
            with suppress(StorageError):  # what is left costs a little; the result is there
                storage.remove(f"{self.remote}/{name}")


def _step(name: str) -> int:
    number = name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else -1
