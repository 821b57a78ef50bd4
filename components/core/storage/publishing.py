"""Copy an artifact to a bucket in two steps, so that a reader finds the old one or the new."""

import base64
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from components.core.errors import StorageError
from components.core.records import read_json
from components.core.storage.artifacts import (
    MANIFEST,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    entry_of,
    refuse_another,
)
from components.core.storage.bucket import (
    delete_exactly,
    delete_object,
    explained,
    find_object,
    generation_of,
    in_parallel,
    join_names,
    list_objects,
    locate,
    read_object,
    retry_policy,
    same_bytes,
    somebody_else,
    uri_of,
)

if TYPE_CHECKING:
    from google.cloud.storage import Blob

PART = 32 * 2**20  # bytes; a larger file goes up in parts, so that what arrived is not sent again
PARTS = ".parts"  # where parts lie until they are one object
PARTS_OF_A_FILE = 32  # as many as Cloud Storage makes one object of


def publish(folder: Path, uri: str, *, quiet: bool = False) -> None:
    """Copy a sealed artifact to a prefix, in an order that never shows half of it.

    Only files that differ are copied, so an interrupted publication goes on where it was.
    `quiet` shows no progress: for one that goes on beside other work.

    Raises:
        StorageError: not allowed, no such bucket, or somebody else writes there too.
    """
    bucket, prefix = locate(uri)
    manifest = read_json(folder / MANIFEST, Manifest)
    with explained(uri):
        there = {
            blob.name.removeprefix(join_names(prefix, "")): blob
            for blob in list_objects(bucket, join_names(prefix, ""))
        }
        changed = [entry for entry in manifest.files if not _is_there(there, entry)]
        listing = entry_of(folder, MANIFEST)
        if not changed and _is_there(there, listing) and PARTIAL_MANIFEST not in there:
            return
        stale = _no_longer_listed(there, manifest)

        large = {entry.path: _parts(entry) for entry in changed if entry.size > PART}

        def put(entry: ManifestFile, name: str) -> "Blob":
            blob = bucket.blob(join_names(prefix, name))
            _upload(folder / entry.path, blob, there.get(name), entry)
            return blob

        mark = put(listing, PARTIAL_MANIFEST)  # over that of a writer who was stopped
        if (old := there.pop(MANIFEST, None)) is not None:
            delete_exactly(old)
        jobs = [
            (entry.size, partial(put, entry, entry.path))
            for entry in changed
            if entry.path not in large
        ]
        jobs += [
            (
                part.size,
                partial(_upload_part, folder / path, bucket.blob(join_names(prefix, name)), part),
            )
            for path, parts in large.items()
            for name, part in parts.items()
            if name not in there
        ]
        in_parallel("" if quiet else "publishing", jobs)

        def compose(entry: ManifestFile) -> None:
            sources = [bucket.blob(join_names(prefix, name)) for name in large[entry.path]]
            whole = bucket.blob(join_names(prefix, entry.path))
            _compose(sources, whole, there.get(entry.path), entry)

        in_parallel(
            "", [(entry.size, partial(compose, entry)) for entry in changed if entry.path in large]
        )
        put(listing, MANIFEST)
        parts_there = {name for name in there if name.startswith(f"{PARTS}/")}
        # Dozens for a large file, and each takes as long as an answer does.
        gone = [
            bucket.blob(join_names(prefix, name))
            for name in parts_there.union(*large.values(), stale)
        ]
        in_parallel("", [(0, partial(delete_object, blob)) for blob in gone])
        delete_exactly(mark)  # which tells of a writer who was not stopped, and put another there


def check_owner(uri: str, stage: str) -> None:
    """Refuse a prefix that holds another stage's artifact, before anything is made for it.

    Raises:
        StorageError: it does; or not allowed, or no such bucket.
    """
    bucket, prefix = locate(uri)
    with explained(uri):
        for name in (MANIFEST, PARTIAL_MANIFEST):
            if (blob := find_object(bucket, join_names(prefix, name))) is not None:
                with suppress(ValidationError):  # a damaged one names nobody
                    found = Manifest.model_validate_json(read_object(blob))
                    refuse_another(uri, stage, found.stage)
                    return


class _Part(NamedTuple):
    """So many bytes of a file, from `start`."""

    start: int
    size: int


def _parts(entry: ManifestFile) -> dict[str, _Part]:
    """The parts of a large file, by object name; a name says what is in it, and in how many."""
    most = max(PART, -(-entry.size // PARTS_OF_A_FILE))
    step = -(-most // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    crc32c = base64.b64decode(entry.crc32c).hex()
    return {
        f"{PARTS}/{entry.path}/{crc32c}-{entry.size}-{step}-{start // step:02}": _Part(
            start, min(step, entry.size - start)
        )
        for start in range(0, entry.size, step)
    }


def _upload_part(path: Path, blob: "Blob", part: _Part) -> None:
    from google.api_core.exceptions import PreconditionFailed

    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), part.size, access=mmap.ACCESS_READ, offset=part.start) as view,
        suppress(PreconditionFailed),  # a retry met its own first try
    ):
        blob.upload_from_file(
            view, size=part.size, if_generation_match=0, checksum="crc32c", retry=retry_policy()
        )


def _compose(parts: list["Blob"], blob: "Blob", before: "Blob | None", entry: ManifestFile) -> None:
    """Make one object of the parts of a file, which Cloud Storage does without copying bytes."""
    from google.api_core.exceptions import NotFound

    try:
        with _met_by_another(blob, entry):
            blob.compose(parts, if_generation_match=generation_of(before), retry=retry_policy())
    except NotFound:
        raise somebody_else(blob) from None
    if blob.crc32c != entry.crc32c:
        for part in parts:
            delete_object(part)
        raise StorageError(
            f"{uri_of(blob)}: its parts do not make the file",
            hint="Run the same command again.",
        )


def _is_there(there: dict[str, "Blob"], entry: ManifestFile) -> bool:
    blob = there.get(entry.path)
    return blob is not None and same_bytes(blob, entry)


def _no_longer_listed(there: dict[str, "Blob"], manifest: Manifest) -> list[str]:
    """Files of the artifact that was there before, which the new one lacks; nobody else's."""
    if MANIFEST not in there:
        return []
    try:
        before = Manifest.model_validate_json(read_object(there[MANIFEST]))
    except ValueError:
        return []
    listed = {entry.path for entry in manifest.files}
    return [entry.path for entry in before.files if entry.path not in listed | {MANIFEST}]


def _upload(path: Path, blob: "Blob", before: "Blob | None", entry: ManifestFile) -> None:
    with _met_by_another(blob, entry):
        blob.upload_from_filename(
            str(path),
            if_generation_match=generation_of(before),
            checksum="crc32c",
            retry=retry_policy(),
        )


@contextmanager
def _met_by_another(blob: "Blob", entry: ManifestFile) -> Iterator[None]:
    """Mind who wrote, when the object is not what this write was to replace."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        yield
    except PreconditionFailed:
        # Either somebody else wrote it, or a retry met its own first try.
        try:
            blob.reload(retry=retry_policy())
        except NotFound:
            raise somebody_else(blob) from None
        if blob.crc32c != entry.crc32c:
            raise somebody_else(blob) from None
