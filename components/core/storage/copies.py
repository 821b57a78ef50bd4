"""Copy artifacts to and from a bucket; a reader finds a whole one or gets an error."""

import base64
import gzip
import mmap
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.core.errors import DataError, RaftError, StorageError
from components.core.locations import SCHEME
from components.core.records import explain, read_json
from components.core.storage import bucket as gcs
from components.core.storage.artifacts import (
    AGAIN,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    entry_of,
    fault_of,
    manifest_at,
    not_finished,
)
from components.core.storage.files import write_json, writing
from components.core.storage.places import MANIFEST

if TYPE_CHECKING:
    from google.cloud.storage import Blob

PART = 32 * 2**20  # bytes; a larger file is copied in parts, several at once
PARTS = ".parts"  # where parts are until they are one object
FOLDER_MARK = "_$folder$"  # ends the name of an empty object with which Hadoop marks a folder
PARTS_OF_A_FILE = 32  # as many as Cloud Storage makes one object of


def fetch(uri: str, target: Path) -> None:
    """Copy an object to the file `target`, or an artifact or prefix to the folder `target`.

    Of an object and a prefix of one name, a URI with a slash at its end names the prefix.

    Files that are already there with the right checksum are not copied again; files that are
    there and not in the source are removed.

    Raises:
        StorageError: nothing there, or not allowed, or it keeps changing.
        DataError: the artifact is unfinished or damaged.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with gcs.opened(uri) as (bucket, prefix):
        for left in reversed(range(gcs.ATTEMPTS)):
            try:
                single, objects = None, {}
                if prefix and not uri.endswith("/"):
                    single = bucket.get_blob(prefix, **gcs.patiently())
                if single is None or not single.size:  # an empty one may mark a folder
                    # One listing is one moment; asked for one by one, a manifest that is replaced
                    # could seem to be missing, and half an artifact a folder that people filled.
                    objects = gcs.list_objects(bucket, prefix)
                if single is not None and not objects:
                    _download({target: (single, _content_entry(target.name, single))}, target)
                else:
                    _fetch_folder(objects, uri, target)
                return
            except (RaftError, NotFound, PreconditionFailed):
                if not left:  # else it may have been replaced meanwhile
                    raise


def _fetch_folder(objects: dict[str, "Blob"], uri: str, target: Path) -> None:
    manifest, wanted = _manifest(objects, uri), {}
    for entry in manifest.files:
        blob = objects.get(entry.path)
        if (fault := fault_of(blob, entry)) and (blob is None or not _is_gzip(blob)):
            raise DataError(fault, path=f"{uri.rstrip('/')}/{entry.path}", hint=AGAIN)
        wanted[target / entry.path] = objects[entry.path], entry
    _download(wanted, target)
    if MANIFEST in objects:
        write_json(target / MANIFEST, manifest)


def _manifest(objects: dict[str, "Blob"], uri: str) -> Manifest:
    """The manifest of an artifact, or one of all objects of a prefix that people filled."""
    if PARTIAL_MANIFEST in objects and MANIFEST not in objects:
        raise not_finished(uri)
    if MANIFEST not in objects:
        if files := [*_by_hand(objects, uri)]:
            return Manifest(files=files)
        raise StorageError(f"{uri}: nothing there", hint="Check the bucket and the prefix.")
    try:
        return Manifest.model_validate_json(gcs.read_object(objects[MANIFEST]))
    except ValidationError as error:
        problem = f"manifest.json is damaged ({explain(error)})"
        raise DataError(problem, path=uri, hint=AGAIN) from error


def _by_hand(objects: dict[str, "Blob"], uri: str) -> Iterator[ManifestFile]:
    """The files among the objects of a prefix; tools mark folders by empty objects.

    Raises:
        DataError: two objects cannot both be files here, or one cannot.
    """
    folders = {name[:end] for name in objects for end in range(len(name) - 1) if name[end] == "/"}
    for name, blob in objects.items():
        marks_folder = not blob.size and (name in folders or name.endswith(FOLDER_MARK))
        if marks_folder or f"/{name}".endswith("/"):
            continue
        try:
            if name in folders:
                raise ValueError("it is an object, and a folder with others in it")
            yield _content_entry(name, blob)
        except ValueError as error:
            raise DataError(
                f"no file can have this name ({explain(error)})",
                path=f"{uri.rstrip('/')}/{name}",
                hint="Give it another name, with gcloud storage mv.",
            ) from error


def _entry(name: str, blob: "Blob") -> ManifestFile:
    """An object as it is stored."""
    return ManifestFile(path=name, size=blob.size or 0, crc32c=blob.crc32c)


def _content_entry(name: str, blob: "Blob") -> ManifestFile:
    """The content of an object that no manifest lists: unknown where it is stored compressed."""
    return _entry(name, blob).model_copy(update={"crc32c": ""} if _is_gzip(blob) else {})


def _is_gzip(blob: "Blob") -> bool:
    encoding: str | None = blob.content_encoding
    return encoding == "gzip"


def _download(wanted: dict[Path, tuple["Blob", ManifestFile]], target: Path) -> None:
    """Copy the objects that are missing; of one that arrives damaged nothing is left."""
    missing = {path: both for path, both in wanted.items() if fault_of(path, both[1])}
    jobs: list[gcs.Job] = []
    with writing(target):
        # What is in the way goes, contents first: what is a folder now may have been an object
        # before, or the other way round.
        for path in sorted([target, *target.rglob("*")], reverse=True):
            if path.is_dir():
                with suppress(OSError):  # it is not empty
                    path.rmdir()
            elif path not in wanted:
                path.unlink(missing_ok=True)
        for path, (blob, _) in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            for start, end in _spans(blob.size or 0):
                jobs.append((end - start, partial(_receive, blob, path, start, end)))
        gcs.in_parallel(jobs, "fetching")
        gcs.traffic["fetched"] += sum(size for size, _ in jobs)
        for path, (blob, entry) in missing.items():
            uri = f"{SCHEME}{blob.bucket.name}/{blob.name}"
            if fault_of(path, _entry(entry.path, blob)):
                path.unlink()
                raise StorageError(f"{uri}: arrived damaged", hint=gcs.REPEAT)
            if _is_gzip(blob) and fault_of(path, entry):
                _decompress(path, uri)
                if entry.crc32c and (fault := fault_of(path, entry)):
                    raise DataError(fault, path=uri, hint=AGAIN)


def _decompress(path: Path, uri: str) -> None:
    """Replace a file by what it holds compressed."""
    try:
        with gzip.open(path) as compressed:
            path.unlink()
            with path.open("wb") as content:
                shutil.copyfileobj(compressed, content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        path.unlink()
        raise DataError(
            f"cannot be decompressed, though its Content-Encoding is gzip ({error})",
            path=uri,
            hint="Upload it again, or clear its encoding: gcloud storage objects update URI "
            "--clear-content-encoding",
        ) from error


def _receive(blob: "Blob", path: Path, start: int, end: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        # The client can check none of which it has a part only, so files are checked afterwards.
        blob.download_to_file(
            file, start=start, end=end - 1, checksum=None, raw_download=True, **gcs.patiently()
        )


def _spans(size: int) -> list[tuple[int, int]]:
    """Start and end of each part of a file."""
    unit = mmap.ALLOCATIONGRANULARITY
    step = -(-max(PART, -(-size // PARTS_OF_A_FILE)) // unit) * unit
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def publish(folder: Path, uri: str, *, quiet: bool = False) -> None:
    """Copy a finished artifact to a prefix, in an order that never shows half of it.

    Only files that differ are copied, so an interrupted publication resumes. With `quiet` no
    progress is shown: for a publication during other work.

    Raises:
        StorageError: not allowed, no such bucket, or somebody else writes there too.
    """
    manifest, listing = read_json(folder / MANIFEST, Manifest), entry_of(folder, MANIFEST)
    with gcs.opened(uri) as (bucket, prefix):
        objects = gcs.list_objects(bucket, prefix)
        changed = [entry for entry in manifest.files if fault_of(objects.get(entry.path), entry)]
        is_there = not changed and not fault_of(objects.get(MANIFEST), listing)
        if is_there and PARTIAL_MANIFEST not in objects:
            return

        def blob_of(name: str) -> "Blob":
            return bucket.blob(f"{prefix}/{name}".lstrip("/"))

        def write(name: str, entry: ManifestFile) -> "Blob":
            blob, path = blob_of(name), str(folder / entry.path)
            send = partial(blob.upload_from_filename, path, checksum="crc32c")
            return gcs.write_object(blob, objects.get(name), entry.crc32c, send)

        before = manifest_at(uri)
        listed = {entry.path for entry in manifest.files}
        obsolete = {entry.path for entry in before.files} - listed if before else set()
        mark = write(PARTIAL_MANIFEST, listing)
        gcs.delete_objects([objects.pop(MANIFEST)] if MANIFEST in objects else [])
        gcs.delete_objects(objects[name] for name in obsolete & objects.keys())
        jobs: list[gcs.Job] = []
        parts = {name: blob for name, blob in objects.items() if name.startswith(f"{PARTS}/")}
        large = {}
        for entry in changed:
            if entry.size <= PART:
                jobs.append((entry.size, partial(write, entry.path, entry)))
                continue
            crc32c = base64.b64decode(entry.crc32c).hex()
            large[entry] = [
                f"{PARTS}/{entry.path}/{crc32c}-{entry.size}-{start:012}-{end}"
                for start, end in _spans(entry.size)
            ]
            for name, (start, end) in zip(large[entry], _spans(entry.size), strict=True):
                if name not in parts:
                    parts[name] = blob_of(name)
                    send = partial(_send_part, parts[name], folder / entry.path, start, end)
                    jobs.append((end - start, send))
        gcs.in_parallel(jobs, "" if quiet else "publishing")
        for entry, names in large.items():
            # Cloud Storage makes one object of them without copying bytes.
            blob = blob_of(entry.path)
            compose = partial(blob.compose, [parts[name] for name in names])
            blob = gcs.write_object(blob, objects.get(entry.path), entry.crc32c, compose)
            if blob.crc32c != entry.crc32c:
                gcs.delete_objects(parts.values())
                raise StorageError(
                    f"{uri}/{entry.path}: its parts do not make the file", hint=gcs.REPEAT
                )
        write(MANIFEST, listing)
        gcs.delete_objects(parts.values())
        gcs.delete_objects([mark])  # fails if another writer is at work, who has replaced it


def _send_part(blob: "Blob", path: Path, start: int, end: int) -> None:
    from google.api_core.exceptions import PreconditionFailed

    size = end - start
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start) as part,
        suppress(PreconditionFailed),  # its name tells its content
    ):
        blob.upload_from_file(
            part, size=size, if_generation_match=0, checksum="crc32c", **gcs.patiently()
        )
