"""Local paths and `gs://` URIs; the only user of google-cloud-storage.

A stage sees local paths only. `localized` fetches the `gs://` inputs of a config before the stage
runs and publishes its outputs after it has succeeded, so one command runs on a laptop, in docker,
in a Job and in a KFP pod.

An artifact is a folder with `manifest.json`: size and crc32c of every file, written last. While it
is being made or changed it holds `manifest.partial.json` instead, so a half-written artifact is
never read as whole, and the next stage verifies what it reads. On GCS the order is

    partial manifest up, old manifest away, changed files up, manifest up, partial manifest away

and every write names the generation that it replaces, so two writers cannot mix their files. What
was copied before an interruption is not copied again: files, 32 MiB parts of large ones on the way
up, bytes on the way down.
"""

import base64
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from components.config import INPUT, OUTPUT, Settings
from components.errors import AccessError, DataError, RaftError, StorageError
from components.progress import task
from components.records import Record, explain, read_json
from components.redaction import redact

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from google.cloud.storage import Blob, Bucket

MANIFEST = "manifest.json"
PARTIAL_MANIFEST = "manifest.partial.json"
LEDGER = "ledger.json"
SCHEME = "gs://"

TRANSFERS = 16  # files, or parts of large ones, under way at once
PARTS = ".parts"  # where parts lie until they are one object
PART = 32 * 2**20  # bytes; a larger file goes up in parts, so that what arrived is not sent again
PARTS_OF_A_FILE = 32  # as many as Cloud Storage makes one object of
SECONDS_OF_RETRIES = 600.0
SECONDS_OF_SILENCE = 60.0  # of a connection, before its request is sent again
ATTEMPTS = 3  # at a copy that is whole, and at a set of files that fit together
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FOLDERS_ABOVE = 2  # in which the manifest of an artifact may lie that a file or folder is part of

_AGAIN = (
    "Run the stage that made this artifact again; or, if it was changed on purpose, remove its "
    "manifest.json and ledger.json."
)
_GRANT = "Grant roles/storage.objectUser on the bucket to this account."

