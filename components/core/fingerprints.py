"""Which model a folder or hub id is, and whether an adapter was trained on it."""

import hashlib
import json
from pathlib import Path

from components.core.errors import DataError, ModelError
from components.core.models import load_config
from components.core.records import TrainingRecord, read_json
from components.core.storage import LEDGER, MANIFEST, checksum

NOT_THE_MODEL = (MANIFEST, LEDGER, TrainingRecord.FILE)
"""JSON files of an adapter's folder about a run, which differ although the weights are the same."""


def fingerprint(source: str) -> str:
    """The identity of a model, tokenizer or adapter whatever its folder is called: a hash of files.

    A hub id stands for itself, with the commit that its files are of.

    Raises:
        ModelError: no such model.
    """
    folder = Path(source)
    if folder.is_dir():
        files = {
            path.name: checksum(path)
            for path in sorted(folder.iterdir())
            if path.suffix in (".json", ".safetensors", ".jinja", ".model")
            and path.name not in NOT_THE_MODEL
        }
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return f"{source}@{getattr(load_config(source), '_commit_hash', None)}"


def check_base(adapter: str, source: str, base: str = "") -> None:
    """Refuse an adapter of another base model of the same shape, which no library would notice.

    An adapter without a record of its base is accepted, and so is a folder in place of a hub id.

    Args:
        adapter: its folder.
        source: the base model.
        base: the base model's fingerprint, where it is known already.

    Raises:
        ModelError: names both bases.
    """
    try:
        trained = read_json(Path(adapter) / TrainingRecord.FILE, TrainingRecord)
    except DataError:  # another tool's adapter
        return
    if not trained.base_fingerprint:
        return
    theirs, ours = trained.base_fingerprint, base or fingerprint(source)
    if "@" in theirs and "@" in ours:
        # Most commits of a hub model change only its card.
        theirs, ours = theirs.partition("@")[0], ours.partition("@")[0]
    if ("@" in theirs) != ("@" in ours) or theirs == ours:
        return
    raise ModelError(
        f"--adapter {adapter}: was trained on {trained.base_model}, which is another model than "
        f"--base-model {source}",
        hint="Give the model that it was trained on, or train an adapter for this one.",
    )
