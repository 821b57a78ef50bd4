"""Local paths and `gs://` URIs; the only user of google-cloud-storage.

A stage sees local paths only. `with_local_copies` fetches the `gs://` inputs of a config before
the stage runs and publishes its outputs after it has succeeded, so one command runs on a laptop,
in docker, in a Job and in a KFP pod.

An artifact is a folder with `manifest.json`: size and crc32c of every file, written last. While it
is being made or changed it holds `manifest.partial.json` instead, so a half-written artifact is
never read as complete, and the next stage verifies what it reads. On GCS the order is

    partial manifest up, old manifest away, files up, manifest up, partial manifest away

and every write and deletion names the generation that it replaces, so two writers cannot mix their
files. Files, and parts of large ones on the way up, that have arrived are not copied again.
"""

from components.core.locations import SCHEME
from components.core.storage.artifacts import (
    BASE_MODEL,
    LEDGER,
    PARTIAL_MANIFEST,
    Manifest,
    ManifestFile,
    begin_artifact,
    check_output,
    faults,
    finish_artifact,
    verify,
)
from components.core.storage.bucket import traffic
from components.core.storage.copies import fetch, publish
from components.core.storage.files import (
    atomic_write,
    checked_line,
    checksum,
    read_checked_line,
    write_json,
    write_jsonl,
    writing,
)
from components.core.storage.local_copies import locked, named_as, scratch, with_local_copies
from components.core.storage.places import (
    MANIFEST,
    find,
    folders,
    is_artifact,
    put,
    remove,
    remove_files,
)
from components.core.storage.provenance import is_up_to_date, provenance
