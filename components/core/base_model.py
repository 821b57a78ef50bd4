"""The base model of a run: copied from the hub once, below `state`, and read from there.

The first step that needs a hub model downloads it and publishes it; all later steps and runs fetch
that copy, which is an artifact:

    STATE/models/meta-llama/Llama-3.1-8B-Instruct/main/    config.json …, manifest.json

A revision stays what it was when it was first copied; its commit is in the manifest. Folders and
`gs://` models are used as they are.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from components.core.config import Settings, StageConfig, input_option
from components.core.errors import CannotTell, DataError, ModelError, StorageError, first_line
from components.core.fingerprints import hub_origin
from components.core.locations import SCHEME, InputLocation
from components.core.model_files import for_gated
from components.core.progress import say
from components.core.storage import (
    BASE_MODEL,
    begin_artifact,
    fetch,
    finish_artifact,
    is_artifact,
    named_as,
    publish,
    scratch,
    traffic,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

FILES = re.compile(r"(?!consolidated)[^/]+\.(json|safetensors|jinja|model|txt)")
"""What transformers loads; folders and consolidated files hold the same weights for other tools."""
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class BaseModelConfig(StageConfig):
    """Settings of a stage that loads a base model."""

    base_model: InputLocation = input_option(
        help="Chat model, or an adapter's base: hub id, local folder or gs:// folder."
    )
    base_revision: str = input_option(
        "main",
        pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$",
        help="Branch, tag or commit of a base model on the hub.",
    )


C = TypeVar("C", bound=Settings)


@contextmanager
def with_base_model(config: C) -> Iterator[C]:
    """Give a stage its base model as a folder, where it is a hub id that `state` keeps.

    Raises:
        ModelError: the hub does not have it, or does not let this account read it.
        StorageError: `state` cannot be read.
    """
    if not isinstance(config, BaseModelConfig) or not is_hub_id(config.base_model):
        yield config
        return
    if not config.state and config.base_revision == BaseModelConfig.default("base_revision"):
        yield config
        return
    source, revision = config.base_model, config.base_revision
    with scratch("model", f"{config.state} {source} {revision}") as room:
        place = config.state and f"{config.state.rstrip('/')}/models/{source}/{revision}"
        folder = _from_state(place, room / source) or _downloaded(source, revision, place, room)
        _, _, commit = hub_origin(str(folder)).partition("@")
        update = {"base_model": str(folder), "base_revision": commit}
        with named_as([(source, folder)]):
            yield config.model_copy(update=update)


def check_access(model: str, revision: str, flag: str = "--base-model") -> str:
    """Ask the hub whether HF_TOKEN may read a model, before anything is paid for; its answer.

    Raises:
        ModelError: it may not, or there is no such model.
        CannotTell: the hub does not answer, or is not to be asked.
    """
    import requests

    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise CannotTell("the hub is not asked: HF_HUB_OFFLINE is 1")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{hub}/{model}/resolve/{quote(revision, safe='')}/config.json"
    try:
        status = requests.head(url, headers=headers, timeout=20).status_code
    except OSError as error:
        raise CannotTell(f"{url} does not answer ({type(error).__name__})") from error
    answer = f"the hub answers {status} to {url}"
    if status in (401, 403, 404):
        problem = f"{flag} {model}: {answer}"
        raise ModelError(problem, hint=f"Check name and revision. {for_gated(model, problem)}")
    if status >= 400:
        raise CannotTell(answer)
    return answer


def at_commit(source: str, commit: str) -> str:
    """A folder with a commit of a hub model; its id, which is the newest, if it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return snapshot_download(source, revision=commit, allow_patterns=PATTERNS)
    except Exception as error:  # the hub's own, and those of its HTTP library
        say(f"  {source}: no commit {commit} ({first_line(error)}); the newest is taken")
        return source


def is_hub_id(model: str) -> bool:
    """Whether a base model is one on the hub."""
    return bool(HUB_ID.fullmatch(model)) and not Path(model).exists()


def _from_state(place: str, folder: Path) -> Path | None:
    """The copy below `state`, on this machine; None if there is no whole one."""
    if not place or not is_artifact(place):
        return None
    if not place.startswith(SCHEME):
        return Path(place)
    say(f"  base model: {place}")
    try:
        fetch(place, folder)
    except DataError as error:
        say(f"  this copy is not used, the hub's is fetched again: {error}")
        return None
    return folder


def _downloaded(source: str, revision: str, place: str, room: Path) -> Path:
    """The model from the hub, which is kept at `place` for others, where there is one."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        info: ModelInfo = HfApi().model_info(source, revision=revision)
        arrived = room / str(info.sha)  # what a killed try has left there is of the same commit
        wanted = [name.rfilename for name in info.siblings or [] if FILES.fullmatch(name.rfilename)]
        say(f"  base model: {source} at {info.sha}, from the hub")
        snapshot_download(source, revision=info.sha, allow_patterns=wanted, local_dir=arrived)
        if missing := [name for name in wanted if not (arrived / name).is_file()]:
            raise OSError(f"{missing[0]} did not arrive")
    except Exception as error:  # the hub's own, and those of its HTTP library
        raise ModelError(
            f"--base-model {source}: cannot be fetched from the hub ({first_line(error)})",
            hint=for_gated(source, error) or "Check the name, --base-revision and the network.",
        ) from error
    folder = room / source
    shutil.rmtree(folder, ignore_errors=True)
    begin_artifact(folder, BASE_MODEL, settings={"origin": f"{source}@{info.sha}"})
    for name in wanted:
        traffic["fetched"] += (arrived / name).stat().st_size
        (arrived / name).rename(folder / name)
    finish_artifact(folder)
    try:
        _to_state(folder, place)
    except (StorageError, OSError) as error:  # this run has the model all the same
        say(f"  the base model is not kept for later steps: {error}")
    return folder


def _to_state(folder: Path, place: str) -> None:
    """Copy a model to where others find it; two steps may do so at once, with the same files."""
    if place.startswith(SCHEME):
        publish(folder, place)
    elif place:
        copy = Path(place).with_name(f".{Path(place).name}.{os.getpid()}")
        shutil.copytree(folder, copy)
        with suppress(OSError):  # another step was first
            copy.rename(place)
        shutil.rmtree(copy, ignore_errors=True)
