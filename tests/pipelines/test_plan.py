"""A plan's exact figures against real modules, built without memory on the meta device."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from components.core.describe import duration
from components.core.errors import ConfigError, DataError, ModelError
from components.core.gpus import kinds
from components.train.config import TrainConfig
from components.train.memory import Shape, memory, read_shape
from components.train.out_of_memory import what_to_lower
from pipelines.plan import Plan, count_tokens, cpu_flops, describe_cpu, plan
from tests.conftest import Raft

LLAMA_3_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_2_7B = LLAMA_3_8B | {
    "intermediate_size": 11008, "vocab_size": 32000, "num_key_value_heads": 32,
}  # fmt: skip
SMALL_QWEN = LLAMA_3_8B | {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "vocab_size": 151936,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip

PLANNED: dict[str, Any] = {
    "dataset": "-", "output": "-", "base_model": "-", "gpu": "a100-40gb",
}  # fmt: skip


def planned(shape: dict[str, Any], **settings: Any) -> Plan:
    config = TrainConfig.parse(PLANNED | settings)
    return plan(shape_of(shape), config, 100, 1000, 0.4)


def shape_of(config: dict[str, Any]) -> Shape:
    return Shape.read(AutoConfig.for_model(**config))


PAIR = {"rank": 16, "target_modules": "q_proj,v_proj"}
SHALLOW = {"num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        *product([LLAMA_3_8B, LLAMA_2_7B, SMALL_QWEN], [{}, PAIR, {"method": "full"}]),
        *product(({"model_type": "gpt2"} | SHALLOW, {"model_type": "phi3"} | SHALLOW), [{}]),
        *product(({"model_type": "mixtral"} | SHALLOW, {"model_type": "opt"} | SHALLOW), [PAIR]),
        *product(({"model_type": "gemma3_text"}, {"model_type": "bloom"}), [{"method": "full"}]),
    ],
)
def test_bytes_are_those_of_real_modules(shape: dict[str, Any], settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = planned(shape, **settings)
    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        dtype = torch.float32 if settings.get("method") else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        assert found.held.weights == sum(w.numel() * w.element_size() for w in model.parameters())
        if not settings.get("method"):
            targets = settings.get("target_modules", "all-linear")
            lora = LoraConfig(
                r=settings.get("rank", 64),
                target_modules=targets.split(",") if "," in targets else targets,
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, lora)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert found.trainable == sum(weight.numel() for weight in trained)
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    assert found.held.gradients == bytes_of(weight.grad for weight in trained)
    assert found.held.optimizer == bytes_of(moments)
    assert found.held.adapter == (0 if settings.get("method") else bytes_of(trained))


def test_4_bit_bytes_are_those_of_bitsandbytes(demo_model: Path) -> None:
    from components.core.models import load_model
    from components.core.weight_sizes import weight_bytes

    shape = json.loads((demo_model / "config.json").read_text(encoding="utf-8"))
    measured = weight_bytes(load_model(str(demo_model), torch.float32, in_4bit=True))
    found = planned(shape, load_in_4bit=True, dtype="float32").held.weights
    assert 0 <= measured - found < 1000, "the frequencies of the rotary embeddings"


def test_gpu_settings_fit_llama_3_8b() -> None:
    for name in kinds():
        assert planned(LLAMA_3_8B, gpu=name).fits, name
    assert not planned(LLAMA_3_8B, gpu="l4", load_in_4bit=False, batch_size=8).fits
    assert not planned(LLAMA_3_8B, method="full").fits


def test_gpus_share_a_model_that_does_not_fit_one() -> None:
    assert not planned(LLAMA_3_70B, gpu="h100").fits
    assert not planned(LLAMA_3_70B, gpu="h100", processes=8).fits
    shared = planned(LLAMA_3_70B, gpu="h100", processes=8, sharding="full")
    assert shared.split and shared.fits


def test_what_to_lower_can_be_typed() -> None:
    given = {"dataset": "-", "output": "-", "base_model": "-"}

    def steps(gpus: int, split: bool, **settings: Any) -> list[str]:
        found = list(what_to_lower(TrainConfig.parse(given | settings), gpus, split))
        for step in found[:-1]:
            words = step.partition(" (")[0].partition(",")[0].split()
            names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
            # Settings that exclude each other would be refused here.
            TrainConfig.parse(given | settings | dict(zip(names, words[1::2], strict=True)))
        return found

    one = steps(1, False, gradient_checkpointing=False)
    assert one[0] == "--gradient-checkpointing true"
    assert one[1] == "--batch-size 2 (the same result)"
    given_too = steps(1, False, gradient_checkpointing=True, gradient_accumulation=4)
    assert given_too[0] == "--batch-size 2 --gradient-accumulation 8 (the same result)"
    assert one[2] == "--load-in-4bit true" and "--sharding full" not in one
    assert "--sharding full" in steps(2, False)
    assert "--load-in-4bit true" not in steps(2, True, sharding="full", processes=2)
    assert steps(1, False, batch_size=1, load_in_4bit=True)[0].startswith("a lower --max-tokens")


def test_a_share_is_a_share_of_the_weights_and_an_adapter_is_whole() -> None:
    given = {"dataset": "-", "output": "-", "base_model": "-"}
    shape, config = shape_of(LLAMA_3_8B), TrainConfig.parse(given)
    whole, half = (memory(shape, config, 1000, gpus) for gpus in (1, 2))
    gathered = half.weights - whole.weights // 2
    assert 0 < gathered < 0.2 * whole.weights, "what is computed with is whole for the moment"
    assert (half.adapter, half.optimizer) == (whole.adapter, whole.optimizer)


def test_time_and_cost_follow_the_work() -> None:
    given = {"gradient_accumulation": 8}
    once, twice = (planned(LLAMA_3_8B, epochs=number, **given) for number in (1, 2))
    assert twice.seconds == pytest.approx(2 * once.seconds) and twice.steps == 2 * once.steps
    assert once.steps == math.ceil(100 / 2 / 8)
    pair = planned(LLAMA_3_8B, epochs=1, processes=2, **given)
    assert pair.steps == math.ceil(100 / 2 / 2 / 8) and pair.cost == once.cost
    assert planned(LLAMA_3_8B, epochs=1).steps == 50, "few rows make small steps"
    assert once.cost is not None and twice.cost == pytest.approx(2 * once.cost, abs=2e-6)


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--target-modules nope"):
        planned(LLAMA_3_8B, target_modules="nope")
    path = tmp_path / "config.json"
    for text, complaint in {
        '{"model_type": "t5"}': "AutoModelForCausalLM",
        '{"model_type": "of-tomorrow"}': "of-tomorrow",
        json.dumps(LLAMA_3_8B | {"hidden_size": 0}): "no model can be built",
        json.dumps(LLAMA_3_8B | {"quantization_config": {"quant_method": "gptq"}}): "quantized",
        "{": "not a valid JSON",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=complaint):
            read_shape(str(path))


def test_a_token_is_computed_with_some_experts_only() -> None:
    for kind, share in {"mixtral": 2 / 8, "qwen3_moe": 8 / 128}.items():
        shape = shape_of({"model_type": kind} | SHALLOW)
        experts = shape.in_layers - sum(linear.inputs * linear.outputs for linear in shape.linears)
        assert shape.in_layers - shape.computed == pytest.approx(experts * (1 - share), rel=0.01)


def test_the_command(raft: Raft, raft_here: Raft, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
    done = raft("plan", "--base-model", tmp_path, "--gpu", "a100-40gb")
    assert done.returncode == 0, done.stderr
    assert "167,772,160 of 8,030,261,248 parameters" in done.stdout
    assert "weights        14.96 GiB  exact" in done.stdout
    assert "\n  fits" in done.stdout and "assumption" in done.stdout
    given = ("--processes", 2, "--load-in-4bit", "false", "--sharding", "full")
    pair = raft_here("plan", "--base-model", tmp_path, "--gpu", "l4", *given)
    assert "on each of 2 NVIDIA L4\n  split over them (FSDP)" in pair.stdout
    wrong = raft_here("plan", "--base-model", tmp_path, "--gpu", "l4", "--rank", "0")
    assert wrong.returncode == 2 and "--rank" in wrong.stderr


def test_the_cpu_takes_as_long_as_its_speed_says() -> None:
    shape, config = shape_of(LLAMA_3_8B), TrainConfig.parse(PLANNED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.plan.cpu_flops", lambda: 100e9)
        slow = describe_cpu(shape, config, 100_000, 1000, 0.5)
        patch.setattr("pipelines.plan.cpu_flops", lambda: kinds()["a100-40gb"].bf16_tflops * 1e12)
        fast = describe_cpu(shape, config, 100_000, 1000, 0.5)
    as_on_gpu = plan(shape, config, 100, 1000, 0.5)
    assert duration(as_on_gpu.seconds * 100_000 / as_on_gpu.tokens) in fast
    assert "16 h 56 min" in slow and "100 GFLOPS" in slow
    assert 1e8 < cpu_flops(64) < 1e14


def test_the_rows_of_a_dataset_are_counted(world_dataset: Path, demo_model: Path) -> None:
    rows, tokens = count_tokens(str(demo_model), str(world_dataset))
    assert rows == 36 and 50 < tokens < 500
    with pytest.raises(DataError, match="no such file"):
        count_tokens(str(demo_model), str(demo_model))


def test_settings_that_exclude_each_other(raft_here: Raft) -> None:
    done = raft_here("plan", "--base-model", "m", "--gpu", "l4", "--method", "full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --method full cannot train 4-bit weights; add --load-in-4bit false\n"
        "  raft train --help shows every flag.\n"
    )


def test_a_hub_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9/some/model/.* does not answer"):
        read_shape("some/model")


def test_a_wrong_path_is_not_looked_for_on_the_hub(raft_here: Raft, tmp_path: Path) -> None:
    profile = ("--gpu", "l4")
    assert "nope: no such folder" in raft_here("plan", "--base-model", "nope", *profile).stderr
    empty = raft_here("plan", "--base-model", tmp_path, *profile)
    assert empty.returncode == 2 and "no config.json in this folder" in empty.stderr
