"""Local paths and `gs://` URIs; the only user of google-cloud-storage.

A stage sees local paths only. `localized` downloads the `gs://` inputs of a config before the
stage runs and uploads its outputs after it has succeeded, so one command runs on a laptop, in
docker, in a Job and in a KFP pod.

A finished artifact holds `manifest.json`, written last: size and crc32c of every file. The next
stage verifies it, so a half-written or damaged artifact is never read as whole.
"""

import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from components.config import INPUT, OUTPUT, StageConfig
from components.errors import AccessError, DataError, StorageError
from components.records import Record, read_json

MANIFEST = "manifest.json"
SCHEME = "gs://"

C = TypeVar("C", bound=StageConfig)


class ManifestFile(Record):
    """One file of an artifact: path within it, bytes, and base64 crc32c as GCS spells it."""

    path: str
    size: int
    crc32c: str


class Manifest(Record):
    """The listing that makes an artifact whole."""

    files: list[ManifestFile]


# ---- local files -------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """Write a text file so that it is either there in full or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed by the block below)
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        )
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write here ({error.strerror})",
            hint="Give --output a folder that this user may write.",
        ) from None
    try:
        with partial:
            yield partial
        _make_readable(Path(partial.name))
        Path(partial.name).replace(path)
    except BaseException:
        Path(partial.name).unlink(missing_ok=True)
        raise


def _make_readable(path: Path) -> None:
    """Give a file the mode that `open` would have: temporary files and safetensors are private.

    The next stage may run as another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, record: Record) -> None:
    """Write one record, indented, atomically."""
    with atomic_write(path) as file:
        file.write(record.model_dump_json(indent=2, by_alias=True) + "\n")


def checksum(path: Path) -> str:
    """The crc32c of a file in base64, as GCS reports it."""
    import google_crc32c

    digest = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def seal(folder: Path) -> None:
    """Write the manifest of a finished artifact; the last thing a stage does."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            _make_readable(path)
            name = path.relative_to(folder).as_posix()
            files.append(ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path)))
    write_json(folder / MANIFEST, Manifest(files=files))


def unseal(folder: Path) -> None:
    """Take the manifest away: the artifact is about to change."""
    (folder / MANIFEST).unlink(missing_ok=True)


def verify(folder: Path, flag: str) -> None:
    """Check an artifact against its manifest; a folder that people made by hand has none.

    Args:
        folder: the artifact.
        flag: the flag that named it, for the message.

    Raises:
        DataError: the folder is missing, or a file of it is missing, short or damaged.
    """
    if not folder.is_dir():
        raise DataError("no such folder", path=folder, hint=f"Check {flag}.")
    if not (folder / MANIFEST).exists():
        return
    for entry in read_json(folder / MANIFEST, Manifest).files:
        relative = PurePosixPath(entry.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(f"manifest names {entry.path!r}, outside the artifact", path=folder)
        path = folder / relative
        if not path.is_file():
            problem = "is listed in manifest.json but missing"
        elif path.stat().st_size != entry.size:
            problem = f"has {path.stat().st_size} bytes, manifest.json says {entry.size}"
        elif checksum(path) != entry.crc32c:
            problem = "is damaged: its crc32c differs from manifest.json"
        else:
            continue
        raise DataError(problem, path=path, hint="Run the stage that made this artifact again.")


# ---- gs:// -------------------------------------------------------------------------------------


@contextmanager
def localized(config: C) -> Iterator[C]:
    """Give a stage a config with local paths only: fetch inputs before, publish outputs after.

    Outputs are published only when the body succeeds.

    Raises:
        StorageError: a bucket or prefix is missing, forbidden or empty.
    """
    kinds = {
        name: next((mark for mark in field.metadata if mark in (INPUT, OUTPUT)), None)
        for name, field in type(config).model_fields.items()
    }
    remote = {
        name: value
        for name, kind in kinds.items()
        if kind and isinstance(value := getattr(config, name), str) and value.startswith(SCHEME)
    }
    if not remote:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="raft-") as scratch:
        local = {
            name: Path(scratch) / name / uri.rsplit("/", 1)[-1] for name, uri in remote.items()
        }
        for name, uri in remote.items():
            if kinds[name] == INPUT:
                download(uri, local[name])
        yield config.model_copy(update={name: str(path) for name, path in local.items()})
        for name, uri in remote.items():
            if kinds[name] == OUTPUT:
                upload(local[name], uri)


