"""Load chat models: in 16 bits, with an adapter, merged, and in 4 bits.

Weights are read from safetensors only, and code in a model folder is never run. A model is a hub
id or a local folder: `storage` fetches `gs://` folders before a stage starts.
"""

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import MissingDependencyError, ModelError, first_line
from components.core.model_files import (
    MERGED,
    check_adapter,
    check_adapter_complete,
    check_complete,
    check_folder,
    check_template,
    for_gated,
)
from components.core.storage import scratch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    except Exception as error:  # the tokenizers library raises plain ones
        raise ModelError(
            f"--base-model {source}: its tokenizer cannot be loaded ({first_line(error)})",
            hint=for_gated(source, error)
            or "The folder needs tokenizer.json and tokenizer_config.json.",
        ) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no chat template",
            hint="Use the chat (instruct) variant, or put chat_template.jinja in the folder.",
        )
    check_template(source, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no token that ends a text",
            hint="tokenizer_config.json needs an eos_token.",
        )
    return tokenizer


def load_config(source: str) -> Any:
    """The config.json of a model, as transformers reads it.

    Raises:
        ModelError: no such model, or its files are missing or damaged.
    """
    from transformers import AutoConfig

    check_folder(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # pydantic's, the hub's and plain ones
        raise ModelError(
            f"--base-model {source}: its config.json cannot be read ({first_line(error)})",
            hint=for_gated(source, error)
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
        options: further arguments of transformers' `from_pretrained`.

    Raises:
        ModelError: no such model, or its weights cannot be read.
        MissingDependencyError: 4 bits need bitsandbytes, and it is not installed.
    """
    if in_4bit:
        options["quantization_config"] = _nf4(dtype)
    return _load(source, dtype, **options)


def load_tuned(source: str, adapter: str, dtype: "torch.dtype") -> Any:
    """The base model with the adapter next to its weights (a `peft.PeftModel`).

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
        if lacks_memory(error):
            raise
        raise ModelError(
            f"--adapter {adapter}: does not fit --base-model {source} ({first_line(error)})",
            hint="Give the base model that the adapter was trained on (see its training.json).",
        ) from None
    check_adapter_complete(adapter, tuned)
    return tuned


def load_4bit(
    source: str, adapter: str | None, dtype: "torch.dtype", *, quantize_lm_head: bool = False
) -> "PreTrainedModel":
    """The model in NF4 with double quantization; `dtype` is what it computes in.

    An adapter is merged in 32 bits first: merging into 4-bit weights would add rounding error.
    Embeddings and norms stay in `dtype`, as bitsandbytes leaves them, and the output head too,
    unless `quantize_lm_head` is true.

    Raises:
        ModelError: as `load_tuned`, or the head is to be quantized and is the embeddings.
        MissingDependencyError: bitsandbytes is not installed.
    """
    nf4 = _nf4(dtype, quantize_lm_head)
    if quantize_lm_head:
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
            hint="Use --quantize-lm-head false.",
        )
    if not torch.cuda.is_available() and config.vocab_size % 32:
        raise ModelError(
            f"--base-model {source}: on a CPU bitsandbytes packs 32 rows of a head together, and "
            f"the vocabulary has {config.vocab_size}",
            hint="Use --quantize-lm-head false, or run on a GPU.",
        )


def _nf4(dtype: "torch.dtype", quantize_lm_head: bool = False) -> Any:
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
        llm_int8_skip_modules=[] if quantize_lm_head else None,
    )


def choose_dtype(name: str) -> "torch.dtype":
    """`bfloat16`, `float32`, or for `auto` the one that runs fast here."""
    import torch

    if name == "auto":
        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def context_length(source: str, tokenizer: Any) -> int:
    """Maximum tokens of prompt and generation together."""
    config = load_config(source)
    length: int = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return length


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, torch's on any device, or vLLM's."""
    message = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate", "no available memory",
             "free memory on device", "larger than the available kv cache")  # fmt: skip
    return isinstance(error, MemoryError) or any(sign in message for sign in signs)


def free_memory() -> None:
    """Release the memory of models that are no longer in use, the GPU's too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(source: str, dtype: "torch.dtype", **options: Any) -> "PreTrainedModel":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _quiet()
    check_folder(source)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,  # unset, the library prompts, and runs it on "y"
            **({"device_map": "auto" if torch.cuda.is_available() else "cpu"} | options),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if lacks_memory(error):
            raise
        raise ModelError(
            f"--base-model {source}: cannot be loaded ({first_line(error)})",
            hint=for_gated(source, error)
            or "It needs config.json and weights in safetensors; a gated model needs HF_TOKEN and "
            "its licence accepted on the hub.",
        ) from None
    check_complete(source, model.config, report)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _quiet() -> None:
    """Keep the libraries' progress bars and hints out of the log; their errors still appear."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
