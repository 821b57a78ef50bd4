"""Artifacts: folders whose manifest is written last, so that a reader knows them complete."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import ValidationError, field_validator, model_validator

from components.core.errors import DataError, StorageError
from components.core.locations import LONGEST_NAME, SCHEME, is_too_long
from components.core.records import Record, read_json
from components.core.storage.files import checksum, make_readable, write_json, writing
from components.core.storage.places import MANIFEST, File, read_file

PARTIAL_MANIFEST = "manifest.partial.json"
LEDGER = "ledger.json"
BASE_MODEL = "base-model"  # in the manifest of a copy of a model from the hub, in place of a stage
FOLDERS_ABOVE = 2  # in which the manifest of an artifact may be that a file or folder is part of
AGAIN = (
    "Run the stage that made this artifact again; or, if it was changed on purpose, remove its "
    "manifest.json and ledger.json."
)


class ManifestFile(Record):
    """One file of an artifact: path within it, bytes, and base64 crc32c as GCS reports it."""

    path: str
    size: int
    crc32c: str

    @field_validator("path")
    @classmethod
    def _is_inside(cls, path: str) -> str:
        """Names come from buckets and manifests, so they may be hostile."""
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or "\0" in path or not relative.parts:
            raise ValueError(f"names a file {path!r}, outside the artifact")
        if any(part in ("", ".") or is_too_long(part) for part in path.split("/")):
            raise ValueError(f"names a file with an empty part, or one over {LONGEST_NAME} bytes")
        return path


class Manifest(Record):
    """The files that make an artifact complete, and what made it, where a stage did.

    `settings` are those on which the artifact depends; older artifacts have none.
    """

    files: list[ManifestFile]
    stage: str = ""
    settings: dict[str, Any] | None = None
    own_crc32c: str = ""
    """Of all the rest; older manifests have none."""

    @model_validator(mode="after")
    def _is_undamaged(self) -> Self:
        if self.own_crc32c and self != self.checked():
            raise ValueError("its own crc32c differs")
        return self

    def checked(self) -> "Manifest":
        """The same with its checksum."""
        rest = self.model_dump(mode="json", exclude={"own_crc32c"})
        digest = checksum(json.dumps(rest, sort_keys=True).encode())
        return self.model_copy(update={"own_crc32c": digest})


def manifest_at(location: str, name: str = MANIFEST) -> Manifest | None:
    """The manifest in a folder or prefix; None where there is none, or a damaged one.

    Raises:
        StorageError: it cannot be asked for.
    """
    with suppress(ValidationError):
        if content := read_file(location, name):
            return Manifest.model_validate_json(content)
    return None


def _read(folder: Path, hint: str) -> list[ManifestFile]:
    try:
        return read_json(folder / MANIFEST, Manifest).files
    except DataError as error:
        error.hint = hint
        raise


def begin_artifact(
    folder: Path, stage: str = "", keep: str = "", settings: dict[str, Any] | None = None
) -> None:
    """Mark an artifact as unfinished: it is about to be made or changed.

    The files of the artifact before are removed, and what a killed attempt has left: if that had
    other settings, its files would become part of this artifact.

    Args:
        folder: the artifact.
        stage: whose artifact it will be; one of another stage is not removed for it.
        keep: a folder or file in it from which the stage resumes.
        settings: with which it will be made, for the manifest.

    Raises:
        StorageError: the folder cannot be written, or holds something else than an artifact.
        DataError: the manifest of the artifact before is damaged, so its files are not known.
    """
    finished = (folder / MANIFEST).exists()
    listed = _read(folder, "Remove the folder, or give another --output.") if finished else []
    check_output(folder, stage)
    with writing(folder):
        for leftover in [*folder.glob(".*" if finished else "*")]:
            if leftover.name not in (keep, PARTIAL_MANIFEST):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    begun = Manifest(files=[], stage=stage, settings=settings)
    write_json(folder / PARTIAL_MANIFEST, begun.checked())
    # Nothing of the artifact before may end up in the next: a stale adapter would be loaded.
    for entry in listed:
        with suppress(OSError):  # a name that no file of ours has
            (folder / entry.path).unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def check_output(output: Path | str, stage: str = "") -> None:
    """Refuse what `begin_artifact` would, and change nothing: stages ask before their work begins.

    Raises:
        StorageError: the output holds another stage's artifact, or, here, something else.
    """
    location = str(output)
    if not location.startswith(SCHEME) and Path(location).is_dir():
        there = {path.name for path in Path(location).iterdir()}
        # A first attempt that was killed here may have left half of the partial manifest.
        others = [name for name in there if not name.startswith(f".{PARTIAL_MANIFEST}.")]
        if others and not {MANIFEST, PARTIAL_MANIFEST} & there:
            raise StorageError(
                f"--output {location}: the folder holds something else",
                hint="Give a new or empty folder: everything in it becomes part of the artifact.",
            )
    for name in (MANIFEST, PARTIAL_MANIFEST):
        manifest = manifest_at(location, name) if stage else None
        if manifest and manifest.stage not in ("", stage):
            raise StorageError(
                f"--output {location}: holds what raft {manifest.stage} wrote",
                hint="Give a folder of its own, or remove this one first.",
            )


def finish_artifact(folder: Path, without: str = "") -> None:
    """Write the manifest of a finished artifact; the last thing a stage does.

    Args:
        folder: the artifact.
        without: a folder or file in it that is no part of the artifact.
    """
    begun = manifest_at(str(folder)) or manifest_at(str(folder), PARTIAL_MANIFEST)
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if without and f"{name}/".startswith(f"{without}/"):
            continue
        if path.is_file() and name not in (MANIFEST, PARTIAL_MANIFEST):
            make_readable(path)
            files.append(entry_of(folder, name))
    manifest = (begun or Manifest(files=[])).model_copy(update={"files": files})
    write_json(folder / MANIFEST, manifest.checked())
    (folder / PARTIAL_MANIFEST).unlink(missing_ok=True)


def verify(location: Path, flag: str) -> None:
    """Check a path against the manifest of the artifact that it is, or is part of.

    A folder that people made by hand has no manifest, and is not checked. Checksums take as long
    as reading the files does.

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
        path = folder / entry.path
        if location in (path, *path.parents) and (fault := fault_of(path, entry)):
            raise DataError(fault, path=path, hint=AGAIN)


