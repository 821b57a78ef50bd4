import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.chat import Rendered, render
from components.core.describe import describe
from components.core.errors import DataError, ModelError
from components.core.fingerprints import check_base
from components.core.models import (
    load_4bit,
    load_model,
    load_tokenizer,
    load_tuned,
)
from components.core.records import QuantizationReport, RaftRow, read_json, read_jsonl
from components.core.storage import verify
from components.core.weight_sizes import predict_weight_bytes, weight_bytes
from components.quantize_check import quantize_check
from components.quantize_check.comparison import Comparison
from components.quantize_check.config import QuantizeCheckConfig


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


@pytest.fixture(scope="module")
def untied(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with an output head of its own, as models from 7B on have it."""
    import torch

    folder = tmp_path_factory.mktemp("untied") / "model"
    shutil.copytree(demo_model, folder)
    model: Any = load_model(str(demo_model), torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    # bitsandbytes' kernels for CPUs take 4-bit weights of a multiple of 32 rows.
    model.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def any_adapter(world_adapter: Path, tmp_path: Path) -> Path:
    """An adapter that does not say what it was trained on."""
    ignored = shutil.ignore_patterns("training.json", "manifest.json", "ledger.json")
    return shutil.copytree(world_adapter, tmp_path / "adapter", ignore=ignored)


def test_what_was_predicted_is_what_is_measured(
    world_dataset: Path, untied: Path, any_adapter: Path, tmp_path: Path
) -> None:
    """And the head's price: with and without it in 4 bits, in one run, both checkpoints usable."""
    report = check(
        world_dataset, untied, any_adapter, tmp_path / "out", quantize_lm_head=True, export="4bit",
        max_memory_ratio=1,
    )  # fmt: skip
    kept = report.lm_head_16bit
    assert kept is not None
    # Beside the weights lie the frequencies of the rotary embeddings, in 32 bits.
    beside = report.weight_bytes_16bit - report.predicted_bytes_16bit
    assert 0 <= beside < 1000
    assert report.weight_bytes_4bit == report.predicted_bytes_4bit + beside
    assert kept.weight_bytes_4bit == predict_weight_bytes(str(untied))[1] + beside
    assert "lm_head.weight" not in report.kept and "model.embed_tokens.weight" in report.kept
    assert sum(report.kept.values()) == report.bytes_kept_16bit
    assert report.weight_bytes_4bit < kept.weight_bytes_4bit < report.weight_bytes_16bit
    assert kept.mean_kl < report.mean_kl
    assert report.load_seconds_16bit > 0 and report.load_seconds_4bit > 0
    assert report.peak_memory_bytes > report.weight_bytes_16bit

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "out" / "model"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.uint8
    assert weight_bytes(loaded) == report.weight_bytes_4bit
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert verify(tmp_path / "out", "--quantization") is None


def test_llama_3_8b_takes_about_36_percent_and_31_with_its_head(tmp_path: Path) -> None:
    """Counted from its published shape; nothing of it is downloaded."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    full, small = predict_weight_bytes(str(tmp_path))
    assert full == 2 * 8_030_261_248
    assert small / full == pytest.approx(0.355, abs=0.001)
    assert predict_weight_bytes(str(tmp_path), quantize_lm_head=True)[1] / full == pytest.approx(
        0.3065, abs=1e-3
    )


def test_the_merged_checkpoint_is_the_tuned_model(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    import torch

    report = check(
        world_dataset, demo_model, world_adapter, tmp_path / "out", export="merged", max_rows=1
    )
    assert report.exported == "merged"
    assert (
        "model.embed_tokens.weight" in report.kept
        and "model.layers.*.input_layernorm.weight" in report.kept
    )
    merged: Any = load_model(str(tmp_path / "out" / "model"), torch.float32)
    tuned = load_tuned(str(demo_model), str(world_adapter), torch.float32)
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, tuned(ids).logits, atol=0.3)
        assert (merged(ids).logits.argmax(-1) == tuned(ids).logits.argmax(-1)).float().mean() > 0.9


def test_one_row_is_held_at_a_time(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import weakref

    made: list[Any] = []
    alive: list[int] = []
    answer = quantize_check.answer_log_probabilities

    def watched(model: Any, row: Rendered) -> Any:
        alive.append(sum(reference() is not None for reference in made))
        table = answer(model, row)
        made.append(weakref.ref(table))
        return table

    monkeypatch.setattr(quantize_check, "answer_log_probabilities", watched)
    check(world_dataset, demo_model, world_adapter, tmp_path / "out", max_memory_ratio=1)
    assert len(made) == 8 and max(alive) <= 2


def test_a_head_that_is_the_embeddings_stays(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="model: its output head is its embeddings"):
        check(world_dataset, demo_model, world_adapter, tmp_path / "out", quantize_lm_head=True)


def test_rows_that_are_too_long_are_counted(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lengths = sorted(
        len(render(load_tokenizer(str(demo_model)), row.instruction, row.cot_answer).ids)
        for row in read_jsonl(world_dataset / "validation.jsonl", RaftRow)
    )
    fit = sum(length <= lengths[1] for length in lengths)
    report = check(
        world_dataset, demo_model, world_adapter, tmp_path / "a", max_tokens=lengths[1],
        max_memory_ratio=1,
    )  # fmt: skip
    assert (report.rows, report.rows_too_long) == (fit, len(lengths) - fit) and fit < len(lengths)
    message = f"{len(lengths) - fit} rows are longer than --max-tokens {lengths[1]}"
    assert message in capsys.readouterr().err
    described = describe(report)
    assert described is not None
    assert ("rows skipped, too long", "", str(len(lengths) - fit)) in described.table.rows
    with pytest.raises(DataError, match=f"{len(lengths)} rows are longer than --max-tokens 64"):
        check(world_dataset, demo_model, world_adapter, tmp_path / "b", max_tokens=64)


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
    same, differ = Comparison(), Comparison()
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


def test_an_adapter_of_another_model_of_the_same_shape(
    world_dataset: Path, world_adapter: Path, demo_model: Path, tmp_path: Path
) -> None:
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    other = shutil.copytree(demo_model, tmp_path / "other")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(other))
    model.save_pretrained(other)
    with pytest.raises(ModelError, match=f"was trained on {demo_model}, which is another model"):
        check(world_dataset, other, world_adapter, tmp_path / "out")
    moved = shutil.copytree(demo_model, tmp_path / "moved")
    check_base(str(world_adapter), str(moved))

    settings = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(
        json.dumps(settings | {"num_hidden_layers": settings["num_hidden_layers"] - 1}),
        encoding="utf-8",
    )
    shallow = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(other))
    shallow.save_pretrained(other)
    with pytest.raises(ModelError, match="--base-model has no layer for"):
        load_tuned(str(other), str(world_adapter), torch.float32)


@pytest.mark.parametrize(
    ("gate", "passes", "decision"),
    [("warn", False, "go"), ("stop", False, "stop"), ("stop", True, "go"), ("warn", True, "go")],
)
def test_only_a_failed_check_behind_a_gate_that_stops_decides_to_stop(
    gate: str, passes: bool, decision: str
) -> None:
    comparison = Comparison()
    comparison.tokens, comparison.agreed = 10, 10
    settings = QuantizeCheckConfig(
        dataset="d", base_model="m", adapter="a", output="o", gate=gate,
        max_memory_ratio=0.5 if passes else 0.1,
    )  # fmt: skip
    report = quantize_check.judge(settings, comparison, 1, 100, 30, 5)
    assert (report.passed, report.decision) == (passes, decision)


def test_broken_weights_do_not_pass_the_gate(
    world_dataset: Path, demo_model: Path, any_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(demo_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        check(world_dataset, broken, any_adapter, tmp_path / "out")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="--base-model .*cannot be loaded"):
        check(world_dataset, broken, any_adapter, tmp_path / "out")
