"""Check the files of a chat model or an adapter before a library loads them.

Libraries initialise missing weights at random, look a mistyped path up on the hub, and execute
chat templates. Every error here names the file and what to do.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from components.core.errors import DataError, ModelError, first_line
from components.core.records import explain
from components.core.storage import verify

MERGED = ".merged-"
"""Prefix of the temporary folders that merged models are written to."""
MOST_RANK = 4096
OTHER_BASE = "Give the base model that the adapter was trained on (see its training.json)."
FULL_PRECISION = ("F16", "BF16", "F32", "F64")
TURNS = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
"""A conversation to try a chat template on."""


class _AdapterConfig(BaseModel):
    """The settings of an adapter that could do harm: sizes, slow patterns, code."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=MOST_RANK)
    target_modules: list[str] | Literal["all-linear"]
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MOST_RANK)]] = Field(default_factory=dict)
    modules_to_save: list[str] | None = None
    lora_bias: bool = False
    layer_replication: None = None
    auto_mapping: None = None


class _WeightIndex(BaseModel):
    """Which file has which weight: files of the same folder, never others on this machine."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^/]+\.safetensors$")]]


def check_complete(source: str, report: Any) -> None:
    """Refuse weights that do not match config.json: the library initialises the rest at random.

    Raises:
        ModelError: weights are missing, or there are more layers than config.json has.
    """
    missing = sorted(report["missing_keys"])
    # Surplus buffers or heads are harmless, and some models have them; whole layers are not.
    surplus = sorted(
        name
        for name in report["unexpected_keys"]
        if ".layers." in name and name.endswith(".weight")
    )
    if missing or surplus:
        fault = "weights are missing" if missing else "config.json has no place for weights"
        named = missing or surplus
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise ModelError(
            f"--base-model {source}: {fault}: {', '.join(named[:3])}{more}",
            hint="config.json and the safetensors belong to different models, or a file is "
            "damaged: fetch the folder again.",
        )


def check_not_quantized(source: str, config: Any) -> None:
    """Refuse a base whose weights are already in 4 or 8 bits, by its config.json and its files.

    Raises:
        ModelError: names the method, or the first such weight.
    """
    folder, reason = Path(source), ""
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else ""
        reason = f"config.json has a quantization_config ({method or 'no method named'})"
    for path in () if reason else sorted(folder.glob("*.safetensors")):
        reason = reason or _quantized_weight(path)
    if reason:
        raise ModelError(
            f"--base-model {source}: is already quantized: {reason}",
            hint="Give the full-precision base, in 16 or 32 bits, that it was made from. To train "
            "on 4-bit weights, add --load-in-4bit true: the stage quantizes the base itself.",
        )


def _quantized_weight(path: Path) -> str:
    """The first weight of a file that is not in 16 or more bits; "" if there is none."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            kind = file.get_slice(name).get_dtype()
            # Masks and positions are whole numbers in any model.
            if kind not in FULL_PRECISION and "weight" in name:
                return f"{name} in {path.name} is {kind}"
    return ""


def check_token_ids(source: str, tokenizer: Any, rows: int) -> None:
    """Refuse tokens for which the model has no embedding: in padding, or in the chat template.

    Args:
        source: the model.
        tokenizer: its tokenizer, with a token for padding.
        rows: embeddings that the model has.

    Raises:
        ModelError: names the token.
    """
    used = {
        *tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"],
        *tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ],
        *(tokenizer.pad_token_id, tokenizer.eos_token_id),
    }
    if beyond := sorted(token for token in used if token >= rows):
        name = tokenizer.convert_ids_to_tokens(beyond[0])
        raise ModelError(
            f"--base-model {source}: the tokenizer writes {name!r} as token {beyond[0]}, and the "
            f"model has embeddings for {rows}",
            hint="The token was added to the tokenizer and not to the model. Take both from the "
            "model's makers, or set pad_token in tokenizer_config.json to one that the model has.",
        )


def check_template(source: str, tokenizer: Any) -> None:
    """Render a short conversation, since a chat template is a program that may fail."""
    try:
        text = tokenizer.apply_chat_template(TURNS, tokenize=False)
        if any(turn["content"] not in text for turn in TURNS):
            raise ValueError("it omits the messages")
    except Exception as error:  # a template may raise anything
        raise ModelError(
            f"--base-model {source}: its chat template cannot be used ({first_line(error)})",
            hint="Look at chat_template.jinja in the folder, or take the model from its makers.",
        ) from error


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
        raise ModelError(f"--base-model {error}", hint=error.hint) from error
    for path in sorted(folder.glob("*.safetensors")):
        _check_weights(path, "--base-model")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            _WeightIndex.model_validate_json(index.read_bytes())
        except ValidationError as error:
            hint = "Fetch the folder again."
            raise ModelError(f"--base-model {index}: {explain(error)}", hint=hint) from error


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
            hint="Fetch the folder again, or make it again with what made it.",
        ) from error


def check_adapter(adapter: str, *, merge: bool = False) -> None:
    """Refuse a folder that is no adapter.

    Args:
        adapter: the folder.
        merge: whether it is to be merged.

    Raises:
        ModelError: a file is missing or damaged, or the adapter cannot be merged.
    """
    folder = Path(adapter)
    try:
        settings = _AdapterConfig.model_validate_json((folder / "adapter_config.json").read_bytes())
    except (OSError, ValidationError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else first_line(error)
        raise ModelError(
            f"--adapter {adapter}: adapter_config.json: {reason}",
            hint="Give the folder that `raft train --output` wrote.",
        ) from error
    _check_weights(folder / "adapter_model.safetensors", "--adapter")
    if merge and settings.lora_bias:
        raise ModelError(
            f"--adapter {adapter}: has biases of its own (lora_bias), for which the base model's "
            "layers have no place, so it cannot be merged, which 4 bits require",
            hint="Train it without lora_bias, as `raft train` does, or evaluate it in 16 bits: "
            "--arms base,raft.",
        )


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
            hint=OTHER_BASE,
        )
    missing = sorted(expected - present)
    if missing:
        raise ModelError(
            f"--adapter {adapter}: weights are missing: {', '.join(missing[:3])}",
            hint="adapter_config.json and the safetensors belong to different adapters, or a file "
            "is damaged: train again, or fetch the folder again.",
        )


def for_gated(source: str, error: object) -> str:
    """How to get access to a gated hub model; "" if that is not what is wrong."""
    text = str(error).lower()
    if Path(source).is_dir() or not any(word in text for word in ("gated", "401", "403")):
        return ""
    return (
        f"Accept the licence on the page of {source} on the hub, and set HF_TOKEN to a token of "
        "that account; in a cluster: kubectl -n raft create secret generic raft-huggingface "
        "--from-literal=token=TOKEN"
    )
