"""Load chat models: 16-bit, with an adapter, merged, and in 4 bits; the only place that knows how.

Weights are read from safetensors only, and code in a model folder is never run. A model is a hub
id or a folder; `gs://` folders have become local ones before a stage starts (see `storage`).
"""

import hashlib
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from components.errors import DataError, MissingDependencyError, ModelError
from components.records import explain
from components.storage import MANIFEST, checksum, scratch, verify

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGED = ".merged-"
"""How the folders begin that this module's users write merged models to, for themselves."""

_FETCH_AGAIN = "Fetch the folder again, or make it again with what made it."
_LAYER = re.compile(r"\.layers\.(\d+)\.")
NOT_THE_MODEL = (MANIFEST, "ledger.json", "training.json")
"""JSON files of an adapter's folder that tell of a run; they differ where the weights do not."""


SECONDS_OF_A_TEMPLATE = 10.0
MOST_RANK = 4096


class _AdapterConfig(BaseModel):
    """What of an adapter's settings could harm: sizes, patterns (which may take for ever), code."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=MOST_RANK)
    target_modules: list[str] | Literal["all-linear"]
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MOST_RANK)]] = Field(default_factory=dict)
    modules_to_save: list[str] | None = None
    layer_replication: None = None
    auto_mapping: None = None


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a chat model, with padding set up.

    Raises:
        ModelError: no such model, no tokenizer in it, or no chat template.
    """
    from transformers import AutoTokenizer

    _quiet()
    load_config(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # what the tokenizers library raises has no type of its own
        raise ModelError(
            f"--base-model {source}: its tokenizer cannot be loaded ({_first_line(error)})",
            hint=_for_gated(source, error)
            or "The folder needs tokenizer.json and tokenizer_config.json.",
        ) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no chat template",
            hint="Use the chat (instruct) variant, or put chat_template.jinja in the folder.",
        )
    _check_template(source, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no token that ends a text",
            hint="tokenizer_config.json needs an eos_token.",
        )
    return tokenizer


