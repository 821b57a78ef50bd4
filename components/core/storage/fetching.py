"""Copy objects and artifacts from a bucket: one complete snapshot, each file checked."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import ValidationError

from components.core.errors import DataError, RaftError, StorageError
from components.core.records import explain
from components.core.storage import bucket as gcs
from components.core.storage.artifacts import (
    AGAIN,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    fault_of,
    not_finished,
)  # fmt: skip
from components.core.storage.files import cannot_write, write_json
from components.core.storage.places import MANIFEST

if TYPE_CHECKING:
    from google.cloud.storage import Blob


def fetch(uri: str, target: Path) -> None:
    """Copy an object to the file `target`, or an artifact or prefix to the folder `target`.

    Files that are already there with the right checksum are not copied again; files that are
    there and not in the source are removed.

    Raises:
        StorageError: nothing there, or not allowed, or it keeps changing.
        DataError: the artifact is unfinished or damaged.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket, prefix = gcs.locate(uri)
    with gcs.explained(uri):
        for left in reversed(range(gcs.ATTEMPTS)):
            try:
                if not uri.endswith("/") and prefix and (single := gcs.find_object(bucket, prefix)):
                    _copy({target: (single, _entry(target.name, single))})
                else:
                    # One listing is one moment; asked for one by one, a manifest that is replaced
                    # could seem to be missing, and half an artifact a folder that people filled.
                    _copy_folder(gcs.list_objects(bucket, prefix), uri, target)
                return
            except (RaftError, NotFound, PreconditionFailed):
                if not left:  # else it may have been replaced meanwhile
                    raise


def _copy_folder(objects: dict[str, "Blob"], uri: str, target: Path) -> None:
    manifest, wanted = _manifest(objects, uri), {}
    for entry in manifest.files:
        if fault := fault_of(objects.get(entry.path), entry):
            raise DataError(fault, path=f"{uri.rstrip('/')}/{entry.path}", hint=AGAIN)
        wanted[target / entry.path] = objects[entry.path], entry
    resumed = {_half(path, blob) for path, (blob, _) in wanted.items()}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path not in wanted and path not in resumed:
            path.unlink()
    _copy(wanted)
    if MANIFEST in objects:
        write_json(target / MANIFEST, manifest)


def _manifest(objects: dict[str, "Blob"], uri: str) -> Manifest:
    """The manifest of an artifact, or one of all objects of a prefix that people filled."""
    if not objects:
        raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
    try:
        if MANIFEST in objects:
            return Manifest.model_validate_json(gcs.read_object(objects[MANIFEST]))
        if PARTIAL_MANIFEST in objects:
            raise not_finished(uri)
        files = {name: blob for name, blob in objects.items() if not name.endswith("/")}
        return Manifest(files=[_entry(name, blob) for name, blob in files.items()])
    except ValidationError as error:
        problem = "manifest.json is damaged" if MANIFEST in objects else "an object's name"
        raise DataError(f"{problem} ({explain(error)})", path=uri, hint=AGAIN) from error


def _entry(name: str, blob: "Blob") -> ManifestFile:
    return ManifestFile(path=name, size=blob.size, crc32c=blob.crc32c)


def _half(path: Path, blob: "Blob") -> Path:
    """Where an object is while it is copied; another version of it has another place."""
    return path.with_name(f".{path.name}.{blob.generation}.half")


def _copy(wanted: dict[Path, tuple["Blob", ManifestFile]]) -> None:
    """Copy the objects that are missing, resuming where a copy stopped.

    Raises:
        StorageError: one cannot be written here, or arrived damaged; nothing is left of that.
    """
    # By their first byte: the transfer manager takes one for all that it is given.
    pieces: dict[int, list[gcs.Piece]] = defaultdict(list)
    missing = {path: both for path, both in wanted.items() if fault_of(path, both[1])}
    halves = {path: _half(path, blob) for path, (blob, _) in missing.items()}
    damaged = []
    try:
        for path, half in halves.items():
            half.parent.mkdir(parents=True, exist_ok=True)
            half.touch()
            blob, entry = missing[path]
            if (start := half.stat().st_size) < entry.size:
                pieces[start].append(gcs.Piece(blob, half, start, entry.size - start))
        for start, some in pieces.items():
            gcs.transfer("fetching", some, _opened, partial(_receive, start=start), _arrived)
        for path, half in halves.items():
            blob, entry = missing[path]
            if fault_of(half, entry):
                half.unlink()
                damaged.append(blob)
            else:
                half.replace(path)
    except OSError as error:
        if error.errno is None:  # the client's own errors derive from OSError too
            raise
        raise cannot_write(path.parent, error) from error
    if damaged:
        raise gcs.arrived_damaged(damaged[0])


def _opened(piece: gcs.Piece) -> IO[bytes]:
    return piece.path.open("ab")


def _arrived(piece: gcs.Piece) -> int:
    return piece.path.stat().st_size - piece.start


def _receive(pairs: list[tuple[gcs.Piece, IO[bytes]]], start: int, **threads: Any) -> None:
    """Append to each file the bytes of its object from `start`, of the generation listed."""
    from google.cloud.storage import transfer_manager

    transfer_manager.download_many(
        [(piece.blob, file) for piece, file in pairs],
        # The client can check none of which it has a part only, so all are checked afterwards.
        download_kwargs={"start": start or None, "checksum": None, **gcs.patiently()},
        raise_exception=True,
        **threads,
    )
