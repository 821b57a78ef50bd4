"""The base model of an adapter that is used: the one it was trained on, and no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.core.base_model import at_commit, is_hub_id
from components.core.errors import ModelError
from components.core.fingerprints import check_base, read_training
from components.core.locations import SCHEME
from components.core.model_files import check_adapter
from components.core.progress import say
from components.core.storage import fetch, scratch


def base_of(adapter: str, base_model: str = "") -> str:
    """The base model of an adapter: the one given, or else what its training.json names.

    Raises:
        ModelError: the folder is no adapter, the base is not known or not here, or it is another
            than the adapter was trained on.
    """
    check_adapter(adapter)
    training = read_training(adapter)
    trained_on = training.base_model if training else ""
    if base_model and base_model != trained_on:
        check_base(adapter, base_model)
        return base_model
    if not trained_on:
        raise ModelError(
            f"--adapter {adapter}: has no training.json that names its base model",
            hint="Add --base-model with the model that it was trained on.",
        )
    if not (is_hub_id(trained_on) or trained_on.startswith(SCHEME) or Path(trained_on).is_dir()):
        raise ModelError(
            f"--adapter {adapter}: was trained on {trained_on}, which is not here",
            hint="Add --base-model with the place where that model is now.",
        )
    if not base_model:
        say(f"  base model: {trained_on}, of {adapter}/training.json")
    return trained_on


def trained_commit(adapter: str, base: str) -> str:
    """The commit of a base model on the hub that an adapter was trained on; "" if none is known."""
    training = read_training(adapter)
    trained_on, _, commit = (training.base_fingerprint if training else "").partition("@")
    return commit if trained_on == base and commit != "None" and is_hub_id(base) else ""


@contextmanager
def base_here(adapter: str, base_model: str = "") -> Iterator[str]:
    """The base model of an adapter, or the one given without any, as transformers loads it.

    A folder on gs:// is copied to this machine for the length of the block. Of a model on the hub
    it is the commit that the adapter was trained on, if the hub still has it.

    Raises:
        ModelError: as `base_of`.
        DataError: the folder cannot be read.
    """
    base = base_of(adapter, base_model) if adapter else base_model
    if base.startswith(SCHEME):
        with scratch("model", base) as room:
            fetch(base, room / "model")
            yield str(room / "model")
    else:
        commit = trained_commit(adapter, base) if adapter else ""
        yield at_commit(base, commit) if commit else base