def load_config(source: str) -> Any:
    """The shape of a model, as transformers reads it from config.json.

    Raises:
        ModelError: no such model, or its files are missing or damaged.
    """
    from transformers import AutoConfig

    _check_folder(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # pydantic's, the hub's and plain ones, by what is wrong
        raise ModelError(
            f"--base-model {source}: its config.json cannot be read ({_first_line(error)})",
            hint=_for_gated(source, error)
            or "Give the folder of a chat model as transformers saves it, or a hub id.",
        ) from None


def load_model(
    source: str, dtype: "torch.dtype", *, in_4bit: bool = False, **options: Any
) -> "PreTrainedModel":
    """A base model with all weights in `dtype`, on the GPU where there is one.

    Args:
        source: hub id or folder.
        dtype: of the weights; with `in_4bit`, what it computes in.
        in_4bit: the weights of linear layers in NF4, to train an adapter on them.
        options: what else transformers' `from_pretrained` is to know.

    Raises:
        ModelError: no such model, or its weights cannot be read.
        MissingDependencyError: 4 bits need bitsandbytes, and it is not installed.
    """
    if in_4bit:
        options["quantization_config"] = _nf4(dtype)
    return _load(source, dtype, **options)


def load_tuned(source: str, adapter: str, dtype: "torch.dtype") -> Any:
    """The base model with the adapter beside its weights (a `peft.PeftModel`).

    Raises:
        ModelError: as `load_model`, or the adapter is missing or made for another base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    check_adapter(adapter)
    base = load_model(source, dtype)
    try:
        tuned = PeftModel.from_pretrained(base, adapter)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise ModelError(
            f"--adapter {adapter}: does not fit --base-model {source} ({_first_line(error)})",
            hint="Give the base model that the adapter was trained on (see its training.json).",
        ) from None
    _check_adapter_complete(adapter, tuned)
    return tuned


def load_4bit(
    source: str, adapter: str | None, dtype: "torch.dtype", *, head: bool = False
) -> "PreTrainedModel":
    """The model in NF4 with double quantization; `dtype` is what it computes in.

    An adapter is merged in 32 bits first: merging into 4-bit weights would add rounding error.
    Embeddings and norms stay in `dtype`, as bitsandbytes leaves them, and the output head too,
    unless `head` is true.

    Raises:
        ModelError: as `load_tuned`, or the head is to be quantized and is the embeddings.
        MissingDependencyError: bitsandbytes is not installed.
    """
    nf4 = _nf4(dtype, head)
    if head:
        check_head_is_untied(source)
    if adapter is None:
        return _load(source, dtype, quantization_config=nf4)
    with scratch("merged", f"{source} {adapter}") as folder:
        merged = folder / f"{MERGED}model"
        save_merged(source, adapter, dtype, merged)
        return _load(str(merged), dtype, quantization_config=nf4)


def save_merged(source: str, adapter: str, dtype: "torch.dtype", folder: Path) -> None:
    """Merge an adapter in 32 bits and save the model in `dtype`, as transformers and vLLM load it.

    Raises:
        ModelError: as `load_tuned`.
    """
    import torch

    merged = load_tuned(source, adapter, torch.float32).merge_and_unload().to(dtype)
    merged.save_pretrained(folder)


def check_head_is_untied(source: str) -> None:
    """Refuse to quantize an output head that is the same tensor as the embeddings.

    Raises:
        ModelError: it is, as in most models below 4B parameters; or this machine's library cannot
            pack it.
    """
    import torch

    config = load_config(source)
    if getattr(config, "tie_word_embeddings", False):
        raise ModelError(
            f"--base-model {source}: its output head is its embeddings, which stay in 16 bits",
            hint="Give --head full.",
        )
    if not torch.cuda.is_available() and config.vocab_size % 32:
        raise ModelError(
            f"--base-model {source}: on a CPU bitsandbytes packs 32 rows of a head together, and "
            f"the vocabulary has {config.vocab_size}",
            hint="Give --head full, or run on a GPU.",
        )


def predict_weight_bytes(source: str, *, head: bool = False) -> tuple[int, int]:
    """Weight bytes in 16 bits and in NF4, counted from the model's shape; no weight is read.

    NF4 takes half a byte a weight, one byte for each block of 64, and with double quantization
    four more for each 256 blocks. Source: QLoRA (Dettmers et al. 2023), section 3.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    kept = None if head else model.get_output_embeddings()
    packed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not kept
    }
    full = small = 0
    for parameter in model.parameters():
        count = parameter.numel()
        full += 2 * count
        if id(parameter) in packed:
            blocks = -(-count // 64)
            small += -(-count // 2) + blocks + 4 * -(-blocks // 256)
        else:
            small += 2 * count
    return full, small


def _nf4(dtype: "torch.dtype", head: bool = False) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "4-bit weights need bitsandbytes",
            hint="pip install -e '.[quantize-check]' in a checkout of raft-pipelines",
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # Left out, the library skips the head; an empty list skips nothing.
        llm_int8_skip_modules=[] if head else None,
    )


def choose_dtype(name: str) -> "torch.dtype":
    """`bfloat16`, `float32`, or for `auto` the one that runs fast here."""
    import torch

    if name == "auto":
        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def fingerprint(source: str) -> str:
    """What a model, tokenizer or adapter is, whatever its folder is called: a hash of its files.

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


def weight_bytes(model: Any) -> int:
    """Bytes of the weights in memory, tied tensors once, quantization constants included.

    Measure right after loading: on a CPU bitsandbytes repacks 4-bit weights at their first use.
    """
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        state = getattr(tensor, "quant_state", None)
        while state is not None:  # double quantization nests one state in another
            for constant in (state.absmax, state.code, state.offset):
                if constant is not None:
                    seen[constant.data_ptr()] = constant.numel() * constant.element_size()
            state = state.state2
    return sum(seen.values())


def _load(source: str, dtype: "torch.dtype", **options: Any) -> "PreTrainedModel":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _quiet()
    _check_folder(source)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,  # unset, the library would ask, and run it on a "y"
            **({"device_map": "auto" if torch.cuda.is_available() else "cpu"} | options),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise
        raise ModelError(
            f"--base-model {source}: cannot be loaded ({_first_line(error)})",
            hint=_for_gated(source, error)
            or "It needs config.json and weights in safetensors; a gated model needs HF_TOKEN and "
            "its licence accepted on the hub.",
        ) from None
    _check_complete(source, model.config, found)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _check_complete(source: str, config: Any, found: Any) -> None:
    """Refuse weights that are not those of the model: the library would draw the rest at random.

    Raises:
        ModelError: config.json asks for weights that are missing, or for fewer layers than are
            there.
    """
    missing = sorted(found["missing_keys"])
    # Of surplus weights only whole layers are a fault: some models bring along buffers or heads.
    layers = getattr(config, "num_hidden_layers", None)
    surplus = [
        name
        for name in sorted(found["unexpected_keys"])
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


def _check_template(source: str, tokenizer: Any) -> None:
    """Try the chat template, which is a program of the model's makers, on two words."""
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
    try:
        with _no_longer_than(SECONDS_OF_A_TEMPLATE):
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        if any(turn["content"] not in text for turn in turns):
            raise ValueError("it leaves out what is said")
    except Exception as error:  # what a program may raise: anything
        raise ModelError(
            f"--base-model {source}: its chat template cannot be used ({_first_line(error)})",
            hint="Look at chat_template.jinja in the folder, or take the model from its makers.",
        ) from None


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a body of Python code that takes longer (in the main thread only)."""
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


def _quiet() -> None:
    """Keep the libraries' own bars and hints out of the log; their errors still come through."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _check_folder(source: str) -> None:
    """Refuse a wrong path here: the library would ask the hub for it, for tens of seconds."""
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"--base-model {source}: no config.json in this folder",
                hint="Point at the folder that holds config.json, tokenizer.json and safetensors.",
            )
        if folder.name.startswith(MERGED):
            return  # written a moment ago, without a tokenizer, perhaps into an unfinished artifact
        if not (folder / "tokenizer_config.json").is_file():
            raise ModelError(
                f"--base-model {source}: no tokenizer_config.json in this folder",
                hint="Save the tokenizer beside the weights: tokenizer.save_pretrained(folder).",
            )
        _check_files(
            folder, tuple((path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()))
        )
    elif looks_local or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise ModelError(
            f"--base-model {source}: no such folder",
            hint="Give a folder that exists, or a hub id such as meta-llama/Llama-3.1-8B-Instruct.",
        )