def download(uri: str, target: Path) -> None:
    """Copy an object to the file `target`, or a prefix to the folder `target`."""
    from google.cloud.storage import transfer_manager

    bucket, prefix = _locate(uri)
    with _explained(uri):
        if prefix and (single := bucket.get_blob(prefix)) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            single.download_to_filename(str(target), checksum="crc32c")
            return
        folder = f"{prefix}/" if prefix else ""
        names = [
            blob.name.removeprefix(folder)
            for blob in bucket.list_blobs(prefix=folder)
            if not blob.name.endswith("/")
        ]
        if not names:
            raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
        for name in names:
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise StorageError(f"{uri}: object {name!r} would be written outside its folder")
        results = transfer_manager.download_many_to_path(
            bucket, names, str(target), blob_name_prefix=folder, worker_type="thread"
        )
        _raise_first(results)


def upload(folder: Path, uri: str) -> None:
    """Copy a folder to a prefix; its manifest goes last, so readers never see half of it."""
    from google.cloud.storage import transfer_manager

    bucket, prefix = _locate(uri)
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    with _explained(uri):
        for batch in ([name for name in names if name != MANIFEST], [MANIFEST]):
            present = [name for name in batch if name in names]
            results = transfer_manager.upload_many_from_filenames(
                bucket,
                present,
                source_directory=str(folder),
                blob_name_prefix=f"{prefix}/" if prefix else "",
                worker_type="thread",
            )
            _raise_first(results)


def reachable(uri: str, *, write: bool = False) -> None:
    """Check that something lies at a URI, or that objects may be written there; changes nothing.

    Raises:
        AccessError: no credentials, or not allowed.
        StorageError: no such bucket, nothing there, or no answer.
    """
    from google.auth.exceptions import GoogleAuthError

    bucket, prefix = _locate(uri)
    try:
        with _explained(uri):
            if write:
                needed = [f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list")]
                granted = bucket.test_iam_permissions(needed, timeout=20)
                if lacking := sorted(set(needed) - set(granted)):
                    raise AccessError(f"{uri}: not allowed ({', '.join(lacking)})", hint=_GRANT)
                return
            found = bucket.list_blobs(prefix=prefix, max_results=1, timeout=20, retry=None)
            if next(iter(found), None) is None:
                raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
    except GoogleAuthError as error:
        raise AccessError(f"{uri}: {error}", hint="gcloud auth application-default login") from None
    except OSError as error:
        raise StorageError(f"{uri}: no answer ({type(error).__name__})") from None


_GRANT = "Grant roles/storage.objectUser on the bucket to this account."


def _locate(uri: str) -> tuple[Any, str]:
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if not name:
        raise StorageError(f"{uri}: no bucket named", hint="Write gs://BUCKET/PREFIX.")
    try:
        return storage.Client().bucket(name), prefix.rstrip("/")
    except (DefaultCredentialsError, OSError):
        raise AccessError(
            f"{uri}: no Google Cloud credentials found",
            hint="Run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a mounted key file.",
        ) from None


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized

    try:
        yield
    except NotFound:
        raise StorageError(f"{uri}: no such bucket or object", hint="Check the URI.") from None
    except (Forbidden, Unauthorized) as error:
        raise AccessError(f"{uri}: not allowed ({error.message})", hint=_GRANT) from None
    except GoogleAPIError as error:
        raise StorageError(f"{uri}: {error}") from None


def _raise_first(results: list[Any]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
