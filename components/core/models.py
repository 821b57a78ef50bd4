"""Load chat models: in 16 bits, with an adapter, merged, and in 4 bits.

Weights are read from safetensors only, and code in a model folder is never run. A model is a hub
id or a local folder: `storage` fetches `gs://` folders before a stage starts.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.chat import CHAT_TEMPLATE, adopt_template
from components.core.errors import MissingDependencyError, ModelError, first_line
from components.core.memory import lacks_memory
from components.core.model_files import (
    MERGED,
    OTHER_BASE,
    check_adapter,
    check_adapter_complete,
    check_complete,
    check_folder,
    check_not_quantized,
    check_template,
    check_token_ids,
    for_gated,
)
from components.core.progress import say
from components.core.raft_form import TEMPLATE
from components.core.records import TrainingRecord
from components.core.storage import scratch

LIBRARIES = (
    "accelerate", "bitsandbytes", "datasets", "huggingface_hub", "peft", "torch", "transformers",
    "trl",
)  # fmt: skip

EXPANDED = 1_000_000_000
"""Maximum parameters of a model that `expand_4bit` expands: 4 GB."""

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(source: str, adapter: str = "") -> "PreTrainedTokenizerBase":
    """The tokenizer of a chat model, with padding set up.

    Args:
        source: hub id or folder.
        adapter: of this project's, whose chat template is used: it holds the date and the
            variables that the adapter was trained with.

    Raises:
        ModelError: no such model, no tokenizer in it, no chat template, or one that writes tokens
            which the model does not have.
    """
    from transformers import AutoTokenizer

    quiet()
    config = load_config(source)
    needs = "The folder needs tokenizer.json, tokenizer_config.json and chat_template.jinja."
    with _explained(source, "its tokenizer cannot be loaded", needs):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no chat template",
            hint="Use the chat (instruct) variant, or put chat_template.jinja in the folder.",
        )
    check_template(source, tokenizer)
    if adapter and _has_template_of_ours(Path(adapter)):
        adopt_template(tokenizer, Path(adapter))
        check_template(source, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise ModelError(
            f"--base-model {source}: the tokenizer has no token that ends a text",
            hint="tokenizer_config.json needs an eos_token.",
        )
    check_token_ids(source, tokenizer, config.get_text_config().vocab_size)
    return tokenizer


def _has_template_of_ours(adapter: Path) -> bool:
    """Whether an adapter is one of train, or the copy that `raft card` publishes of one."""
    template = adapter / CHAT_TEMPLATE
    ours = template.is_file() and template.read_text(encoding="utf-8").startswith(TEMPLATE)
    return ours or (adapter / TrainingRecord.FILE).is_file()


def load_config(source: str) -> Any:
    """The config.json of a model, as transformers reads it.

    Raises:
        ModelError: no such model, its files are missing or damaged, or it is already quantized.
    """
    from transformers import AutoConfig

    check_folder(source)
    needs = "Give the folder of a chat model as transformers saves it, or a hub id."
    with _explained(source, "its config.json cannot be read", needs):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_not_quantized(source, config)
    return config


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
    import torch
    from transformers import AutoModelForCausalLM

    if in_4bit:
        options["quantization_config"] = _nf4(dtype)
    quiet()
    check_folder(source)
    needs = (
        "It needs config.json and weights in safetensors; a gated model needs HF_TOKEN and its "
        "licence accepted on the hub."
    )
    with _explained(source, "cannot be loaded", needs):
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,  # unset, the library prompts, and runs it on "y"
            **({"device_map": "auto" if torch.cuda.is_available() else "cpu"} | options),
        )
    check_complete(source, report)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def load_tuned(source: str, adapter: str, dtype: "torch.dtype") -> Any:
    """The base model with the adapter next to its weights (a `peft.PeftModel`).

    Raises:
        ModelError: as `load_model`, or the adapter is missing or made for another base.
    """
    check_adapter(adapter)
    return add_adapter(load_model(source, dtype), source, adapter)


def add_adapter(base: "PreTrainedModel", source: str, adapter: str) -> Any:
    """A loaded base model with the adapter next to its weights; `unload()` takes it off again.

    Args:
        base: it is changed.
        source: what it was loaded from, for errors.
        adapter: a folder.

    Raises:
        ModelError: as `load_tuned`.
    """
    from peft import PeftModel

    check_adapter(adapter)
    try:
        tuned = PeftModel.from_pretrained(base, adapter)
    except Exception as error:  # torch's, safetensors' and plain ones
        if lacks_memory(error):
            raise
        raise ModelError(
            f"--adapter {adapter}: does not fit --base-model {source} ({first_line(error)})",
            hint=OTHER_BASE,
        ) from error
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
        return load_model(source, dtype, quantization_config=nf4)
    with scratch("merged", f"{source} {adapter}") as folder:
        merged = folder / f"{MERGED}model"
        save_merged(source, adapter, dtype, merged)
        return load_model(str(merged), dtype, quantization_config=nf4)


def expand_4bit(model: Any) -> Any:
    """Expand the weights of a small 4-bit model once, where each token would expand them again.

    That is in 32 bits on a CPU without AVX512-BF16, for which bitsandbytes has no kernel. The
    values stay the same; the memory is that of 32 bits. Other models are returned as they are.
    """
    import torch
    from bitsandbytes.functional import has_avx512bf16

    slow = model.device.type == "cpu" and model.dtype == torch.float32 and not has_avx512bf16()
    return model.dequantize() if slow and model.num_parameters() <= EXPANDED else model


def save_merged(source: str, adapter: str, dtype: "torch.dtype", folder: Path) -> None:
    """Merge an adapter in 32 bits and save the model in `dtype`, as transformers and vLLM load it.

    Raises:
        ModelError: as `load_tuned`.
    """
    import torch

    check_adapter(adapter, merge=True)
    merged = load_tuned(source, adapter, torch.float32).merge_and_unload().to(dtype)
    clean_generation_config(source, merged)
    merged.save_pretrained(folder)


def clean_generation_config(source: str, model: Any) -> None:
    """Remove what makes a generation_config contradictory, since transformers refuses to save it.

    Some bases ship a temperature or top_p without do_sample. The stages decode greedily anyway.
    """
    from transformers import GenerationConfig

    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        settings = model.generation_config.to_diff_dict()
        consistent = {}
        for name, value in settings.items():
            with suppress(ValueError):
                GenerationConfig(**{name: value}).validate(strict=True)
                consistent[name] = value
        say(
            f"  warning: the generation_config.json of {source} contradicts itself; the model is "
            f"saved without its {', '.join(sorted(settings.keys() - consistent.keys()))}"
        )
        model.generation_config = GenerationConfig(**consistent)


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
            f"--base-model {source}: its output head shares the embeddings, which stay in 16 bits",
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
    except ImportError as error:
        raise MissingDependencyError(
            "4-bit weights need bitsandbytes",
            hint="pip install -e '.[quantize-check]' in a checkout of raft-pipelines",
        ) from error
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


def width(source: str) -> int:
    """The hidden size of a model."""
    return int(load_config(source).get_text_config().hidden_size)


@contextmanager
def _explained(source: str, problem: str, needs: str) -> Iterator[None]:
    """Turn what a library raises into an error that names the model and what it needs."""
    try:
        yield
    except Exception as error:  # pydantic's, the hub's, safetensors' and plain ones
        if lacks_memory(error):
            raise
        raise ModelError(
            f"--base-model {source}: {problem} ({first_line(error)})",
            hint=for_gated(source, error) or needs,
        ) from error


def quiet() -> None:
    """Keep the libraries' warnings, progress bars and hints out of the log; errors still appear."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{library}\b")
