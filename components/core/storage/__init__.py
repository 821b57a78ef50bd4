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

from components.core.config import SCHEME
from components.core.storage.artifacts import (
    LEDGER,
    LOCK,
    MANIFEST,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    check_output,
    faults,
    seal,
    unseal,
    verify,
)
from components.core.storage.fetching import fetch
from components.core.storage.files import (
    atomic_write,
    checked_line,
    checksum,
    read_checked_line,
    temporary_file,
    write_json,
)
from components.core.storage.lock import locked
from components.core.storage.outputs import done_before, made_with
from components.core.storage.places import find, folders, is_artifact, put, reachable, remove
from components.core.storage.publishing import publish
from components.core.storage.staged import localized, scratch

__all__ = [
    "LEDGER", "LOCK", "MANIFEST", "PARTIAL_MANIFEST", "SCHEME", "Manifest", "ManifestFile",
    "atomic_write", "check_output", "checked_line", "checksum", "done_before", "faults", "fetch",
    "find", "folders", "is_artifact", "localized", "locked", "made_with", "publish", "put",
    "reachable", "read_checked_line", "remove", "scratch", "seal", "temporary_file", "unseal",
    "verify", "write_json",
]  # fmt: skip
