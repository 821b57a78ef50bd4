"""Bases that libraries take without a word, or fail on late, and adapters that cannot be merged.

Bases that are already quantized, with tokens that the model lacks, with settings that no library
saves.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.core import models
from components.core.errors import ModelError
from components.core.models import (
    expand_4bit,
    load_4bit,
    load_config,
    load_model,
    load_tokenizer,
    save_merged,
)
from components.quantize_check import quantize_check
from components.quantize_check.config import QuantizeCheckConfig
from components.train import train
from components.train.rows import read_rows
from components.train.trainer import build
from tests.conftest import REPOSITORY, edit_json
from tests.train.conftest import config

Change = Callable[[Path], None]
ROWS = 1771


def weights(
    model: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = model / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def with_token(model: Path, content: str, token: int) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": token, "content": content, "special": True} | flags)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


# ---- already quantized -------------------------------------------------------------------------

LAYER = "model.layers.0.mlp.up_proj"


def by_bitsandbytes(model: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tokenizer_files = {path.name: path.read_bytes() for path in model.glob("*token*")}
    tokenizer_files |= {path.name: path.read_bytes() for path in model.glob("*.jinja")}
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(model, quantization_config=nf4).save_pretrained(model)
    for name, content in tokenizer_files.items():
        (model / name).write_bytes(content)


def named(**settings: object) -> Change:
    return lambda model: edit_json(model / "config.json", quantization_config=settings)


def of_type(kind: torch.dtype, name: str) -> Change:
    """Weights that no field of config.json tells of."""
    return lambda model: weights(
        model,
        lambda state: (
            {key: value for key, value in state.items() if key != f"{LAYER}.weight"}
            | {f"{LAYER}.{name}": state[f"{LAYER}.weight"].to(kind)}
        ),
    )


@pytest.mark.parametrize(
    ("quantize", "method"),
    [
        (by_bitsandbytes, "bitsandbytes"),
        (named(quant_method="gptq", bits=4, group_size=128), "gptq"),
        (named(quant_method="awq", bits=4), "awq"),
        (named(quant_method="fp8", activation_scheme="dynamic"), "fp8"),
        (named(quant_method="compressed-tensors"), "compressed-tensors"),
        (named(quant_method="mxfp4"), "mxfp4"),
        (named(bits=4), "no method named"),
        (of_type(torch.float8_e4m3fn, "weight"), "weight in model.safetensors is F8_E4M3"),
        (of_type(torch.int32, "qweight"), "qweight in model.safetensors is I32"),
        (of_type(torch.uint8, "weight_packed"), "weight_packed in model.safetensors is U8"),
    ],
)
def test_a_base_that_is_already_quantized(quantize: Change, method: str, model: Path) -> None:
    quantize(model)
    for load in (load_tokenizer, load_config):
        with pytest.raises(ModelError, match=f"already quantized: .*{method}") as refusal:
            load(str(model))
        assert "full-precision base" in refusal.value.hint and refusal.value.exit_code == 2


def test_whole_numbers_that_are_no_weights(model: Path) -> None:
    buffer = {"model.layers.0.self_attn.position_ids": torch.arange(8)}
    weights(model, lambda state: state | buffer)
    load_config(str(model))


# ---- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_template", [False, True], ids=["pad", "template"])
@pytest.mark.parametrize(("name", "token"), [("[PAD]", ROWS), ("<|extra|>", ROWS + 40)])
def test_a_token_without_an_embedding(
    in_template: bool, name: str, token: int, model: Path, world_dataset: Path, tmp_path: Path
) -> None:
    with_token(model, name, token)
    load_tokenizer(str(model))  # a token that nothing writes does no harm
    template = model / "chat_template.jinja"
    if in_template:
        template.write_text(name + template.read_text("utf-8"), encoding="utf-8")
    else:
        edit_json(model / "tokenizer_config.json", pad_token=name)
    with pytest.raises(ModelError, match=r"embeddings for 1771") as refusal:
        train.run(config(world_dataset, model, tmp_path / "out"))
    assert repr(name) in str(refusal.value) and refusal.value.exit_code == 2


@pytest.mark.parametrize("pad", [None, "<|eos|>"], ids=["none", "the end of a text"])
def test_padding_is_masked_and_the_end_of_an_answer_is_taught(
    pad: str | None, model: Path, world_dataset: Path, tmp_path: Path
) -> None:
    edit_json(model / "tokenizer_config.json", pad_token=pad)
    tokenizer: Any = load_tokenizer(str(model))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    settings = config(world_dataset, model, tmp_path / "out")
    rows = read_rows(settings, tokenizer)
    batches = list(build(settings, tokenizer, rows, tmp_path / "c").get_train_dataloader())
    padded = 0
    for batch in batches:
        for ids, labels, mask in zip(*batch.values(), strict=True):
            assert batch.keys() == {"input_ids", "labels", "attention_mask"}
            length = int(mask.sum())
            padded += len(mask) - length
            assert set(labels[length:].tolist()) <= {-100}
            assert labels[length - 1] == ids[length - 1] == tokenizer.eos_token_id
    assert padded


# ---- what is saved -----------------------------------------------------------------------------

SAMPLING = [
    {"temperature": 0.9, "top_p": 0.6},
    {"top_k": 20, "min_p": 0.1},
    {"length_penalty": 2.0, "early_stopping": True},
]


@pytest.mark.parametrize("settings", SAMPLING, ids=[" ".join(fields) for fields in SAMPLING])
def test_a_generation_config_that_contradicts_itself(
    settings: dict[str, Any], model: Path, world_dataset: Path, world_adapter: Path,
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    edit_json(model / "generation_config.json", **settings)
    warning = f"saved without its {', '.join(sorted(settings))}"
    save_merged(str(model), str(world_adapter), torch.float32, tmp_path / "merged")
    assert warning in capfd.readouterr().err
    short = config(world_dataset, model, tmp_path / "full", method="full", epochs=0.1)
    train.run(short)
    assert warning in capfd.readouterr().err
    for folder in (tmp_path / "merged", tmp_path / "full"):
        saved = json.loads((folder / "generation_config.json").read_text("utf-8"))
        assert saved["eos_token_id"] == 1 and not saved.keys() & settings.keys()


CHATTER = """
import torch
{load}
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig
GenerationConfig(temperature=0.5, top_p=0.5).validate()
lora = LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
get_peft_model(model, lora)
"""
LOADERS = {
    "ours": "from components.core.models import load_model\n"
    "model = load_model({source!r}, torch.float32)",
    "the library's": "from transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained({source!r})",
}


def test_expanded_weights_in_4_bits_compute_the_same(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([load_tokenizer(str(demo_model))("Where was Kelden founded?")["input_ids"]])

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(ids).logits

    def packed(dtype: torch.dtype) -> Any:
        return load_4bit(str(demo_model), None, dtype)

    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: True)
    assert expand_4bit(packed(torch.float32)).is_loaded_in_4bit
    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: False)
    in_4_bits = logits(packed(torch.float32).train())  # where no kernel is used on any CPU
    assert not in_4_bits.allclose(logits(load_model(str(demo_model), torch.float32)), atol=0.01)
    expanded = expand_4bit(packed(torch.float32))
    assert type(expanded.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert in_4_bits.allclose(logits(expanded), atol=1e-4)
    assert expand_4bit(packed(torch.bfloat16)).is_loaded_in_4bit
    monkeypatch.setattr(models, "EXPANDED", 1000)
    assert expand_4bit(packed(torch.float32)).is_loaded_in_4bit


@pytest.mark.parametrize(("loader", "count"), [("ours", 0), ("the library's", 3)])
def test_the_libraries_chatter_stays_out_of_the_log(
    loader: str, count: int, demo_model: Path
) -> None:
    """The library's own way of loading shows that they would speak."""
    script = CHATTER.format(load=LOADERS[loader].format(source=str(demo_model)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=300, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    words = ("generation flags are not valid", "lora_bias=True", "Loading weights")
    assert sum(word in done.stderr for word in words) == count
    assert bool(done.stderr) == bool(count), done.stderr


def test_an_adapter_with_biases_is_not_merged(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    for number, targets in enumerate((["q_proj"], "all-linear")):
        adapter = tmp_path / f"adapter-{number}"
        lora = LoraConfig(r=2, lora_bias=True, target_modules=targets, task_type="CAUSAL_LM")
        base = load_model(str(demo_model), torch.float32)
        get_peft_model(base, lora).save_pretrained(adapter)
        settings = QuantizeCheckConfig(
            dataset=str(world_dataset), base_model=str(demo_model), adapter=str(adapter),
            output=str(tmp_path / "out"),
        )  # fmt: skip
        with pytest.raises(ModelError, match=r"lora_bias.*cannot be merged") as refusal:
            quantize_check.run(settings)
        assert refusal.value.exit_code == 2
