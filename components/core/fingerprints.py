"""Which model a folder or hub id is, and whether an adapter was trained on it."""

import hashlib
import json
from pathlib import Path

from components.core.errors import ModelError
from components.core.models import load_config
from components.core.records import TrainingRecord, read_json
from components.core.storage import BASE_MODEL, LEDGER, MANIFEST, checksum
from components.core.storage.artifacts import manifest_at

NOT_THE_MODEL = (MANIFEST, LEDGER, TrainingRecord.FILE)
"""JSON files of an adapter's folder about a run, which differ although the weights are the same."""


def fingerprint(source: str) -> str:
    """The identity of a model, tokenizer or adapter whatever its folder is called: a hash of files.

    A hub id is its own fingerprint, with the commit that its files are of.

    Raises:
        ModelError: no such model.
    """
    folder = Path(source)
    if origin := hub_origin(source):
        return origin
    if folder.is_dir():
        files = {
            path.name: checksum(path)
            for path in sorted(folder.iterdir())
            if path.suffix in (".json", ".safetensors", ".jinja", ".model")
            and path.name not in NOT_THE_MODEL
        }
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return f"{source}@{getattr(load_config(source), '_commit_hash', None)}"


def read_training(adapter: str) -> TrainingRecord | None:
    """How an adapter was trained; None for another tool's adapter, which has no such file.

    Raises:
        DataError: the file is damaged, or of another version.
    """
    path = Path(adapter) / TrainingRecord.FILE
    return read_json(path, TrainingRecord) if path.is_file() else None


def hub_origin(source: str) -> str:
    """`ID@COMMIT` of a folder that is a copy of a hub model; "" of any other."""
    manifest = manifest_at(source) if Path(source).is_dir() else None
    if manifest is None or manifest.stage != BASE_MODEL or manifest.settings is None:
        return ""
    return str(manifest.settings["origin"])


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
    trained = read_training(adapter)
    if trained is None or not trained.base_fingerprint:
        return
    theirs, theirs_of_hub, _ = trained.base_fingerprint.partition("@")
    # Commits are not compared: most commits of a hub model change only its card.
    ours, ours_of_hub, _ = (base or fingerprint(source)).partition("@")
    if theirs_of_hub != ours_of_hub or theirs == ours:
        return
    raise ModelError(
        f"--adapter {adapter}: was trained on {trained.base_model}, which is another model than "
        f"--base-model {source}",
        hint="Give the model that it was trained on, or train an adapter for this one.",
    )