@lru_cache(maxsize=8)
def _check_files(folder: Path, state: tuple[tuple[str, int], ...]) -> None:
    """Check a model's files once for each state they are in, before anything is made of them.

    Checksums where the folder is an artifact, or a part of one. Any other's weights are held
    against the length that their headers announce, which finds a download that was cut off.

    Raises:
        ModelError: a file is missing or damaged; names it.
    """
    try:
        verify(folder, "--base-model")
    except DataError as error:
        raise ModelError(f"--base-model {error}", hint=error.hint) from None
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            _read_object(folder / name, "--base-model")
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
        parts = _read_object(index, "--base-model").get("weight_map")
        if not isinstance(parts, dict):
            raise ModelError(f"--base-model {index}: has no weight_map", hint=_FETCH_AGAIN)
        for part in sorted({str(part) for part in parts.values()}):
            if part != Path(part).name or not (folder / part).is_file():
                raise ModelError(
                    f"--base-model {index}: names {part!r}, which is not in the folder",
                    hint=_FETCH_AGAIN,
                )


def _read_object(path: Path, flag: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{flag} {path}: not JSON ({error})", hint=_FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"{flag} {path}: not a JSON object", hint=_FETCH_AGAIN)
    return value


def _check_weights(path: Path, flag: str) -> None:
    """Hold a safetensors file against its own header, which tells where the tensors end.

    Raises:
        ModelError: it is cut off, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{flag} {path}: cannot be loaded, it is cut off or damaged ({_first_line(error)})",
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


def _check_adapter_complete(adapter: str, model: Any) -> None:
    """Refuse an adapter that lacks weights of its own config: the library starts them at zero.

    Raises:
        ModelError: names them.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="np") as file:
        there = set(file.keys())
    missing = sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - there)
    if missing:
        raise ModelError(
            f"--adapter {adapter}: weights are missing: {', '.join(missing[:3])}",
            hint="adapter_config.json and the safetensors belong to different adapters, or a file "
            "is damaged: train again, or fetch the folder again.",
        )


def _for_gated(source: str, error: BaseException) -> str:
    """What to do about a hub model that this account may not read; "" if that is not the fault."""
    text = str(error).lower()
    if Path(source).is_dir() or not any(word in text for word in ("gated", "401", "403")):
        return ""
    return (
        f"Accept the licence on the page of {source} on the hub, and set HF_TOKEN to a token of "
        "that account; in a cluster: kubectl -n raft create secret generic raft-huggingface "
        "--from-literal=token=TOKEN"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
