"""Copy objects and artifacts from a bucket: one whole snapshot, each file checked."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.core.errors import DataError, RaftError, StorageError
from components.core.records import explain
from components.core.storage.artifacts import (
    AGAIN,
    MANIFEST,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    fault_of,
    not_finished,
    path_inside,
)
from components.core.storage.bucket import (
    ATTEMPTS,
    explained,
    find_object,
    in_parallel,
    intact,
    join_names,
    list_objects,
    locate,
    read_object,
    retry_policy,
)
from components.core.storage.files import cannot_write, checksum, write_json

if TYPE_CHECKING:
    from google.cloud.storage import Blob


def fetch(uri: str, target: Path) -> None:
    """Copy an object to the file `target`, or an artifact or prefix to the folder `target`.

    Files that are already there with the right checksum are not copied again; files that are
    there and not in the source are removed.

    Raises:
        StorageError: nothing there, or not allowed, or it keeps changing.
        DataError: the artifact is unfinished.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket, prefix = locate(uri)
    with explained(uri):
        if prefix and not uri.endswith("/") and (single := find_object(bucket, prefix)) is not None:
            _download(single, target)
            return
        for _ in range(ATTEMPTS):
            # One listing is one moment; asked for one by one, a manifest that is replaced could
            # seem to be missing, and half an artifact a folder that people filled.
            there = {
                blob.name.removeprefix(join_names(prefix, "")): blob
                for blob in list_objects(bucket, join_names(prefix, ""))
                if not blob.name.endswith("/")
            }
            misfit = MANIFEST
            with suppress(NotFound, PreconditionFailed):  # replaced, or gone, since
                manifest = _remote_manifest(there, uri)
                misfit = _fetch_listed(_listing(there, uri, manifest), target)
            if not misfit:
                break
        else:
            raise _changed(f"{uri.rstrip('/')}/{misfit}", known=MANIFEST in there)
    if manifest is not None:
        write_json(target / MANIFEST, manifest)


def _changed(uri: str, *, known: bool) -> RaftError:
    if known:
        return DataError(
            "is not the file that manifest.json lists: it is damaged, or was replaced",
            path=uri,
            hint=AGAIN,
        )
    return StorageError(f"{uri}: somebody keeps changing it", hint="Try again later.")


def _remote_manifest(there: dict[str, "Blob"], uri: str) -> Manifest | None:
    """The manifest of an artifact; None for a prefix that people filled by hand."""
    if MANIFEST in there:
        try:
            return Manifest.model_validate_json(read_object(there[MANIFEST]))
        except ValidationError as error:
            raise DataError(
                f"manifest.json is damaged ({explain(error)})", path=uri, hint=AGAIN
            ) from None
    if PARTIAL_MANIFEST in there:
        raise not_finished(uri)
    return None


def _listing(
    found: dict[str, "Blob"], uri: str, manifest: Manifest | None
) -> dict[str, tuple["Blob", ManifestFile]]:
    """What to copy: path in the artifact, object, and what it should be."""
    if manifest is None:
        if not found:
            raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
        return {
            name: (blob, ManifestFile(path=name, size=blob.size, crc32c=blob.crc32c))
            for name, blob in found.items()
        }
    for entry in manifest.files:
        if entry.path not in found:
            raise DataError(
                "is listed in manifest.json but missing",
                path=f"{uri.rstrip('/')}/{entry.path}",
                hint=AGAIN,
            )
    return {entry.path: (found[entry.path], entry) for entry in manifest.files}


def _fetch_listed(listing: dict[str, tuple["Blob", ManifestFile]], target: Path) -> str:
    """Copy what is missing.

    Returns:
        A file that is gone, or is not what it should be: it was replaced meanwhile; "" if none.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    wanted = {path_inside(target, name): both for name, both in listing.items()}
    halves = {_half(path, blob) for path, (blob, _) in wanted.items()}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path not in wanted and path not in halves:
            path.unlink()
    missing = {path: both for path, both in wanted.items() if fault_of(path, both[1])}
    try:
        in_parallel(
            "fetching",
            [
                (entry.size, partial(_download, blob, path))
                for path, (blob, entry) in missing.items()
            ],
        )
    except (NotFound, PreconditionFailed):
        return next((entry.path for path, (_, entry) in missing.items() if not path.exists()), "?")
    misfits = (entry.path for path, (_, entry) in missing.items() if fault_of(path, entry))
    return next(misfits, "")


def _half(path: Path, blob: "Blob") -> Path:
    """Where an object lies while it is copied; another version of it has another place."""
    return path.with_name(f".{path.name}.{blob.generation}.half")


def _download(blob: "Blob", path: Path) -> None:
    """Copy one object, of exactly the generation that was listed; goes on where a copy stopped.

    Raises:
        StorageError: it cannot be written here, or arrived damaged.
    """
    half = _half(path, blob)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        intact(blob, partial(_append, blob, half))
        half.replace(path)
    except OSError as error:
        if error.errno is None:  # the client's own errors derive from OSError too
            raise
        raise cannot_write(path, error) from None


def _append(blob: "Blob", half: Path) -> None:
    """Copy what is missing of an object.

    Raises:
        DataCorruption: it arrived damaged; what there was of it is removed.
    """
    from google.cloud.storage.exceptions import DataCorruption

    try:
        with half.open("ab") as file:
            done = file.tell()
            if done < blob.size or not done:
                blob.download_to_file(
                    file,
                    start=done or None,
                    if_generation_match=blob.generation,
                    checksum=None if done else "crc32c",  # the client can only check a whole
                    retry=retry_policy(),
                )
        if done and checksum(half) != blob.crc32c:
            raise DataCorruption(None)
    except DataCorruption:
        half.unlink()
        raise
