"""Check the files of a chat model or an adapter before a library loads them.

Libraries initialise missing weights at random, look a mistyped path up on the hub, and execute
chat templates. Every error here names the file and what to do.
"""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from components.core.errors import DataError, ModelError, first_line
from components.core.records import explain
from components.core.storage import verify

MERGED = ".merged-"
"""Prefix of the temporary folders that merged models are written to."""
_FETCH_AGAIN = "Fetch the folder again, or make it again with what made it."
_LAYER = re.compile(r"\.layers\.(\d+)\.")
SECONDS_OF_A_TEMPLATE = 10.0
MOST_RANK = 4096


class _AdapterConfig(BaseModel):
    """The settings of an adapter that could do harm: sizes, slow patterns, code."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=MOST_RANK)
    target_modules: list[str] | Literal["all-linear"]
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MOST_RANK)]] = Field(default_factory=dict)
    modules_to_save: list[str] | None = None
    layer_replication: None = None
    auto_mapping: None = None


def check_complete(source: str, config: Any, report: Any) -> None:
    """Refuse weights that do not match config.json: the library initialises the rest at random.

    Raises:
        ModelError: weights are missing, or there are more layers than config.json has.
    """
    missing = sorted(report["missing_keys"])
    # Surplus buffers or heads are harmless, and some models have them; whole layers are not.
    layers = getattr(config, "num_hidden_layers", None)
    surplus = [
        name
        for name in sorted(report["unexpected_keys"])
        if layers is not None and (number := _LAYER.search(name)) and int(number[1]) >= layers
    ]
    if missing or surplus:
        fault = "weights are missing" if missing else "config.json has no place for weights"
        named = missing or surplus
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise ModelError(
            f"--base-model {source}: {fault}: {', '.join(named[:3])}{more}",
            hint="config.json and the safetensors belong to different models, or a file is "
            "damaged: fetch the folder again.",
        )


def check_template(source: str, tokenizer: Any) -> None:
    """Render a short conversation, since a chat template is a program that may fail or hang."""
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
    try:
        with _no_longer_than(SECONDS_OF_A_TEMPLATE):
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        if any(turn["content"] not in text for turn in turns):
            raise ValueError("it omits the messages")
    except Exception as error:  # a template may raise anything
        raise ModelError(
            f"--base-model {source}: its chat template cannot be used ({first_line(error)})",
            hint="Look at chat_template.jinja in the folder, or take the model from its makers.",
        ) from None


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that takes longer (in the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def check_place(source: str) -> None:
    """Refuse a wrong path, which the library would look up on the hub for tens of seconds.

    Raises:
        ModelError: a folder without config.json, or no folder, and no hub id.
    """
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"--base-model {source}: no config.json in this folder",
            hint="Point at the folder that holds config.json, tokenizer.json and safetensors.",
        )
    if not folder.is_dir() and (looks_local or os.environ.get("HF_HUB_OFFLINE") == "1"):
        raise ModelError(
            f"--base-model {source}: no such folder",
            hint="Give a folder that exists, or a hub id such as meta-llama/Llama-3.1-8B-Instruct.",
        )


def check_folder(source: str) -> None:
    """Refuse a wrong path, and a folder with a file missing or damaged.

    Raises:
        ModelError: names it.
    """
    check_place(source)
    folder = Path(source)
    # A merged model of ours is new, has no tokenizer, and may be in an unfinished artifact.
    if not folder.is_dir() or folder.name.startswith(MERGED):
        return
    if not (folder / "tokenizer_config.json").is_file():
        raise ModelError(
            f"--base-model {source}: no tokenizer_config.json in this folder",
            hint="Save the tokenizer next to the weights: tokenizer.save_pretrained(folder).",
        )
    _check_files(
        folder, tuple((path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()))
    )


@lru_cache(maxsize=8)
def _check_files(folder: Path, state: tuple[tuple[str, int], ...]) -> None:
    """Check a model's files, once as long as their times do not change.

    By checksums where the folder is an artifact or part of one. Other folders' weights must have
    the length that their headers announce, which detects an incomplete download.

    Raises:
        ModelError: a file is missing or damaged; names it.
    """
    try:
        verify(folder, "--base-model")
    except DataError as error:
        raise ModelError(f"--base-model {error}", hint=error.hint) from None
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            _read_object(folder / name)
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            template.read_text(encoding="utf-8")
        except ValueError as error:
            raise ModelError(
                f"--base-model {template}: not text ({error})", hint=_FETCH_AGAIN
            ) from None
    for path in sorted(folder.glob("*.safetensors")):
        _check_weights(path, "--base-model")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = _read_object(index).get("weight_map")
        if not isinstance(parts, dict):
            raise ModelError(f"--base-model {index}: has no weight_map", hint=_FETCH_AGAIN)
        for part in sorted({str(part) for part in parts.values()}):
            if part != Path(part).name or not (folder / part).is_file():
                raise ModelError(
                    f"--base-model {index}: names {part!r}, which is not in the folder",
                    hint=_FETCH_AGAIN,
                )


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"--base-model {path}: not JSON ({error})", hint=_FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"--base-model {path}: not a JSON object", hint=_FETCH_AGAIN)
    return value


def _check_weights(path: Path, flag: str) -> None:
    """Open a safetensors file, which compares its length with its header.

    Raises:
        ModelError: it is cut off, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{flag} {path}: cannot be loaded, it is cut off or damaged ({first_line(error)})",
            hint=_FETCH_AGAIN,
        ) from None


def check_adapter(adapter: str) -> None:
    """Refuse a folder that is no adapter.

    Raises:
        ModelError: a file is missing or damaged.
    """
    folder = Path(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"--adapter {adapter}: no {name} in it",
                hint="Give the folder that `raft train --output` wrote.",
            )
    try:
        _AdapterConfig.model_validate_json((folder / "adapter_config.json").read_bytes())
    except ValidationError as error:
        raise ModelError(
            f"--adapter {adapter}: adapter_config.json: {explain(error)}",
            hint="Give the folder that `raft train --output` wrote.",
        ) from None
    _check_weights(folder / "adapter_model.safetensors", "--adapter")


def check_adapter_complete(adapter: str, model: Any) -> None:
    """Refuse an adapter whose weights do not match its config on this model.

    The library sets missing weights to zero and ignores surplus ones.

    Raises:
        ModelError: names them.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="np") as file:
        present = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if surplus := sorted(name for name in present - expected if "lora_" in name):
        raise ModelError(
            f"--adapter {adapter}: --base-model has no layer for {', '.join(surplus[:3])}",
            hint="Give the base model that the adapter was trained on (see its training.json).",
        )
    missing = sorted(expected - present)
    if missing:
        raise ModelError(
            f"--adapter {adapter}: weights are missing: {', '.join(missing[:3])}",
            hint="adapter_config.json and the safetensors belong to different adapters, or a file "
            "is damaged: train again, or fetch the folder again.",
        )


def for_gated(source: str, error: BaseException) -> str:
    """How to get access to a gated hub model; "" if that is not what is wrong."""
    text = str(error).lower()
    if Path(source).is_dir() or not any(word in text for word in ("gated", "401", "403")):
        return ""
    return (
        f"Accept the licence on the page of {source} on the hub, and set HF_TOKEN to a token of "
        "that account; in a cluster: kubectl -n raft create secret generic raft-huggingface "
        "--from-literal=token=TOKEN"
    )
