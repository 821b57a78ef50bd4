"""Run a stage on local copies of what its flags name on `gs://`, alone in its output folder."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from components.core.config import Options
from components.core.errors import RaftError, StorageError
from components.core.locations import INPUT, OUTPUT, SCHEME, map_locations
from components.core.storage.artifacts import check_output
from components.core.storage.bucket import traffic
from components.core.storage.copies import fetch, publish
from components.core.storage.files import writing

C = TypeVar("C", bound=Options)


@contextmanager
def with_local_copies(config: C) -> Iterator[C]:
    """Give a stage a config with local paths only: fetch inputs before, publish outputs after.

    Outputs are published only when the body succeeds. What was fetched or made is kept in the
    temporary folder until then, so that a second try copies only what is missing.

    Raises:
        StorageError: a bucket or prefix is missing, forbidden or empty, or holds what another stage
            made.
        DataError: an input is an unfinished or damaged artifact.
    """
    copies: dict[str, list[tuple[str, Path]]] = {INPUT: [], OUTPUT: []}
    update: dict[str, Any] = {}
    traffic.clear()
    with ExitStack() as held:

        def local(kind: str, location: str) -> str:
            if not location.startswith(SCHEME):
                return location
            name = location.rstrip("/").rsplit("/", 1)[-1] or "bucket"
            copy = held.enter_context(scratch(kind, location)) / name
            copies[kind].append((location, copy))
            return str(copy)

        for name, field in type(config).model_fields.items():
            for kind in copies.keys() & set(map(str, field.metadata)):
                update[name] = map_locations(getattr(config, name), partial(local, kind))
        for uri, _ in copies[OUTPUT]:
            check_output(uri, config.stage)
        for uri, copy in copies[INPUT]:
            fetch(uri, copy)
        with named_as(copies[INPUT]):
            yield config.model_copy(update=update)
        for uri, copy in copies[OUTPUT]:
            publish(copy, uri)


@contextmanager
def named_as(copies: Iterable[tuple[str, Path]]) -> Iterator[None]:
    """Call local copies in errors by what the user calls them."""
    try:
        yield
    except RaftError as error:
        for name, copy in copies:
            error.args = (str(error).replace(str(copy), name.rstrip("/")),)
        raise


@contextmanager
def scratch(kind: str, key: str) -> Iterator[Path]:
    """A private folder for a key, the same one at every try; removed when the body succeeds.

    So what a killed process has left in it is used, or at least found, by the next. A second
    process at the same key gets a folder of its own.
    """
    root = Path(tempfile.gettempdir()) / f"raft-{os.getuid()}"
    with writing(root):
        root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise StorageError(f"{root}: belongs to somebody else", hint="Set TMPDIR to your own.")
    name = hashlib.sha256(f"{kind} {key}".encode()).hexdigest()[:16]
    with (root / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = f"{name}-{os.getpid()}"
        folder = root / name
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(output: str) -> Iterator[None]:
    """Hold a local output exclusively; the kernel frees the folder when the process dies.

    A folder that was made for this and is still empty is removed again. Where it cannot be
    written, or the file system has no locks, the work runs without one.

    Raises:
        StorageError: another process holds it.
    """
    folder = Path(output)
    if output.startswith(SCHEME):  # there every write is conditional on what it replaces
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(folder, os.O_RDONLY)
            held.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another raft writes to --output {folder}",
                hint="Wait for it, or give another --output.",
            ) from error
        except OSError:
            pass  # the stage itself reports what it cannot write
        try:
            yield
        finally:
            for path in made:
                with suppress(OSError):  # it is not empty
                    path.rmdir()
