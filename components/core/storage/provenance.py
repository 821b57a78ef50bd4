"""Whether the output of a command already holds what it would make."""

import json
from typing import Any

from components.core.config import StageConfig, flag
from components.core.errors import ConfigError, printable
from components.core.locations import INPUT, each_location
from components.core.progress import say
from components.core.storage.artifacts import (
    BASE_MODEL,
    PARTIAL_MANIFEST,
    Manifest,
    check_output,
    fault_of,
    manifest_at,
)  # fmt: skip
from components.core.storage.places import files_in, read_file

INPUTS = "inputs"


def provenance(config: StageConfig) -> dict[str, Any]:
    """What a manifest records: the settings, and which artifacts were the inputs, by checksum.

    Raises:
        StorageError: an input on gs:// cannot be read.
    """
    return config.recorded() | {INPUTS: _input_checksums(config)}


def is_up_to_date(config: StageConfig) -> bool:
    """Whether the output holds, finished and undamaged, what these settings make; logs it.

    Raises:
        ConfigError: it holds what other settings made, or nobody knows which.
        StorageError: it holds what another stage made; or not allowed, or no such bucket.
    """
    if config.overwrite or (manifest := _finished(config.output)) is None:
        return False
    check_output(config.output, config.stage)
    if differences := _differences(config, manifest):
        message = f"--output {config.output}: holds a finished artifact of other settings: "
        hint = "Give another --output, or make this one again with --overwrite true."
        raise ConfigError(message + "; ".join(differences), hint=hint)
    files = files_in(config.output)
    for entry in manifest.files:
        if fault_of(files.get(entry.path), entry):
            say(f"  {config.output}: {entry.path} is missing or damaged; it is made again")
            return False
    say(f"  up to date: {config.output} (add --overwrite true to make it again)")
    return True


def _finished(output: str) -> Manifest | None:
    """The manifest of a finished artifact; None where there is none, or a damaged one."""
    manifest = manifest_at(output)
    is_partial = manifest and read_file(output, PARTIAL_MANIFEST) is not None
    return None if is_partial else manifest


def _differences(config: StageConfig, manifest: Manifest) -> list[str]:
    if manifest.settings is None:
        return ["an earlier version made it, and recorded none"]
    differences = []
    for name, now in config.recorded().items():
        # A flag that was not known then had the effect of its default.
        default = type(config).model_fields[name].default
        before = manifest.settings.get(name, list(default) if type(default) is tuple else default)
        if before != now:
            differences.append(f"{flag(name)} was {_text(before)} there and is {_text(now)} now")
    checksums = manifest.settings.get(INPUTS, {})
    for name, now in _input_checksums(config).items():
        if checksums.get(name, now) != now:
            differences.append(f"{flag(name)} was made again since")
    return differences


def _input_checksums(config: StageConfig) -> dict[str, list[str]]:
    """The checksums of the artifacts among the inputs; "" for one that is none."""
    checksums = {}
    for name, field in type(config).model_fields.items():
        if INPUT in field.metadata:
            checksums[name] = [
                # A hub id stands for a base model.
                manifest.own_crc32c if manifest and manifest.stage != BASE_MODEL else ""
                for location in each_location(getattr(config, name)) or [""]
                for manifest in [_finished(location)]
            ]
    return checksums


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        value = json.dumps(value, ensure_ascii=False, default=str)
    return printable(value[:200])
