"""Run a stage on local copies of what its flags name on `gs://`."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from components.core.config import INPUT, OUTPUT, SCHEME, Settings
from components.core.errors import StorageError
from components.core.storage.fetching import fetch
from components.core.storage.files import cannot_write
from components.core.storage.publishing import check_owner, publish

C = TypeVar("C", bound=Settings)


@contextmanager
def localized(config: C) -> Iterator[C]:
    """Give a stage a config with local paths only: fetch inputs before, publish outputs after.

    Outputs are published only when the body succeeds. What was fetched or made is kept in the
    temporary folder until then, so that a second try copies only what is missing.

    Raises:
        StorageError: a bucket or prefix is missing, forbidden or empty, or holds what another stage
            made.
        DataError: an input is an unfinished or damaged artifact.
    """
    remote: dict[str, dict[tuple[str, int], str]] = {INPUT: {}, OUTPUT: {}}
    given: dict[str, tuple[str, ...]] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        for kind in {INPUT, OUTPUT} & set(map(str, field.metadata)):
            given[name] = value if isinstance(value, tuple) else (value,)
            for place, location in enumerate(given[name]):
                if location.startswith(SCHEME):
                    remote[kind][name, place] = location
    with ExitStack() as held:
        local = {
            key: held.enter_context(scratch(kind, uri))
            / (uri.rstrip("/").rsplit("/", 1)[-1] or "bucket")
            for kind, uris in remote.items()
            for key, uri in uris.items()
        }
        for uri in remote[OUTPUT].values():
            check_owner(uri, config.stage)
        for key, uri in remote[INPUT].items():
            fetch(uri, local[key])
        update: dict[str, str | tuple[str, ...]] = {}
        for name in {name for name, _ in local}:
            paths = tuple(str(local.get((name, n), path)) for n, path in enumerate(given[name]))
            update[name] = paths if isinstance(getattr(config, name), tuple) else paths[0]
        yield config.model_copy(update=update)
        for key, uri in remote[OUTPUT].items():
            publish(local[key], uri)


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
        raise cannot_write(root, error) from None
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
