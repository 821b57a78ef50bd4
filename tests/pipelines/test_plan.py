"""A plan's exact figures against real modules, built without memory on the meta device."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.errors import ConfigError, ModelError
from components.core.gpus import kinds
from components.core.ledger import read_prices
from components.train.config import TrainConfig
from components.train.memory import GIB, Shape, is_split, memory, read_shape
from components.train.out_of_memory import what_to_lower
from pipelines.plan import Plan, plan
from tests.conftest import REPOSITORY, Raft

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


def planned(shape: dict[str, Any], **settings: Any) -> Plan:
    given = {"dataset": "-", "output": "-", "base_model": "-", "profile": "a100-40gb"}
    config = TrainConfig.parse(given | settings)
    return plan(Shape.read(shape, "-"), config, 100, 1000, 0.4, read_prices())


@pytest.mark.parametrize("shape", [LLAMA_3_8B, LLAMA_2_7B, SMALL_QWEN])
@pytest.mark.parametrize(
    "settings", [{}, {"rank": 16, "target_modules": "q_proj,v_proj"}, {"method": "full"}]
)
def test_bytes_are_those_of_real_modules(shape: dict[str, Any], settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

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


def test_profiles_fit_llama_3_8b() -> None:
    for name in kinds():
        assert planned(LLAMA_3_8B, profile=name).fits, name
    assert not planned(LLAMA_3_8B, profile="l4", load_in_4bit=False, batch_size=8).fits
    assert not planned(LLAMA_3_8B, method="full").fits


def test_gpus_share_a_model_where_a_whole_one_does_not_fit() -> None:
    assert not planned(LLAMA_3_70B, profile="h100").fits
    shared = planned(LLAMA_3_70B, profile="h100", processes=8)
    assert shared.split and shared.fits
    assert not planned(LLAMA_3_8B, profile="h100", processes=8).split, "a whole one fits"
    assert planned(LLAMA_3_8B, profile="h100", processes=8, sharding="full").split
    assert not planned(LLAMA_3_70B, profile="h100", processes=8, sharding="none").fits
    full = {"profile": "a100-80gb", "method": "full", "batch_size": 1}
    assert not planned(LLAMA_3_8B, **full).fits and planned(LLAMA_3_8B, **full, processes=4).fits


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
    assert one[1] == "--batch-size 2 --gradient-accumulation 8 (the same result)"
    assert one[2:4] == ["--load-in-4bit true", "--processes 2, on as many GPUs"]
    assert "--sharding full" in steps(2, False) and "--processes 4" in steps(2, True)[2]
    assert "--load-in-4bit true" not in steps(2, True, sharding="full", processes=2)
    assert steps(1, False, batch_size=1, load_in_4bit=True)[0].startswith("a lower --max-tokens")


def test_a_share_is_a_share_of_the_weights_and_an_adapter_is_whole() -> None:
    given = {"dataset": "-", "output": "-", "base_model": "-"}
    shape, config = Shape.read(LLAMA_3_8B, "-"), TrainConfig.parse(given)
    whole, half = (memory(shape, config, 1000, gpus) for gpus in (1, 2))
    gathered = half.weights - whole.weights // 2
    assert 0 < gathered < 0.2 * whole.weights, "what is computed with is whole for the moment"
    assert (half.adapter, half.optimizer) == (whole.adapter, whole.optimizer)
    full = TrainConfig.parse(given | {"method": "full"})
    assert memory(shape, full, 1000, 4).optimizer == memory(shape, full, 1000).optimizer // 4
    assert not is_split(TrainConfig.parse(given | {"load_in_4bit": True}), shape, 10, GIB, 2)


def test_time_and_cost_follow_the_work() -> None:
    once, twice = planned(LLAMA_3_8B, epochs=1), planned(LLAMA_3_8B, epochs=2)
    assert twice.seconds == pytest.approx(2 * once.seconds) and twice.steps == 2 * once.steps
    assert once.steps == math.ceil(100 / 2 / 8)
    pair = planned(LLAMA_3_8B, epochs=1, processes=2)
    assert pair.steps == math.ceil(100 / 2 / 2 / 8) and pair.cost == pytest.approx(once.cost)
    assert once.cost is not None and twice.cost == pytest.approx(2 * once.cost)


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model_type 'gpt2'"):
        Shape.read({"model_type": "gpt2"}, "-")
    with pytest.raises(ModelError, match="no 'hidden_size'"):
        Shape.read({"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1}, "-")
    with pytest.raises(ConfigError, match="--target-modules nope"):
        planned(LLAMA_3_8B, target_modules="nope")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not JSON"):
        read_shape(str(tmp_path))


def test_the_command(raft: Raft, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
    done = raft("plan", "--base-model", tmp_path, "--profile", "a100-40gb")
    assert done.returncode == 0, done.stderr
    assert "167,772,160 of 8,030,261,248 parameters" in done.stdout
    assert "weights        14.96 GiB  exact" in done.stdout
    assert "\n  fits" in done.stdout and "assumption" in done.stdout
    given = ("--processes", 2, "--load-in-4bit", "false", "--batch-size", 8)
    pair = raft("plan", "--base-model", tmp_path, "--profile", "l4", *given)
    assert "on each of 2 NVIDIA L4\n  split over them (FSDP)" in pair.stdout
    wrong = raft("plan", "--base-model", tmp_path, "--profile", "l4", "--rank", "0")
    assert wrong.returncode == 2 and "--rank" in wrong.stderr


def test_a_price_table_of_ones_own(raft: Raft, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
    asked = ("plan", "--base-model", tmp_path, "--profile", "h100")
    gpu = kinds()["h100"].device
    prices = tmp_path / "prices.json"
    table = {"date": "2026-11-01", "source": "me", "currency": "EUR", "teacher_request": 0.0}
    prices.write_text(json.dumps(table | {"gpu_hour": {gpu: 3600.0}}), encoding="utf-8")
    assert " EUR, if the GPU reaches" in raft(*asked, "--prices", prices).stdout
    prices.write_text(json.dumps(table | {"gpu_hour": {}}), encoding="utf-8")
    unknown = raft(*asked, "--prices", prices).stdout
    assert f"not priced (--prices FILE, with gpu_hour of {gpu})" in unknown
    wrong = raft(*asked, "--prices", tmp_path / "none.json")
    assert wrong.returncode == 2 and "none.json: No such file" in wrong.stderr


def test_settings_that_exclude_each_other(raft: Raft) -> None:
    done = raft("plan", "--base-model", "m", "--profile", "l4", "--method", "full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --method full cannot train 4-bit weights; add --load-in-4bit false\n"
        "  raft plan --help shows every flag.\n"
    )


def test_a_wrong_path_is_not_looked_for_on_the_hub(raft: Raft, tmp_path: Path) -> None:
    profile = ("--profile", "l4")
    assert "nope: no such folder" in raft("plan", "--base-model", "nope", *profile).stderr
    empty = raft("plan", "--base-model", tmp_path, *profile)
    assert empty.returncode == 2 and "no config.json in this folder" in empty.stderr


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    here = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "plan", "--base-model", "a/b", "--profile", "l4"],
        env=os.environ | here, cwd=REPOSITORY, capture_output=True, text=True, timeout=15,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: --base-model a/b: cannot reach http://127.0.0.1:1 (")
    assert len(done.stderr.splitlines()) == 2