C = TypeVar("C", bound=Settings)
T = TypeVar("T")


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
        StorageError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        with io.TextIOWrapper(io.BufferedWriter(_Named(number, "w", path)), "utf-8") as file:
            yield _Redacted(file)  # type: ignore[misc]
        _make_readable(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def temporary_file(prefix: str) -> io.BufferedRandom:
    """A file for reading and writing that is gone when it is closed.

    Raises:
        StorageError: now or at a write, temporary files cannot be written, or their disk is full.
    """
    folder = Path(tempfile.gettempdir())
    try:
        number, name = tempfile.mkstemp(dir=folder, prefix=prefix)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    Path(name).unlink()
    return io.BufferedRandom(_Named(number, "r+", folder))


class _Named(io.FileIO):
    """An open file whose errors in writing name a place: a system's own name none."""

    def __init__(self, number: int, mode: str, place: Path) -> None:
        super().__init__(number, mode)
        self.place = place

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _cannot_write(self.place, error) from None


class _Redacted(io.TextIOBase):
    """A text file that takes no secrets: what servers and exceptions say ends up in reports."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, text: str) -> int:
        self.file.write(redact(text))
        return len(text)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    if error.errno in FULL:
        hint = "Make room there, or give another place: --output, or for temporary files TMPDIR."
    else:
        hint = (
            "Give --output (for temporary files TMPDIR) a folder that this user may write; in "
            'docker, pass --user "$(id -u):$(id -g)" for a mounted folder of your own.'
        )
    return StorageError(f"{path}: cannot write here ({error.strerror})", hint=hint)


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


def checked_line(body: bytes) -> bytes:
    """A line that says by its first word whether the rest is whole: the crc32 in hexadecimal."""
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_checked_line(line: bytes) -> bytes:
    """What was put in a checked line.

    Raises:
        ValueError: it was torn or damaged.
    """
    body = line[9:-1]
    if line != checked_line(body):
        raise ValueError("torn or damaged")
    return body


def checksum(path: Path) -> str:
    """The crc32c of a file in base64, as GCS reports it."""
    with path.open("rb") as file:
        return _checksum(iter(lambda: file.read(1 << 20), b""))


def _checksum(blocks: Iterable[bytes]) -> str:
    import google_crc32c

    digest = google_crc32c.Checksum()
    for block in blocks:
        digest.update(block)
    return base64.b64encode(digest.digest()).decode()


# ---- artifacts ---------------------------------------------------------------------------------


def unseal(folder: Path, stage: str = "", keep: str = "") -> None:
    """Mark an artifact as unfinished: it is about to be made or changed.

    What the artifact before consisted of is removed, and what a killed attempt has left behind: if
    that had other settings, its files would become part of this artifact.

    Args:
        folder: the artifact.
        stage: whose artifact it will be; one of another stage is not removed for it.
        keep: a folder or file in it from which the stage goes on.

    Raises:
        StorageError: the folder cannot be written, or holds something else than an artifact.
        DataError: the manifest of the artifact before is damaged, so nobody knows what it had.
    """
    before = []
    if (folder / MANIFEST).exists():
        try:
            listed = read_json(folder / MANIFEST, Manifest).files
            before = [_inside(folder, entry.path) for entry in listed]
        except DataError as error:
            error.hint = "Remove the folder, or give another --output."
            raise
    if folder.is_dir():
        # A first attempt that was killed here may have left half of the partial manifest.
        others = [p for p in folder.iterdir() if not p.name.startswith(f".{PARTIAL_MANIFEST}.")]
        ours = (folder / MANIFEST).exists() or (folder / PARTIAL_MANIFEST).exists()
        if others and not ours:
            raise StorageError(
                f"--output {folder}: the folder holds something else",
                hint="Give a new or empty folder: everything in it becomes part of the artifact.",
            )
        if stage and (other := _made_by(folder)) not in ("", stage):
            raise StorageError(
                f"--output {folder}: holds what raft {other} wrote",
                hint="Give a folder of its own, or remove this one first.",
            )
        unfinished = not (folder / MANIFEST).exists()
        try:
            for leftover in folder.glob("*" if unfinished else ".*"):
                if leftover.name not in (keep, PARTIAL_MANIFEST):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError as error:
            raise _cannot_write(folder, error) from None
    write_json(folder / PARTIAL_MANIFEST, Manifest(files=[]))
    if (folder / MANIFEST).exists():
        # Nothing of the artifact before may end up in the next: a stale adapter would be loaded.
        for path in before:
            with suppress(OSError):  # a name that no file of ours has
                path.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)


def _made_by(folder: Path) -> str:
    """The stage whose account lies in a folder; "" where none can be read."""
    try:
        account = json.loads((folder / LEDGER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    return str(account.get("stage", "")) if isinstance(account, dict) else ""


def seal(folder: Path, without: str = "") -> None:
    """Write the manifest of a finished artifact; the last thing a stage does.

    Args:
        folder: the artifact.
        without: a folder or file in it that is no part of the artifact.
    """
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if without and f"{name}/".startswith(f"{without}/"):
            continue
        if path.is_file() and name not in (MANIFEST, PARTIAL_MANIFEST):
            _make_readable(path)
            files.append(ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path)))
    write_json(folder / MANIFEST, Manifest(files=files))
    (folder / PARTIAL_MANIFEST).unlink(missing_ok=True)


def verify(location: Path, flag: str) -> None:
    """Check what lies at a path against the manifest of the artifact that it is, or is part of.

    A folder that people made by hand has no manifest, and is taken as it is. Checksums take as
    long as reading the files does.

    Args:
        location: an artifact, or a folder or file of one.
        flag: the flag that named it, for the message.

    Raises:
        DataError: it is missing, unfinished or damaged, or its manifest is.
    """
    if not location.exists():
        raise DataError("no such file or folder", path=location, hint=f"Check {flag}.")
    folder, listed = _manifest_of(location)
    for entry in listed:
        path = _inside(folder, entry.path)
        if location not in (path, *path.parents):
            continue
        if fault := _fault(path, entry):
            raise DataError(fault, path=path, hint=_AGAIN)


def _manifest_of(location: Path) -> tuple[Path, list[ManifestFile]]:
    """The artifact that a file or folder is part of, and the files that make it whole.

    Raises:
        DataError: the artifact is unfinished, or its manifest is missing or damaged.
    """
    for folder in (location, *location.parents[:FOLDERS_ABOVE]):
        if (folder / MANIFEST).is_file():
            try:
                return folder, read_json(folder / MANIFEST, Manifest).files
            except DataError as error:
                if folder == location or b"crc32c" in (folder / MANIFEST).read_bytes():
                    error.hint = _AGAIN
                    raise
                continue  # something else of this name
        if (folder / PARTIAL_MANIFEST).exists():
            raise _unfinished(folder)
        # Every stage leaves a ledger, and then the manifest; a run's folder may hold one, too.
        if folder == location and (folder / LEDGER).exists():
            raise DataError("its manifest.json is missing", path=folder, hint=_AGAIN)
    return location, []


def faults(texts: Mapping[str, str], wanted: Callable[[str], bool]) -> dict[str, str]:
    """What is wrong with an artifact of which `find` gave the wanted texts, by name.

    Args:
        texts: by name, `manifest.json` among them.
        wanted: as `find` was given it.
    """
    try:
        listed = Manifest.model_validate_json(texts[MANIFEST]).files
    except ValidationError:
        return {MANIFEST: "is damaged"}
    found = {}
    for entry in listed:
        if entry.path not in texts:
            if wanted(entry.path):
                found[entry.path] = f"is listed in {MANIFEST} but missing"
        elif _checksum([texts[entry.path].encode()]) != entry.crc32c:
            found[entry.path] = f"is damaged: its crc32c differs from {MANIFEST}"
    return found


def _unfinished(place: Path | str) -> DataError:
    return DataError(
        "this artifact is not finished: the stage that makes it is still running, or was stopped",
        path=place,
        hint="Wait for it, or run that stage again.",
    )


def _fault(path: Path, entry: ManifestFile) -> str:
    """What is wrong with a file that a manifest lists; "" if nothing."""
    try:
        if not path.is_file():
            return "is listed in manifest.json but missing"
    except OSError as error:
        return f"is listed in manifest.json but cannot be read ({error.strerror})"
    if path.stat().st_size != entry.size:
        return f"has {path.stat().st_size} bytes, manifest.json says {entry.size}"
    if checksum(path) != entry.crc32c:
        return "is damaged: its crc32c differs from manifest.json"
    return ""


def _inside(folder: Path, name: str) -> Path:
    """The path of `name` in a folder; names come from buckets and manifests, so they may lie.

    Raises:
        DataError: the name leads out of the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name or not relative.parts:
        raise DataError(f"names a file {name!r}, outside the artifact", path=folder)
    return folder / relative


# ---- wherever they lie --------------------------------------------------------------------------


def folders(location: str) -> set[str]:
    """The names of the folders directly in a folder or prefix; none if it is not there.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        bucket, prefix = _locate(location)
        with _explained(location):
            names = [blob.name for blob in _objects(bucket, _join(prefix, ""))]
        inside = [name.removeprefix(_join(prefix, "")) for name in names]
        return {name.split("/")[0] for name in inside if "/" in name}
    _refuse_other_schemes(location)
    return {path.name for path in Path(location).glob("*") if path.is_dir()}


def is_artifact(location: str) -> bool:
    """Whether a finished artifact lies at a path or URI.

    Raises:
        StorageError: the location is forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        bucket, prefix = _locate(location)
        with _explained(location):
            return _object(bucket, _join(prefix, MANIFEST)) is not None
    _refuse_other_schemes(location)
    return (Path(location) / MANIFEST).exists()


def remove(location: str) -> None:
    """Remove a folder or all objects under a prefix, its manifest first; none is fine.

    Raises:
        StorageError: not allowed, or the location is not understood.
    """
    if not location.startswith(SCHEME):
        _refuse_other_schemes(location)
        (Path(location) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(location, ignore_errors=True)
        return
    bucket, prefix = _locate(location)
    if not prefix:
        raise StorageError(f"{location}: a whole bucket is not removed")
    with _explained(location):
        blobs = list(_objects(bucket, _join(prefix, "")))
        manifests = [blob for blob in blobs if blob.name.endswith(f"/{MANIFEST}")]
        rest = [blob for blob in blobs if not blob.name.endswith(f"/{MANIFEST}")]
        for some in (manifests, rest):
            _in_parallel("", [(0, partial(_delete, blob)) for blob in some])


def find(location: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """The texts under a folder or prefix, at any depth, whose file name is wanted, by full path.

    Raises:
        StorageError: the location is missing, forbidden, or of a kind that is not understood.
    """
    if location.startswith(SCHEME):
        from google.api_core.exceptions import NotFound, PreconditionFailed

        bucket, prefix = _locate(location)
        with _explained(location):
            for blob in _objects(bucket, _join(prefix, "")):
                if wanted(blob.name.rpartition("/")[2]):
                    with suppress(NotFound, PreconditionFailed):  # it vanished meanwhile
                        yield _uri(blob), _content(blob).decode(errors="replace")
        return
    _refuse_other_schemes(location)
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
        bucket, name = _locate(location)
        with _explained(location):
            bucket.blob(name).upload_from_string(
                redact(text), content_type="application/json", retry=_retry()
            )
        return
    _refuse_other_schemes(location)
    with atomic_write(Path(location)) as file:
        file.write(text)


def _refuse_other_schemes(location: str) -> None:
    if "://" in location:
        raise StorageError(
            f"{location}: only local paths and gs:// can be read here",
            hint="Give the run a pipeline root on gs://.",
        )


# ---- a stage with gs:// flags ------------------------------------------------------------------


@contextmanager
def localized(config: C) -> Iterator[C]:
    """Give a stage a config with local paths only: fetch inputs before, publish outputs after.

    Outputs are published only when the body succeeds. What was fetched or made is kept in the
    temporary folder until then, so that a second try copies only what is missing.

    Raises:
        StorageError: a bucket or prefix is missing, forbidden or empty.
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
        raise _cannot_write(root, error) from None
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


# ---- fetching ----------------------------------------------------------------------------------


def fetch(uri: str, target: Path) -> None:
    """Copy an object to the file `target`, or an artifact or prefix to the folder `target`.

    Files that are already there with the right checksum are not copied again; files that are
    there and not in the source are removed.

    Raises:
        StorageError: nothing there, or not allowed, or it keeps changing.
        DataError: the artifact is unfinished.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    bucket, prefix = _locate(uri)
    with _explained(uri):
        if prefix and not uri.endswith("/") and (single := _object(bucket, prefix)) is not None:
            _download(single, target)
            return
        for _ in range(ATTEMPTS):
            # One listing is one moment; asked for one by one, a manifest that is replaced could
            # seem to be missing, and half an artifact a folder that people filled.
            there = {
                blob.name.removeprefix(_join(prefix, "")): blob
                for blob in _objects(bucket, _join(prefix, ""))
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
            hint=_AGAIN,
        )
    return StorageError(f"{uri}: somebody keeps changing it", hint="Try again later.")


def _remote_manifest(there: dict[str, "Blob"], uri: str) -> Manifest | None:
    """The manifest of an artifact; None for a prefix that people filled by hand."""
    if MANIFEST in there:
        try:
            return Manifest.model_validate_json(_content(there[MANIFEST]))
        except ValidationError as error:
            raise DataError(
                f"manifest.json is damaged ({explain(error)})", path=uri, hint=_AGAIN
            ) from None
    if PARTIAL_MANIFEST in there:
        raise _unfinished(uri)
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
                hint=_AGAIN,
            )
    return {entry.path: (found[entry.path], entry) for entry in manifest.files}


def _fetch_listed(listing: dict[str, tuple["Blob", ManifestFile]], target: Path) -> str:
    """Copy what is missing.

    Returns:
        A file that is gone, or is not what it should be: it was replaced meanwhile; "" if none.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    wanted = {_inside(target, name): both for name, both in listing.items()}
    halves = {_half(path, blob) for path, (blob, _) in wanted.items()}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path not in wanted and path not in halves:
            path.unlink()
    missing = {path: both for path, both in wanted.items() if _fault(path, both[1])}
    try:
        _in_parallel(
            "fetching",
            [
                (entry.size, partial(_download, blob, path))
                for path, (blob, entry) in missing.items()
            ],
        )
    except (NotFound, PreconditionFailed):
        return next((entry.path for path, (_, entry) in missing.items() if not path.exists()), "?")
    misfits = (entry.path for path, (_, entry) in missing.items() if _fault(path, entry))
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
        _intact(blob, partial(_append, blob, half))
        half.replace(path)
    except OSError as error:
        if error.errno is None:  # the client's own errors derive from OSError too
            raise
        raise _cannot_write(path, error) from None


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
                    retry=_retry(),
                )
        if done and checksum(half) != blob.crc32c:
            raise DataCorruption(None)
    except DataCorruption:
        half.unlink()
        raise


def _content(blob: "Blob") -> bytes:
    """All of a small object, of exactly the generation that was listed.

    Raises:
        StorageError: it keeps arriving damaged.
    """
    content: bytes = _intact(
        blob,
        partial(blob.download_as_bytes, if_generation_match=blob.generation, retry=_retry()),
    )
    return content


def _intact(blob: "Blob", copy: Callable[[], T]) -> T:
    """Copy, and once more when the copy is damaged."""
    from google.cloud.storage.exceptions import DataCorruption

    for _ in range(ATTEMPTS):
        with suppress(DataCorruption):
            return copy()
    raise StorageError(
        f"{_uri(blob)}: arrived damaged {ATTEMPTS} times", hint="Run the same command again."
    )


# ---- publishing --------------------------------------------------------------------------------


def publish(folder: Path, uri: str, *, quiet: bool = False) -> None:
    """Copy a sealed artifact to a prefix, in an order that never shows half of it.

    Only files that differ are copied, so an interrupted publication goes on where it was.
    `quiet` shows no progress: for one that goes on beside other work.

    Raises:
        StorageError: not allowed, no such bucket, or somebody else writes there too.
    """
    bucket, prefix = _locate(uri)
    manifest = read_json(folder / MANIFEST, Manifest)
    with _explained(uri):
        there = {
            blob.name.removeprefix(_join(prefix, "")): blob
            for blob in _objects(bucket, _join(prefix, ""))
        }
        changed = [entry for entry in manifest.files if not _is_there(there, entry)]
        listing = _entry(folder, MANIFEST)
        if not changed and _is_there(there, listing) and PARTIAL_MANIFEST not in there:
            return
        stale = _no_longer_listed(there, manifest)

        large = {entry.path: _parts(entry) for entry in changed if entry.size > PART}

        def put(entry: ManifestFile, name: str) -> "Blob":
            blob = bucket.blob(_join(prefix, name))
            _upload(folder / entry.path, blob, there.get(name), entry)
            return blob

        mark = put(listing, PARTIAL_MANIFEST)  # over that of a writer who was stopped
        if (old := there.pop(MANIFEST, None)) is not None:
            _delete_exactly(old)
        jobs = [
            (entry.size, partial(put, entry, entry.path))
            for entry in changed
            if entry.path not in large
        ]
        jobs += [
            (
                part.size,
                partial(_upload_part, folder / path, bucket.blob(_join(prefix, name)), part),
            )
            for path, parts in large.items()
            for name, part in parts.items()
            if name not in there
        ]
        _in_parallel("" if quiet else "publishing", jobs)

        def compose(entry: ManifestFile) -> None:
            sources = [bucket.blob(_join(prefix, name)) for name in large[entry.path]]
            whole = bucket.blob(_join(prefix, entry.path))
            _compose(sources, whole, there.get(entry.path), entry)

        _in_parallel(
            "", [(entry.size, partial(compose, entry)) for entry in changed if entry.path in large]
        )
        put(listing, MANIFEST)
        parts_there = {name for name in there if name.startswith(f"{PARTS}/")}
        # Dozens for a large file, and each takes as long as an answer does.
        gone = [
            bucket.blob(_join(prefix, name)) for name in parts_there.union(*large.values(), stale)
        ]
        _in_parallel("", [(0, partial(_delete, blob)) for blob in gone])
        _delete_exactly(mark)  # which tells of a writer who was not stopped, and put another there


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
            view, size=part.size, if_generation_match=0, checksum="crc32c", retry=_retry()
        )


def _compose(parts: list["Blob"], blob: "Blob", before: "Blob | None", entry: ManifestFile) -> None:
    """Make one object of the parts of a file, which Cloud Storage does without copying bytes."""
    from google.api_core.exceptions import NotFound

    try:
        with _met_by_another(blob, entry):
            blob.compose(parts, if_generation_match=_generation(before), retry=_retry())
    except NotFound:
        raise _somebody_else(blob) from None
    if blob.crc32c != entry.crc32c:
        for part in parts:
            _delete(part)
        raise StorageError(
            f"{_uri(blob)}: its parts do not make the file",
            hint="Run the same command again.",
        )


def _entry(folder: Path, name: str) -> ManifestFile:
    path = folder / name
    return ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path))


def _is_there(there: dict[str, "Blob"], entry: ManifestFile) -> bool:
    blob = there.get(entry.path)
    return blob is not None and _same(blob, entry)


def _same(blob: "Blob", entry: ManifestFile) -> bool:
    return (blob.size, blob.crc32c) == (entry.size, entry.crc32c)


def _no_longer_listed(there: dict[str, "Blob"], manifest: Manifest) -> list[str]:
    """Files of the artifact that was there before, which the new one lacks; nobody else's."""
    if MANIFEST not in there:
        return []
    try:
        before = Manifest.model_validate_json(_content(there[MANIFEST]))
    except ValueError:
        return []
    listed = {entry.path for entry in manifest.files}
    return [entry.path for entry in before.files if entry.path not in listed | {MANIFEST}]


def _upload(path: Path, blob: "Blob", before: "Blob | None", entry: ManifestFile) -> None:
    with _met_by_another(blob, entry):
        blob.upload_from_filename(
            str(path),
            if_generation_match=_generation(before),
            checksum="crc32c",
            retry=_retry(),
        )


def _generation(before: "Blob | None") -> int:
    """What a write replaces: a generation, or 0 for nothing."""
    return before.generation if before is not None else 0


@contextmanager
def _met_by_another(blob: "Blob", entry: ManifestFile) -> Iterator[None]:
    """Mind who wrote, when the object is not what this write was to replace."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        yield
    except PreconditionFailed:
        # Either somebody else wrote it, or a retry met its own first try.
        try:
            blob.reload(retry=_retry())
        except NotFound:
            raise _somebody_else(blob) from None
        if blob.crc32c != entry.crc32c:
            raise _somebody_else(blob) from None


def _somebody_else(blob: "Blob") -> StorageError:
    return StorageError(
        f"{_uri(blob)}: somebody else is writing here",
        hint="Give every run an --output of its own.",
    )


def _delete(blob: "Blob") -> None:
    from google.api_core.exceptions import NotFound

    with suppress(NotFound):
        blob.delete(retry=_retry())


def _delete_exactly(blob: "Blob") -> None:
    """Delete the generation that is known, unless it is gone: a try whose answer was lost did it.

    Raises:
        StorageError: somebody else has replaced it.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        blob.delete(if_generation_match=blob.generation, retry=_retry())
    except (NotFound, PreconditionFailed):
        if _object(blob.bucket, blob.name) is not None:
            raise _somebody_else(blob) from None


# ---- asking ------------------------------------------------------------------------------------


def reachable(uri: str, *, write: bool = False) -> None:
    """Check that something lies at a URI, or that objects may be written there; changes nothing.

    Raises:
        AccessError: no credentials, or not allowed.
        StorageError: no such bucket, nothing there, or no answer.
    """
    bucket, prefix = _locate(uri)
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


# ---- the client --------------------------------------------------------------------------------


def _in_parallel(title: str, jobs: Sequence[tuple[int, Callable[[], None]]]) -> None:
    """Run transfers of so many bytes at once; the first error stops those not yet begun.

    Without a title no progress is shown.
    """
    if not jobs:
        return
    megabytes = sum(size for size, _ in jobs) / 1e6
    shown = task(f"{title} {megabytes:.1f} MB", len(jobs), "files") if title else nullcontext()
    pool = ThreadPoolExecutor(TRANSFERS)
    with shown as progress:
        # Large files first: one that starts last would be waited for alone.
        futures = [pool.submit(run) for _, run in sorted(jobs, key=lambda job: -job[0])]
        try:
            for future in as_completed(futures):
                future.result()
                if progress is not None:
                    progress.advance()
        except BaseException as error:
            # Who sends SIGTERM waits for seconds, and one transfer may take minutes.
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
    pool.shutdown()


def _locate(uri: str) -> tuple["Bucket", str]:
    """The bucket of a URI, with a client, and the prefix without a slash at its end."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if not name:
        raise StorageError(f"{uri}: no bucket named", hint="Write gs://BUCKET/PREFIX.")
    try:
        # Objects belong to no project, and the credentials of a person name none.
        client = storage.Client(project=None)
    except DefaultCredentialsError:
        raise AccessError(
            f"{uri}: no Google Cloud credentials found",
            hint="Run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a mounted key file.",
        ) from None
    except OSError as error:
        raise AccessError(
            f"{uri}: the Google Cloud credentials cannot be read ({error})",
            hint="Let this user read the file that GOOGLE_APPLICATION_CREDENTIALS names; in "
            'docker, pass --user "$(id -u):$(id -g)" for a mounted file of your own.',
        ) from None
    _widen(client)
    try:
        return client.bucket(name), prefix.strip("/")
    except ValueError as error:
        raise StorageError(f"{uri}: {error}", hint="Write gs://BUCKET/PREFIX.") from None


def _widen(client: Any) -> None:
    """As many connections as transfers: the client keeps ten, and drops the others each time.

    None is silent for longer than `SECONDS_OF_SILENCE`.
    """
    from requests import PreparedRequest, Response
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: PreparedRequest, **options: Any) -> Response:
            options["timeout"] = min(options.get("timeout") or 60.0, SECONDS_OF_SILENCE)
            return super().send(request, **options)

    for scheme in ("https://", "http://"):
        client._http.mount(scheme, Adapter(pool_maxsize=TRANSFERS))


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(SECONDS_OF_RETRIES)


def _objects(bucket: "Bucket", prefix: str) -> list["Blob"]:
    return list(bucket.list_blobs(prefix=prefix, retry=_retry()))


def _object(bucket: "Bucket", name: str) -> "Blob | None":
    return bucket.get_blob(name, retry=_retry())


def _uri(blob: "Blob") -> str:
    return f"{SCHEME}{blob.bucket.name}/{blob.name}"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from google.api_core.exceptions import (
        Forbidden,
        GoogleAPIError,
        NotFound,
        PreconditionFailed,
        Unauthorized,
    )
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NotFound as error:
        if "/o/" in str(error):
            raise StorageError(
                f"{uri}: an object vanished while it was used ({error.message})",
                hint="Does somebody else write or clean up there? Run the same command again.",
            ) from None
        raise StorageError(
            f"{uri}: no such bucket",
            hint="Check the name, or make it: gcloud storage buckets create",
        ) from None
    except (Forbidden, Unauthorized) as error:
        raise AccessError(f"{uri}: not allowed ({error.message})", hint=_GRANT) from None
    except PreconditionFailed:
        raise StorageError(
            f"{uri}: somebody else is writing here",
            hint="Give every run an --output of its own.",
        ) from None
    except (
        GoogleAPIError,
        RequestException,
        TransportError,
        InvalidResponse,
        DataCorruption,
        HTTPError,
        HTTPException,
        ConnectionError,
    ) as error:
        raise StorageError(
            f"{uri}: Cloud Storage cannot be reached or keeps failing ({error})",
            hint="What was copied is kept; run the same command again.",
        ) from None
    except GoogleAuthError as error:
        raise AccessError(
            f"{uri}: the credentials have expired or are not accepted ({error})",
            hint="Run `gcloud auth application-default login` again, or mount a fresh key.",
        ) from None