def _manifest_of(location: Path) -> tuple[Path, list[ManifestFile]]:
    """The artifact that a file or folder is part of, and the files that make it complete."""
    for folder in (location, *location.parents[:FOLDERS_ABOVE]):
        if (folder / MANIFEST).is_file():
            try:
                return folder, _read(folder, AGAIN)
            except DataError:  # above, it may be something else of this name
                if folder == location or b"crc32c" in (folder / MANIFEST).read_bytes():
                    raise
        elif (folder / PARTIAL_MANIFEST).exists():
            raise not_finished(folder)
        # Every stage leaves a ledger, and then the manifest; a run's folder may hold one, too.
        elif folder == location and (folder / LEDGER).exists():
            raise DataError("its manifest.json is missing", path=folder, hint=AGAIN)
    return location, []


def faults(texts: Mapping[str, str], wanted: Callable[[str], bool]) -> dict[str, str]:
    """What is wrong with an artifact of which `find` returned the wanted texts, by name.

    Args:
        texts: by name, `manifest.json` among them.
        wanted: the one that `find` was called with.
    """
    try:
        listed = Manifest.model_validate_json(texts[MANIFEST]).files
    except ValidationError:
        return {MANIFEST: "is damaged"}
    checked = [entry for entry in listed if entry.path in texts or wanted(entry.path)]
    by_name = {entry.path: fault_of(texts.get(entry.path), entry) for entry in checked}
    return {name: fault for name, fault in by_name.items() if fault}


def not_finished(place: Path | str) -> DataError:
    return DataError(
        "this artifact is not finished: the stage that makes it is still running, or was stopped",
        path=place,
        hint="Wait for it, or run that stage again.",
    )


def fault_of(file: File | str | None, entry: ManifestFile) -> str:
    """What is wrong with a file, object or text that a manifest lists; "" if nothing."""
    try:
        if isinstance(file, str):
            size, crc32c = len(file.encode()), checksum(file.encode())
        elif isinstance(file, Path):
            size = file.stat().st_size
            crc32c = checksum(file) if size == entry.size else ""
        elif file is not None:
            size, crc32c = file.size or 0, file.crc32c  # servers may omit a size of 0
        else:
            raise FileNotFoundError
    except (FileNotFoundError, NotADirectoryError):
        return "is listed in manifest.json but missing"
    except OSError as error:
        return f"is listed in manifest.json but cannot be read ({error.strerror})"
    if size != entry.size:
        return f"is damaged: it has {size} bytes, manifest.json has {entry.size}"
    return "" if crc32c == entry.crc32c else "is damaged: its crc32c differs from manifest.json"


def entry_of(folder: Path, name: str) -> ManifestFile:
    path = folder / name
    return ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path))
