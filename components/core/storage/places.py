"""Look, read, write and remove at a location, be it a folder or a `gs://` prefix."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Union

from components.core.config import SCHEME
from components.core.errors import AccessError, StorageError
from components.core.redaction import redact
from components.core.storage import bucket as gcs
from components.core.storage.files import atomic_write

if TYPE_CHECKING:
    from google.cloud.storage import Blob

MANIFEST = "manifest.json"

File = Union[Path, "Blob"]


def files_in(location: str) -> dict[str, File]:
    """The files at any depth of a folder or prefix, by their names within it; none is fine.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        with gcs.explained(location):
            return {**gcs.list_objects(*gcs.locate(location))}
    gcs.refuse_wrong(location)
    paths = sorted(path for path in Path(location).rglob("*") if path.is_file())
    return {path.relative_to(location).as_posix(): path for path in paths}


def read_file(location: str, name: str) -> bytes | None:
    """The content of a small file in a folder or prefix; None if there is none.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        bucket, prefix = gcs.locate(location)
        with gcs.explained(location):
            blob = gcs.find_object(bucket, f"{prefix}/{name}".lstrip("/"))
            return None if blob is None else gcs.read_object(blob)
    gcs.refuse_wrong(location)
    with suppress(OSError):
        return (Path(location) / name).read_bytes()
    return None


def folders(location: str) -> set[str]:
    """The names of the folders directly in a folder or prefix; none if it is not there.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    return {name.split("/")[0] for name in files_in(location) if "/" in name}


def is_artifact(location: str) -> bool:
    """Whether a finished artifact is at a path or URI.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    return read_file(location, MANIFEST) is not None


def find(location: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The texts under a folder or prefix, at any depth, whose file name is wanted, by full path.

    Raises:
        StorageError: the location is missing, forbidden, or of a kind that is not understood.
    """
    files = files_in(location)
    if not files and not location.startswith(SCHEME) and not Path(location).is_dir():
        raise StorageError(f"{location}: no such folder")
    for name, file in files.items():
        if wanted(name.rpartition("/")[2]):
            uri = f"{location.rstrip('/')}/{name}"
            content = file.read_bytes() if isinstance(file, Path) else _read_listed(file, uri)
            if content is not None:
                yield uri, content.decode(errors="replace")


def _read_listed(blob: "Blob", uri: str) -> bytes | None:
    """The content of an object that was listed; None if it was replaced or removed since."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with gcs.explained(uri), suppress(NotFound, PreconditionFailed):
        return gcs.read_object(blob)
    return None


def put(text: str, location: str) -> None:
    """Write one text to a local path or an object.

    Raises:
        StorageError: it cannot be written there, or the location is not understood.
    """
    if location.startswith(SCHEME):
        bucket, name = gcs.locate(location)
        with gcs.explained(location):
            bucket.blob(name).upload_from_string(
                redact(text), content_type="application/json", **gcs.patiently()
            )
        return
    gcs.refuse_wrong(location)
    with atomic_write(Path(location)) as file:
        file.write(text)


def remove(location: str) -> None:
    """Remove a folder or all objects under a prefix, its manifest first; none is fine.

    Raises:
        StorageError: not allowed, or the location is not understood.
    """
    if not location.startswith(SCHEME):
        gcs.refuse_wrong(location)
        (Path(location) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(location, ignore_errors=True)
        return
    bucket, prefix = gcs.locate(location)
    if not prefix:
        raise StorageError(f"{location}: a whole bucket is not removed")
    with gcs.explained(location):
        objects = gcs.list_objects(bucket, prefix)
        for manifests in (True, False):
            gcs.delete_objects(
                blob for name, blob in objects.items() if name.endswith(MANIFEST) is manifests
            )


def reachable(uri: str, *, write: bool = False) -> None:
    """Check that something is at a URI, or that objects may be written there; changes nothing.

    Raises:
        AccessError: no credentials, or not allowed.
        StorageError: no such bucket, nothing there, or no answer.
    """
    bucket, prefix = gcs.locate(uri)
    with gcs.explained(uri):
        if write:
            needed = [f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list")]
            granted = bucket.test_iam_permissions(needed, timeout=20)
            if lacking := sorted(set(needed) - set(granted)):
                raise AccessError(f"{uri}: not allowed ({', '.join(lacking)})", hint=gcs.GRANT)
            return
        found = bucket.list_blobs(prefix=prefix, max_results=1, timeout=20, retry=None)
        if next(iter(found), None) is None:
            raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
