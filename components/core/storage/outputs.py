"""Whether the output of a command holds, before it begins, what it would make."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.core.config import INPUT, SCHEME, ArtifactSettings, flag
from components.core.errors import ConfigError, DataError, printable
from components.core.progress import say
from components.core.records import read_json
from components.core.storage.artifacts import (
    MANIFEST,
    PARTIAL_MANIFEST,
    Manifest,
    fault_of,
    path_inside,
    refuse_another,
)
from components.core.storage.bucket import (
    explained,
    find_object,
    join_names,
    list_objects,
    locate,
    read_object,
    same_bytes,
)

INPUTS = "inputs"


def made_with(config: ArtifactSettings) -> dict[str, Any]:
    """What a manifest records: the settings, and which artifacts were the inputs, by checksum.

    Raises:
        StorageError: an input on gs:// cannot be read.
    """
    return config.recorded() | {INPUTS: _contents(config)}


def done_before(config: ArtifactSettings) -> bool:
    """Whether the output holds, finished and whole, what these settings make; says so.

    Raises:
        ConfigError: it holds what other settings made, or nobody knows which.
        StorageError: it holds what another stage made; or not allowed, or no such bucket.
    """
    if config.overwrite:
        return False
    manifest = _manifest(config.output)
    if manifest is None:
        return False
    refuse_another(config.output, config.stage, manifest.stage)
    if differences := _differences(config, manifest):
        message = f"--output {config.output}: holds a finished artifact of other settings: "
        hint = "Give another --output, or make this one anew with --overwrite true"
        if "fresh" in type(config).model_fields:
            hint += " (--fresh true throws away checkpoints, never what is finished)"
        raise ConfigError(message + "; ".join(differences), hint=f"{hint}.")
    if damaged := _damaged(config.output, manifest):
        say(f"  {config.output}: {damaged} is missing or damaged; it is made anew")
        return False
    say(f"  done before: {config.output} (add --overwrite true to make it anew)")
    return True


def _manifest(output: str) -> Manifest | None:
    """That of a finished artifact; None where there is none, a damaged one, or a partial one."""
    if not output.startswith(SCHEME):
        if (Path(output) / PARTIAL_MANIFEST).exists():
            return None
        with suppress(DataError):
            return read_json(Path(output) / MANIFEST, Manifest)
        return None
    bucket, prefix = locate(output)
    with explained(output):
        blob = find_object(bucket, join_names(prefix, MANIFEST))
        partial = find_object(bucket, join_names(prefix, PARTIAL_MANIFEST))
        if blob is not None and partial is None:
            with suppress(ValidationError):
                return Manifest.model_validate_json(read_object(blob))
    return None


def _differences(config: ArtifactSettings, manifest: Manifest) -> list[str]:
    if manifest.settings is None:
        return ["an earlier version made it, and recorded none"]
    found = []
    for name, now in config.recorded().items():
        # A flag that was not known then had the effect of its default.
        default = type(config).model_fields[name].default
        before = manifest.settings.get(name, list(default) if type(default) is tuple else default)
        if before != now:
            found.append(f"{flag(name)} was {_shown(before)} there and is {_shown(now)} now")
    contents = manifest.settings.get(INPUTS, {})
    for name, now in _contents(config).items():
        if contents.get(name, now) != now:
            found.append(f"{flag(name)} was made anew since")
    return found


def _contents(config: ArtifactSettings) -> dict[str, list[str]]:
    """The checksums of the artifacts among the inputs; "" for one that is none."""
    found = {}
    for name, field in type(config).model_fields.items():
        if INPUT in field.metadata:
            value = getattr(config, name)
            manifests = map(_manifest, [value] if isinstance(value, str) else value)
            found[name] = [manifest.own_crc32c if manifest else "" for manifest in manifests]
    return found


def _shown(value: Any) -> str:
    text = (
        value
        if isinstance(value, str) and value
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    return printable(text[:200])


def _damaged(output: str, manifest: Manifest) -> str:
    """A file of a finished artifact that is not what its manifest says; "" if none."""
    if not output.startswith(SCHEME):
        with suppress(DataError):  # a name that leads out of the folder
            faults = (fault_of(path_inside(Path(output), e.path), e) for e in manifest.files)
            wrong = (e.path for e, fault in zip(manifest.files, faults, strict=True) if fault)
            return next(wrong, "")
        return MANIFEST
    bucket, prefix = locate(output)
    with explained(output):
        there = {blob.name: blob for blob in list_objects(bucket, join_names(prefix, ""))}
    for entry in manifest.files:
        blob = there.get(join_names(prefix, entry.path))
        if blob is None or not same_bytes(blob, entry):
            return entry.path
    return ""
