"""Locations that a setting may name: what they look like, and which of them may overlap."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

SCHEME = "gs://"
INPUT = "input"
OUTPUT = "output"
RESUME = "resume"
LONGEST_NAME = 255  # bytes of a file or folder; an object may have longer ones between slashes


def is_too_long(name: str) -> bool:
    """Whether no file or folder of this machine can have a name."""
    return len(name.encode(errors="replace")) > LONGEST_NAME


def check_location(value: str) -> str:
    """Refuse what is neither a local path nor a name that Cloud Storage allows.

    Raises:
        ValueError: names the fault and what is allowed.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value)
    if scheme is None:
        return value
    if scheme[0] != SCHEME:
        raise ValueError(f"{scheme[0]} is not read here (allowed: a local path, gs://BUCKET/PATH)")
    bucket, _, path = value[len(scheme[0]) :].partition("/")
    if not bucket:
        raise ValueError("no bucket named; write gs://BUCKET/PATH")
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", bucket):
        raise ValueError(
            f"no bucket is called {bucket!r} (allowed: small letters, digits, and - _ . between)"
        )
    if not path.isprintable():
        raise ValueError("a path on gs:// with a line end or another non-printable character")
    if any(part in ("", ".", "..") for part in path.removesuffix("/").split("/") if path):
        raise ValueError("a path on gs:// has no empty part, no . and no ..")
    if any(map(is_too_long, path.split("/"))):
        raise ValueError(f"a path on gs:// with a part of over {LONGEST_NAME} bytes")
    return value


def split_text(value: object) -> object:
    """Accept a list as JSON (Kubeflow) or as comma-separated words (a person at a terminal)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def split_pairs(value: object) -> object:
    """Accept a mapping as JSON or as comma-separated `NAME=VALUE`."""
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return json.loads(value) if isinstance(value, str) else value
    pairs = [word.strip().partition("=") for word in value.split(",") if word.strip()]
    for name, _, named in pairs:
        if not name.strip() or not named.strip():
            raise ValueError(f"{name!r} is no NAME=PATH")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return {name.strip(): named.strip() for name, _, named in pairs}


def each_location(value: str | Mapping[str, str]) -> list[str]:
    """The locations of a setting that names one, or several by name; none that is empty."""
    return [place for place in ([value] if isinstance(value, str) else value.values()) if place]


def map_locations(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a setting that names one location, or several by name, with each changed."""
    if isinstance(value, str):
        return change(value)
    return {name: change(location) for name, location in value.items()}


Location = Annotated[str, AfterValidator(check_location)]
"""A local path or a `gs://` URI ("" = none)."""

InputLocation = Annotated[Location, INPUT]
"""One that exists before the stage starts."""

NamedInputs = Annotated[dict[str, Location], BeforeValidator(split_pairs), INPUT]
"""Several of these, each with a name: `NAME=PATH,NAME=PATH`, or as JSON."""

OutputLocation = Annotated[Location, OUTPUT]
"""One that the stage writes, and that contains nothing else."""

ResumeLocation = Annotated[Location, RESUME]
"""Where an interrupted run's resume state is kept."""


def resume_dir(output: str, name: str) -> str:
    """Where a stage keeps the resume state of an interrupted run: next to it, `OUTPUT-name`."""
    place = output.rstrip("/") if output.startswith(SCHEME) else Path(output).resolve()
    return f"{place}-{name}"


def keyed(state: str, kind: str, *content: object) -> str:
    """A place below `state` for what depends on nothing but this content (as JSON)."""
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    return f"{state.rstrip('/')}/{kind}/{key}"


def check_folder(location: str) -> str:
    """Refuse a local file where a folder is written.

    Raises:
        ValueError: it is a file, or another thing that is no folder.
    """
    mode = None if location.startswith(SCHEME) else _mode(location)
    if mode is not None and not stat.S_ISDIR(mode):
        raise ValueError("is a file, not a folder")
    return location


def check_apart(locations: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Refuse to write what is read, since a stage clears its output before it begins.

    Also refuse to read what may never end, such as a pipe or a device.

    Args:
        locations: by kind (INPUT, OUTPUT, RESUME), the flags and what they name.

    Raises:
        ValueError: names two flags and what to do.
    """
    for name, source in locations[INPUT]:
        if not source.startswith(SCHEME):
            mode = _mode(source)
            if mode is None:  # the name of a model on the hub
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ValueError(f"{name} {source}: neither a file nor a folder")
        for kind in (OUTPUT, RESUME):
            for other, target in locations[kind]:
                cleared = kind == OUTPUT
                if (cleared and _contains(target, source)) or _contains(source, target):
                    raise ValueError(
                        f"{other} {target} and {name} {source} overlap; "
                        f"give {other} a folder of its own"
                    )
    for name, resume in locations[RESUME]:
        for other, target in locations[OUTPUT]:
            if _contains(target, resume):
                raise ValueError(
                    f"{name} {resume} is inside {other} {target}, all of which becomes "
                    f"the artifact; omit {name}, or give a folder elsewhere"
                )


def normalized(location: str) -> str:
    """A location as it is compared: `docs/` is `docs`."""
    if not location or location.startswith(SCHEME):
        return location.rstrip("/")
    return os.path.normpath(location)


def _mode(path: str) -> int | None:
    """The file mode of a path; None if nothing is there."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return None


def _contains(folder: str, location: str) -> bool:
    """Whether a location is a folder or is inside it."""
    if folder.startswith(SCHEME) or location.startswith(SCHEME):
        return (location.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")
    outer, inner = Path(folder).resolve(), Path(location).resolve()
    return outer in (inner, *inner.parents)
