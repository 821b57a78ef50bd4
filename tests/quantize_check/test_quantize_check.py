import shutil
from pathlib import Path
from typing import Any

import pytest

from components.errors import DataError, ModelError
from components.models import load_4bit, load_model, load_tuned, weight_bytes
from components.quantize_check import quantize_check
from components.quantize_check.config import QuantizeCheckConfig
from components.records import QuantizationReport, read_json


def check(
    dataset: Path, model: Path, adapter: Path, output: Path, **settings: Any
) -> QuantizationReport:
    return quantize_check.run(
        QuantizeCheckConfig(
            dataset=str(dataset),
            base_model=str(model),
            adapter=str(adapter),
            output=str(output),
            **settings,
        )
    )


def test_bytes_and_agreement_are_measured(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    report = check(world_dataset, demo_model, world_adapter, tmp_path / "out")
    assert read_json(tmp_path / "out" / "quantization.json", QuantizationReport) == report

    import torch

    model = load_model(str(demo_model), torch.float32)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)
                 if m is not model.lm_head)  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    assert report.weight_bytes_16bit == pytest.approx(2 * parameters, rel=0.01)
    assert report.bytes_kept_16bit == 2 * (parameters - linear)
    # NF4: half a byte a weight, and with double quantization 0.127 bits more for the constants
    # (QLoRA, Dettmers et al. 2023, section 3); code books weigh only in a model this small.
    assert 0 <= report.weight_bytes_4bit - report.bytes_kept_16bit - linear * 4.127 / 8 < 40_000
    assert report.memory_ratio == report.weight_bytes_4bit / report.weight_bytes_16bit < 1
    assert 0.5 < report.token_agreement <= 1 and report.mean_kl >= 0
    assert report.rows == 4 and report.tokens > 4 * 20
    assert report.perplexity_16bit > 1 and report.perplexity_4bit > 1


def test_thresholds_decide_the_verdict(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    lenient = check(
        world_dataset, demo_model, world_adapter, tmp_path / "a", min_agreement=0,
        max_memory_ratio=1, max_rows=2,
    )  # fmt: skip
    strict = check(
        world_dataset, demo_model, world_adapter, tmp_path / "b", min_agreement=0,
        max_memory_ratio=0.01, max_rows=2,
    )  # fmt: skip
    assert lenient.passed and lenient.verdict.startswith("PASS")
    assert not strict.passed and "memory is above 1.0%" in strict.verdict
    assert lenient.rows == 2


def test_a_model_agrees_with_itself_and_not_with_another() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    first = torch.log_softmax(torch.randn(5, 11, generator=generator), -1)
    other = torch.log_softmax(torch.randn(5, 11, generator=generator), -1)
    same, differ = quantize_check._Comparison(), quantize_check._Comparison()
    same.add(first, first, [1, 2, 3, 4, 5])
    differ.add(first, other, [1, 2, 3, 4, 5])
    assert (same.agreed, same.tokens, same.divergence) == (5, 5, 0)
    assert same.loss_16bit == same.loss_4bit
    expected = torch.nn.functional.kl_div(other, first, log_target=True, reduction="sum")
    assert differ.divergence == pytest.approx(float(expected), rel=1e-5)


def test_the_adapter_reaches_the_4bit_model(demo_model: Path, world_adapter: Path) -> None:
    """Merged in 32 bits and then quantized, not dropped: its weights differ from the base's."""
    import torch

    base = load_4bit(str(demo_model), None, torch.float32)
    tuned = load_4bit(str(demo_model), str(world_adapter), torch.float32)
    name = "model.layers.0.mlp.down_proj"
    assert not torch.equal(base.get_submodule(name).weight, tuned.get_submodule(name).weight)
    assert base.get_submodule(name).weight.dtype == torch.uint8
    assert weight_bytes(base) == weight_bytes(tuned)


def test_no_validation_rows(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "validation.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no validation row to compare on"):
        check(dataset, demo_model, world_adapter, tmp_path / "out")


def test_an_adapter_that_is_none_or_of_another_base(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    import json

    import torch

    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        check(world_dataset, demo_model, world_dataset, tmp_path / "out")

    wider = shutil.copytree(demo_model, tmp_path / "wider")
    settings = json.loads((wider / "config.json").read_text(encoding="utf-8"))
    settings["intermediate_size"] += 64
    (wider / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(wider)).save_pretrained(wider)
    with pytest.raises(ModelError, match="does not fit --base-model"):
        load_tuned(str(wider), str(world_adapter), torch.float32)


@pytest.mark.parametrize(
    ("gate", "passes", "decision"),
    [("warn", False, "go"), ("stop", False, "stop"), ("stop", True, "go"), ("warn", True, "go")],
)
def test_only_a_failed_check_behind_a_gate_that_stops_decides_to_stop(
    gate: str, passes: bool, decision: str
) -> None:
    comparison = quantize_check._Comparison()
    comparison.tokens, comparison.agreed = 10, 10
    settings = QuantizeCheckConfig(
        dataset="d", base_model="m", adapter="a", output="o", gate=gate,
        max_memory_ratio=0.5 if passes else 0.1,
    )  # fmt: skip
    report = quantize_check._judge(settings, comparison, 1, 100, 30, 5)
    assert (report.passed, report.decision) == (passes, decision)


def test_broken_weights_do_not_pass_the_gate(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(demo_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        check(world_dataset, broken, world_adapter, tmp_path / "out")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="--base-model .*cannot be loaded"):
        check(world_dataset, broken, world_adapter, tmp_path / "out")
