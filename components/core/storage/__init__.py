"""Local paths and `gs://` URIs; the only user of google-cloud-storage.

A stage sees local paths only. `with_local_copies` fetches the `gs://` inputs of a config before
the stage runs and publishes its outputs after it has succeeded, so one command runs on a laptop,
in docker, in a Job and in a KFP pod.

An artifact is a folder with `manifest.json`: size and crc32c of every file, written last. While it
is being made or changed it holds `manifest.partial.json` instead, so a half-written artifact is
never read as complete, and the next stage verifies what it reads. On GCS the order is

    partial manifest up, old manifest and changed files away, new files up, manifest up,
    partial manifest away

and every write and deletion names the generation that it replaces, so two writers cannot mix their
files. What was copied before an interruption is not copied again: files, 32 MiB parts of large
ones on the way up, bytes on the way down.
"""

from components.core.config import SCHEME
from components.core.storage.artifacts import (
    LEDGER,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    begin_artifact,
    check_output,
    faults,
    finish_artifact,
    verify,
)  # fmt: skip
from components.core.storage.fetching import fetch
from components.core.storage.files import (
    atomic_write,
    checked_line,
    checksum,
    read_checked_line,
    temporary_file,
    write_json,
)  # fmt: skip
from components.core.storage.local_copies import scratch, with_local_copies
from components.core.storage.lock import LOCK, locked
from components.core.storage.places import (
    MANIFEST,
    find,
    folders,
    is_artifact,
    put,
    reachable,
    remove,
)  # fmt: skip
from components.core.storage.provenance import is_up_to_date, provenance
from components.core.storage.publishing import publish

__all__ = [
    "LEDGER", "LOCK", "MANIFEST", "PARTIAL_MANIFEST", "SCHEME", "Manifest", "ManifestFile",
    "atomic_write", "begin_artifact", "check_output", "checked_line", "checksum", "faults", "fetch",
    "find", "finish_artifact", "folders", "is_artifact", "is_up_to_date", "locked", "provenance",
    "publish", "put", "reachable", "read_checked_line", "remove", "scratch", "temporary_file",
    "verify", "with_local_copies", "write_json",
]  # fmt: skip
