"""Look, read, write and remove at a location, be it a folder or a `gs://` prefix.

Every function raises a StorageError where the location is forbidden, or neither of the two.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Union

from components.core.errors import StorageError
from components.core.redaction import redact
from components.core.storage import bucket as gcs
from components.core.storage.files import atomic_write

if TYPE_CHECKING:
    from google.cloud.storage import Blob

MANIFEST = "manifest.json"

File = Union[Path, "Blob"]


def files_in(location: str) -> dict[str, File]:
    """The files at any depth of a folder or prefix, by their names within it; none is fine."""
    if gcs.is_remote(location):
        with gcs.opened(location) as (bucket, prefix):
            return {**gcs.list_objects(bucket, prefix)}
    paths = sorted(path for path in Path(location).rglob("*") if path.is_file())
    return {path.relative_to(location).as_posix(): path for path in paths}


def read_file(location: str, name: str) -> bytes | None:
    """The content of a small file in a folder or prefix; None if there is none."""
    if not gcs.is_remote(location):
        return _content(Path(location) / name)
    with gcs.opened(location) as (bucket, prefix):
        return _content(bucket.blob(f"{prefix}/{name}".lstrip("/")))


def _content(file: File) -> bytes | None:
    """All of a file; None if it is not there, or not any more."""
    if isinstance(file, Path):
        with suppress(FileNotFoundError, NotADirectoryError):
            return file.read_bytes()
        return None
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with suppress(NotFound, PreconditionFailed):
        return gcs.read_object(file)
    return None


def folders(location: str) -> set[str]:
    """The names of the folders directly in a folder or prefix; none if it is not there."""
    return {name.split("/")[0] for name in files_in(location) if "/" in name}


def is_artifact(location: str) -> bool:
    """Whether a finished artifact is at a path or URI."""
    return read_file(location, MANIFEST) is not None


def find(location: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The texts under a folder or prefix, at any depth, whose file name is wanted, by full path.

    Raises:
        StorageError: the location is missing.
    """
    files = files_in(location)
    if not files and not gcs.is_remote(location) and not Path(location).is_dir():
        raise StorageError(f"{location}: no such folder")
    for name, file in files.items():
        if wanted(name.rpartition("/")[2]):
            with gcs.explained(location):
                content = _content(file)
            if content is not None:
                yield f"{location.rstrip('/')}/{name}", content.decode(errors="replace")


def put(text: str, location: Path | str) -> None:
    """Write one text to a local path or an object."""
    location = str(location)
    if gcs.is_remote(location):
        with gcs.opened(location) as (bucket, name):
            bucket.blob(name).upload_from_string(
                redact(text), content_type="application/json", **gcs.patiently()
            )
    else:
        with atomic_write(Path(location)) as file:
            file.write(text)


def remove(location: str) -> None:
    """Remove a folder or all objects under a prefix, its manifest first; none is fine."""
    if not gcs.is_remote(location):
        (Path(location) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(location, ignore_errors=True)
        return
    with gcs.opened(location) as (bucket, prefix):
        if not prefix:
            raise StorageError(f"{location}: a whole bucket is not removed")
        objects = gcs.list_objects(bucket, prefix)
        for manifests in (True, False):
            gcs.delete_objects(
                blob for name, blob in objects.items() if name.endswith(MANIFEST) is manifests
            )


def remove_files(location: str, wanted: Callable[[str], bool]) -> None:
    """Remove the files of a folder, or the objects under a prefix, with wanted names."""
    if not gcs.is_remote(location):
        for path in Path(location).glob("*"):
            if wanted(path.name):
                path.unlink()
        return
    with gcs.opened(location) as (bucket, prefix):
        objects = gcs.list_objects(bucket, prefix)
        gcs.delete_objects(blob for name, blob in objects.items() if wanted(name))
