"""Artifacts: folders with a manifest that is written last, by which a reader knows them whole."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import ValidationError, model_validator

from components.core.errors import DataError, StorageError
from components.core.records import Record, read_json
from components.core.storage.files import (
    cannot_write,
    checksum,
    checksum_of,
    make_readable,
    write_json,
)

MANIFEST = "manifest.json"
PARTIAL_MANIFEST = "manifest.partial.json"
LEDGER = "ledger.json"
LOCK = ".raft.lock"  # in a folder that is being written; no part of the artifact
FOLDERS_ABOVE = 2  # in which the manifest of an artifact may lie that a file or folder is part of
AGAIN = (
    "Run the stage that made this artifact again; or, if it was changed on purpose, remove its "
    "manifest.json and ledger.json."
)


class ManifestFile(Record):
    """One file of an artifact: path within it, bytes, and base64 crc32c as GCS spells it."""

    path: str
    size: int
    crc32c: str


class Manifest(Record):
    """The listing that makes an artifact whole, and what made it, where a stage did.

    `settings` are those on which the artifact depends; older artifacts have none.
    """

    files: list[ManifestFile]
    stage: str = ""
    settings: dict[str, Any] | None = None
    own_crc32c: str = ""
    """Of all the rest; older manifests have none."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.own_crc32c and self != self.checked():
            raise ValueError("its own crc32c differs")
        return self

    def checked(self) -> "Manifest":
        """The same with its checksum."""
        rest = self.model_dump(mode="json", exclude={"own_crc32c"})
        digest = checksum_of([json.dumps(rest, sort_keys=True).encode()])
        return self.model_copy(update={"own_crc32c": digest})


def unseal(
    folder: Path, stage: str = "", keep: str = "", settings: dict[str, Any] | None = None
) -> None:
    """Mark an artifact as unfinished: it is about to be made or changed.

    What the artifact before consisted of is removed, and what a killed attempt has left behind: if
    that had other settings, its files would become part of this artifact.

    Args:
        folder: the artifact.
        stage: whose artifact it will be; one of another stage is not removed for it.
        keep: a folder or file in it from which the stage goes on.
        settings: with which it will be made, for the manifest.

    Raises:
        StorageError: the folder cannot be written, or holds something else than an artifact.
        DataError: the manifest of the artifact before is damaged, so nobody knows what it had.
    """
    before = []
    if (folder / MANIFEST).exists():
        try:
            listed = read_json(folder / MANIFEST, Manifest).files
            before = [path_inside(folder, entry.path) for entry in listed]
        except DataError as error:
            error.hint = "Remove the folder, or give another --output."
            raise
    check_output(folder, stage)
    if folder.is_dir():
        unfinished = not (folder / MANIFEST).exists()
        try:
            for leftover in folder.glob("*" if unfinished else ".*"):
                if leftover.name not in (keep, PARTIAL_MANIFEST, LOCK):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError as error:
            raise cannot_write(folder, error) from None
    unfilled = Manifest(files=[], stage=stage, settings=settings)
    write_json(folder / PARTIAL_MANIFEST, unfilled.checked())
    if (folder / MANIFEST).exists():
        # Nothing of the artifact before may end up in the next: a stale adapter would be loaded.
        for path in before:
            with suppress(OSError):  # a name that no file of ours has
                path.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)


def check_output(folder: Path, stage: str = "") -> None:
    """Refuse what `unseal` would, and change nothing: a stage asks before its work begins.

    Raises:
        StorageError: the folder holds something else than an artifact, or another stage's.
    """
    if folder.is_dir():
        # A first attempt that was killed here may have left half of the partial manifest.
        passed_over = (LOCK, f".{PARTIAL_MANIFEST}.")
        others = [path for path in folder.iterdir() if not path.name.startswith(passed_over)]
        ours = (folder / MANIFEST).exists() or (folder / PARTIAL_MANIFEST).exists()
        if others and not ours:
            raise StorageError(
                f"--output {folder}: the folder holds something else",
                hint="Give a new or empty folder: everything in it becomes part of the artifact.",
            )
        refuse_another(folder, stage, _made_by(folder).stage)


def refuse_another(output: Path | str, stage: str, made_by: str) -> None:
    """Refuse to write over what another stage made; "" is one that is not named.

    Raises:
        StorageError: says which.
    """
    if stage and made_by not in ("", stage):
        raise StorageError(
            f"--output {output}: holds what raft {made_by} wrote",
            hint="Give a folder of its own, or remove this one first.",
        )


def _made_by(folder: Path) -> Manifest:
    """What the manifest of a folder tells; where there is none, nothing."""
    for name in (MANIFEST, PARTIAL_MANIFEST):
        with suppress(DataError):
            return read_json(folder / name, Manifest)
    return Manifest(files=[])


def seal(folder: Path, without: str = "") -> None:
    """Write the manifest of a finished artifact; the last thing a stage does.

    Args:
        folder: the artifact.
        without: a folder or file in it that is no part of the artifact.
    """
    made_by = _made_by(folder)
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if without and f"{name}/".startswith(f"{without}/"):
            continue
        if path.is_file() and name not in (MANIFEST, PARTIAL_MANIFEST, LOCK):
            make_readable(path)
            files.append(ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path)))
    write_json(folder / MANIFEST, made_by.model_copy(update={"files": files}).checked())
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
        path = path_inside(folder, entry.path)
        if location not in (path, *path.parents):
            continue
        if fault := fault_of(path, entry):
            raise DataError(fault, path=path, hint=AGAIN)


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
                    error.hint = AGAIN
                    raise
                continue  # something else of this name
        if (folder / PARTIAL_MANIFEST).exists():
            raise not_finished(folder)
        # Every stage leaves a ledger, and then the manifest; a run's folder may hold one, too.
        if folder == location and (folder / LEDGER).exists():
            raise DataError("its manifest.json is missing", path=folder, hint=AGAIN)
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
        elif checksum_of([texts[entry.path].encode()]) != entry.crc32c:
            found[entry.path] = f"is damaged: its crc32c differs from {MANIFEST}"
    return found


def not_finished(place: Path | str) -> DataError:
    return DataError(
        "this artifact is not finished: the stage that makes it is still running, or was stopped",
        path=place,
        hint="Wait for it, or run that stage again.",
    )


def fault_of(path: Path, entry: ManifestFile) -> str:
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


def path_inside(folder: Path, name: str) -> Path:
    """The path of `name` in a folder; names come from buckets and manifests, so they may lie.

    Raises:
        DataError: the name leads out of the folder.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name or not relative.parts:
        raise DataError(f"names a file {name!r}, outside the artifact", path=folder)
    return folder / relative


def entry_of(folder: Path, name: str) -> ManifestFile:
    path = folder / name
    return ManifestFile(path=name, size=path.stat().st_size, crc32c=checksum(path))
