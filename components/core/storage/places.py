"""What lies at a place, be it a folder or a `gs://` prefix: look, read, write, remove."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from components.core.config import SCHEME
from components.core.errors import AccessError, StorageError
from components.core.redaction import redact
from components.core.storage.artifacts import MANIFEST
from components.core.storage.bucket import (
    GRANT,
    delete_object,
    explained,
    find_object,
    in_parallel,
    join_names,
    list_objects,
    locate,
    read_object,
    refuse_wrong,
    retry_policy,
    uri_of,
)
from components.core.storage.files import atomic_write


def folders(location: str) -> set[str]:
    """The names of the folders directly in a folder or prefix; none if it is not there.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        bucket, prefix = locate(location)
        with explained(location):
            names = [blob.name for blob in list_objects(bucket, join_names(prefix, ""))]
        inside = [name.removeprefix(join_names(prefix, "")) for name in names]
        return {name.split("/")[0] for name in inside if "/" in name}
    refuse_wrong(location)
    return {path.name for path in Path(location).glob("*") if path.is_dir()}


def is_artifact(location: str) -> bool:
    """Whether a finished artifact lies at a path or URI.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        bucket, prefix = locate(location)
        with explained(location):
            return find_object(bucket, join_names(prefix, MANIFEST)) is not None
    refuse_wrong(location)
    return (Path(location) / MANIFEST).exists()


def remove(location: str) -> None:
    """Remove a folder or all objects under a prefix, its manifest first; none is fine.

    Raises:
        StorageError: not allowed, or the location is not understood.
    """
    if not location.startswith(SCHEME):
        refuse_wrong(location)
        (Path(location) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(location, ignore_errors=True)
        return
    bucket, prefix = locate(location)
    if not prefix:
        raise StorageError(f"{location}: a whole bucket is not removed")
    with explained(location):
        blobs = list(list_objects(bucket, join_names(prefix, "")))
        manifests = [blob for blob in blobs if blob.name.endswith(f"/{MANIFEST}")]
        rest = [blob for blob in blobs if not blob.name.endswith(f"/{MANIFEST}")]
        for some in (manifests, rest):
            in_parallel("", [(0, partial(delete_object, blob)) for blob in some])


def find(location: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The texts under a folder or prefix, at any depth, whose file name is wanted, by full path.

    Raises:
        StorageError: the location is missing, forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        from google.api_core.exceptions import NotFound, PreconditionFailed

        bucket, prefix = locate(location)
        with explained(location):
            for blob in list_objects(bucket, join_names(prefix, "")):
                if wanted(blob.name.rpartition("/")[2]):
                    with suppress(NotFound, PreconditionFailed):  # it vanished meanwhile
                        yield uri_of(blob), read_object(blob).decode(errors="replace")
        return
    refuse_wrong(location)
    if not Path(location).is_dir():
        raise StorageError(f"{location}: no such folder")
    for path in sorted(Path(location).rglob("*")):
        if path.is_file() and wanted(path.name):
            yield path.as_posix(), path.read_text(encoding="utf-8", errors="replace")


def put(text: str, location: str) -> None:
    """Write one text to a local path or an object.

    Raises:
        StorageError: it cannot be written there, or the location is not understood.
    """
    if location.startswith(SCHEME):
        bucket, name = locate(location)
        with explained(location):
            bucket.blob(name).upload_from_string(
                redact(text), content_type="application/json", retry=retry_policy()
            )
        return
    refuse_wrong(location)
    with atomic_write(Path(location)) as file:
        file.write(text)


def reachable(uri: str, *, write: bool = False) -> None:
    """Check that something lies at a URI, or that objects may be written there; changes nothing.

    Raises:
        AccessError: no credentials, or not allowed.
        StorageError: no such bucket, nothing there, or no answer.
    """
    bucket, prefix = locate(uri)
    with explained(uri):
        if write:
            needed = [f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list")]
            granted = bucket.test_iam_permissions(needed, timeout=20)
            if lacking := sorted(set(needed) - set(granted)):
                raise AccessError(f"{uri}: not allowed ({', '.join(lacking)})", hint=GRANT)
            return
        found = bucket.list_blobs(prefix=prefix, max_results=1, timeout=20, retry=None)
        if next(iter(found), None) is None:
            raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
