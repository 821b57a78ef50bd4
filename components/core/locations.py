"""Locations that a setting may name: what they look like, and which of them may overlap."""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

SCHEME = "gs://"
INPUT = "input"
OUTPUT = "output"
KEPT = "kept"


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
    return value


def split_text(value: object) -> object:
    """Accept a list as JSON (Kubeflow) or as comma-separated words (a person at a terminal)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


Location = Annotated[str, AfterValidator(check_location)]
"""A local path or a `gs://` URI ("" = none)."""

InputLocation = Annotated[Location, INPUT]
"""One that exists before the stage starts."""

InputLocations = Annotated[tuple[Location, ...], BeforeValidator(split_text), INPUT]
"""Several of them, written `a,b` or `["a","b"]`."""

OutputLocation = Annotated[Location, OUTPUT]
"""One that the stage writes, and that contains nothing else."""

KeptLocation = Annotated[Location, KEPT]
"""Where an interrupted run's resume state is kept."""


def beside(output: str, name: str) -> str:
    """Where a stage keeps the resume state of an interrupted run: next to it, `OUTPUT-name`."""
    place = output.rstrip("/") if output.startswith(SCHEME) else Path(output).resolve()
    return f"{place}-{name}"


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
        locations: by kind (INPUT, OUTPUT, KEPT), the flags and what they name.

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
        for kind in (OUTPUT, KEPT):
            for other, target in locations[kind]:
                cleared = kind == OUTPUT
                if (cleared and _contains(target, source)) or _contains(source, target):
                    raise ValueError(
                        f"{other} {target} and {name} {source} overlap; "
                        f"give {other} a folder of its own"
                    )
    for name, kept in locations[KEPT]:
        for other, target in locations[OUTPUT]:
            if _contains(target, kept):
                raise ValueError(
                    f"{name} {kept} is inside {other} {target}, all of which becomes "
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
