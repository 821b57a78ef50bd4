"""Copy an artifact to a bucket in two steps, so that a reader finds the old one or the new."""

import base64
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import StorageError
from components.core.records import read_json
from components.core.storage import bucket as gcs
from components.core.storage.artifacts import (
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    entry_of,
    fault_of,
)  # fmt: skip
from components.core.storage.bucket import Piece
from components.core.storage.files import checksum, checksum_of
from components.core.storage.places import MANIFEST

if TYPE_CHECKING:
    from google.cloud.storage import Blob

PART = 32 * 2**20  # bytes; a larger file is sent in parts, so that what arrived is not sent again
PARTS = ".parts"  # where parts are until they are one object
PARTS_OF_A_FILE = 32  # as many as Cloud Storage makes one object of


def publish(folder: Path, uri: str, *, quiet: bool = False) -> None:
    """Copy a finished artifact to a prefix, in an order that never shows half of it.

    Only files that differ are copied, so an interrupted publication resumes. Those that they
    replace are deleted before: so each write demands that it replaces nothing, for the transfer
    manager takes one precondition for all that it is given. With `quiet` no progress is shown: for
    a publication during other work.

    Raises:
        StorageError: not allowed, no such bucket, or somebody else writes there too.
    """
    bucket, prefix = gcs.locate(uri)
    manifest, listing = read_json(folder / MANIFEST, Manifest), entry_of(folder, MANIFEST)

    def blob_of(name: str) -> "Blob":
        return bucket.blob(f"{prefix}/{name}".lstrip("/"))

    with gcs.explained(uri):
        objects = gcs.list_objects(bucket, prefix)
        changed = [entry for entry in manifest.files if fault_of(objects.get(entry.path), entry)]
        is_there = not changed and not fault_of(objects.get(MANIFEST), listing)
        if is_there and PARTIAL_MANIFEST not in objects:
            return
        obsolete = _no_longer_listed(objects, manifest).union(entry.path for entry in changed)
        mark = blob_of(PARTIAL_MANIFEST)
        _write(folder / MANIFEST, mark, objects.get(PARTIAL_MANIFEST))
        gcs.delete_objects([objects[MANIFEST]] if MANIFEST in objects else [])
        gcs.delete_objects(objects[name] for name in obsolete & objects.keys())

        large = {
            entry: _parts(entry, folder / entry.path, blob_of)
            for entry in changed
            if entry.size > PART
        }
        pieces = [
            Piece(blob_of(entry.path), folder / entry.path, 0, entry.size)
            for entry in changed
            if entry not in large
        ]
        parts = {name: blob for name, blob in objects.items() if name.startswith(f"{PARTS}/")}
        for some in large.values():
            pieces += [piece for name, piece in some.items() if name not in objects]
            parts |= {name: piece.blob for name, piece in some.items()}
        gcs.transfer("" if quiet else "publishing", pieces, _opened, _send)
        for entry, some in large.items():
            _compose(blob_of(entry.path), entry, [piece.blob for piece in some.values()])
        _write(folder / MANIFEST, blob_of(MANIFEST), None)
        gcs.delete_objects(parts.values())
        gcs.delete_objects([mark])  # fails if another writer is at work, who has replaced it


def _no_longer_listed(objects: dict[str, "Blob"], manifest: Manifest) -> set[str]:
    """Files of the artifact that was there before, which the new one lacks; nobody else's."""
    with suppress(KeyError, ValueError):
        before = Manifest.model_validate_json(gcs.read_object(objects[MANIFEST]))
        return {entry.path for entry in before.files} - {entry.path for entry in manifest.files}
    return set()


def _parts(entry: ManifestFile, path: Path, blob_of: Callable[[str], "Blob"]) -> dict[str, Piece]:
    """The parts of a large file by name, which tells its content and into how many it is split."""
    unit = mmap.ALLOCATIONGRANULARITY
    step = -(-max(PART, -(-entry.size // PARTS_OF_A_FILE)) // unit) * unit
    crc32c = base64.b64decode(entry.crc32c).hex()
    parts = {}
    for start in range(0, entry.size, step):
        name = f"{PARTS}/{entry.path}/{crc32c}-{entry.size}-{step}-{start // step:02}"
        parts[name] = Piece(blob_of(name), path, start, min(step, entry.size - start))
    return parts


def _opened(piece: Piece) -> AbstractContextManager[str | mmap.mmap]:
    """A small file by its name, by which the client knows its type; a part as its bytes."""
    if piece.size == piece.path.stat().st_size:
        return nullcontext(str(piece.path))
    with piece.path.open("rb") as file:
        return mmap.mmap(file.fileno(), piece.size, access=mmap.ACCESS_READ, offset=piece.start)


def _send(pairs: list[tuple[Piece, str | mmap.mmap]], **threads: Any) -> None:
    from google.cloud.storage import transfer_manager

    results = transfer_manager.upload_many(
        [(file, piece.blob) for piece, file in pairs],
        skip_if_exists=True,
        upload_kwargs={"checksum": "crc32c", **gcs.patiently()},
        **threads,
    )
    for (piece, file), result in zip(pairs, results, strict=True):
        if isinstance(result, Exception):
            sent = checksum(piece.path) if isinstance(file, str) else checksum_of([file[:]])
            with _ours(piece.blob, sent):
                raise result


def _write(path: Path, blob: "Blob", before: "Blob | None") -> None:
    with _ours(blob, checksum(path)):
        generation = before.generation if before is not None else 0
        blob.upload_from_filename(
            str(path), if_generation_match=generation, checksum="crc32c", **gcs.patiently()
        )


def _compose(blob: "Blob", entry: ManifestFile, parts: list["Blob"]) -> None:
    """Make one object of the parts of a file, which Cloud Storage does without copying bytes."""
    from google.api_core.exceptions import NotFound

    try:
        with _ours(blob, entry.crc32c):
            blob.compose(parts, if_generation_match=0, **gcs.patiently())
    except NotFound as error:
        raise gcs.somebody_else(gcs.uri_of(blob)) from error
    if blob.crc32c != entry.crc32c:
        gcs.delete_objects(parts)
        raise StorageError(
            f"{gcs.uri_of(blob)}: its parts do not make the file",
            hint="Run the same command again.",
        )


@contextmanager
def _ours(blob: "Blob", crc32c: str) -> Iterator[None]:
    """Accept that a write finds something in its way if that is the same: its own first try.

    Raises:
        StorageError: somebody else wrote it.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        yield
    except PreconditionFailed as error:
        with suppress(NotFound):
            blob.reload(**gcs.patiently())
            if blob.crc32c == crc32c:
                return
        raise gcs.somebody_else(gcs.uri_of(blob)) from error
