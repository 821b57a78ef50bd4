"""Run a stage on local copies of what its flags name on `gs://`."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from components.core.config import INPUT, OUTPUT, SCHEME, Settings
from components.core.errors import StorageError
from components.core.storage.artifacts import check_output
from components.core.storage.fetching import fetch
from components.core.storage.files import cannot_write
from components.core.storage.publishing import publish

C = TypeVar("C", bound=Settings)


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
    with ExitStack() as held:

        def local(kind: str, location: str) -> str:
            if not location.startswith(SCHEME):
                return location
            name = location.rstrip("/").rsplit("/", 1)[-1] or "bucket"
            copy = held.enter_context(scratch(kind, location)) / name
            copies[kind].append((location, copy))
            return str(copy)

        for name, field in type(config).model_fields.items():
            value = getattr(config, name)
            for kind in copies.keys() & set(map(str, field.metadata)):
                many = isinstance(value, tuple)
                update[name] = tuple(local(kind, v) for v in value) if many else local(kind, value)
        for uri, _ in copies[OUTPUT]:
            check_output(uri, config.stage)
        for uri, copy in copies[INPUT]:
            fetch(uri, copy)
        yield config.model_copy(update=update)
        for uri, copy in copies[OUTPUT]:
            publish(copy, uri)


@contextmanager
def scratch(kind: str, key: str) -> Iterator[Path]:
    """A private folder for a key, the same one at every try; removed when the body succeeds.

    So what a killed process has left in it is used, or at least found, by the next. A second
    process at the same key gets a folder of its own.
    """
    root = Path(tempfile.gettempdir()) / f"raft-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from error
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
