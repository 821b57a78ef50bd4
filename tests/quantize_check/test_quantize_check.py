import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.chat import Rendered, render
from components.core.describe import describe
from components.core.errors import DataError, ModelError
from components.core.fingerprints import check_base
from components.core.models import load_4bit, load_model, load_tokenizer, load_tuned
from components.core.records import (
    AnswerPair,
    FreeAnswer,
    QuantizationReport,
    RaftRow,
    Sample,
    read_json,
    read_jsonl,
)
from components.core.storage import finish_artifact, verify
from components.core.weight_sizes import nf4_bytes, weight_bytes
from components.eval import eval as evaluation
from components.eval.config import EvalConfig
from components.quantize_check import quantize_check
from components.quantize_check.comparison import Comparison
from components.quantize_check.config import QuantizeCheckConfig
from components.use import merge
from components.use.config import MergeConfig
from tests.conftest import edit_json

Check = Callable[..., QuantizationReport]


@pytest.fixture
def check(world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path) -> Check:
    """Runs the stage on the demo's artifacts, into a folder of this name."""

    def check_adapter(output: str = "out", **settings: Any) -> QuantizationReport:
        paths = {"dataset": world_dataset, "base_model": demo_model, "adapter": world_adapter,
                 "output": tmp_path / output}  # fmt: skip
        few = {"max_rows": 4, "max_new_tokens": 48}
        values = {name: str(path) for name, path in paths.items()} | few | settings
        return quantize_check.run(QuantizeCheckConfig.parse(values))

    return check_adapter


def test_bytes_and_agreement_are_measured(check: Check, demo_model: Path, tmp_path: Path) -> None:
    report = check()
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


def test_the_head_in_4_bits_too_is_measured_as_it_is_saved(
    check: Check, untied: Path, any_adapter: Path, tmp_path: Path
) -> None:
    models = {"base_model": str(untied), "adapter": str(any_adapter)}
    head_16bit = check("a", **models)
    head_4bit = check("b", **models, quantize_lm_head=True)
    sizes = head_4bit.weight_bytes_4bit, head_16bit.weight_bytes_4bit
    assert sizes[0] < sizes[1] < head_4bit.weight_bytes_16bit
    assert head_4bit.mean_kl > head_16bit.mean_kl

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "merged"
    merge.run(MergeConfig(**models, bits="4", quantize_lm_head=True, output=str(folder)))
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.uint8
    assert weight_bytes(loaded) == sizes[0]
    weights = loaded.lm_head.in_features * loaded.lm_head.out_features
    assert sizes[0] - sizes[1] == nf4_bytes(weights) - 2 * weights
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert verify(folder, "--base-model") is None


def test_one_row_is_held_at_a_time(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
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
    check()
    assert len(made) == 8 and max(alive) <= 2


def test_a_head_that_is_the_embeddings_stays(check: Check) -> None:
    with pytest.raises(ModelError, match="model: its output head shares the embeddings"):
        check(quantize_lm_head=True)


def test_rows_that_are_too_long_are_counted(
    check: Check, world_dataset: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = sorted(
        len(render(load_tokenizer(str(demo_model)), row.instruction, row.cot_answer).ids)
        for split in ("validation", "train")
        for row in read_jsonl(world_dataset / f"{split}.jsonl", RaftRow)
    )
    fit = sum(length <= lengths[2] for length in lengths)
    report = check("a", max_tokens=lengths[2], max_rows=64)
    assert (report.rows, report.rows_too_long) == (fit, len(lengths) - fit) and fit < len(lengths)
    message = f"{len(lengths) - fit} rows are longer than --max-tokens {lengths[2]}"
    assert message in capsys.readouterr().err
    described = describe(report)
    assert described is not None
    assert ("rows skipped, too long", "", str(len(lengths) - fit)) in described.table.rows
    with pytest.raises(DataError, match=f"{len(lengths)} rows are longer than --max-tokens 64"):
        check("b", max_tokens=64)
    with pytest.raises(DataError, match="leave no room for --max-new-tokens 4096"):
        check("c", max_new_tokens=4096)


def test_the_limit_on_memory_decides_the_verdict(check: Check) -> None:
    lenient = check("a", max_memory_ratio=1, max_rows=2)
    strict = check("b", max_memory_ratio=0.01, max_rows=2)
    assert lenient.outcome == "inconclusive" and lenient.verdict.startswith("INCONCLUSIVE")
    assert strict.outcome == "fail" and strict.verdict.startswith("FAIL: memory is above 1.0%")
    assert lenient.rows == 2


def test_the_answers_in_4_bits_are_those_of_evals_arm(
    check: Check, world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    """Same prompts (a row without its oracle has it back), same weights, same end, same scores."""
    report = check()
    evaluation.run(
        EvalConfig(
            questions=str(world_dataset), base_model=str(demo_model), adapter=str(world_adapter),
            output=str(tmp_path / "evaluation"), arms=("raft-4bit",), max_new_tokens=48,
            engine="transformers", dtype="bfloat16",
        )
    )  # fmt: skip
    pairs = list(read_jsonl(tmp_path / "out" / "answers.jsonl", AnswerPair))
    samples = list(read_jsonl(tmp_path / "evaluation" / "samples.jsonl", Sample))
    assert [pair.row_id for pair in pairs] == [sample.question_id for sample in samples]
    assert len(pairs) == report.rows == 4
    for pair, sample in zip(pairs, samples, strict=True):
        assert pair.split == "validation" and [pair.gold] == sample.gold
        assert (pair.small.text, pair.small.f1) == (sample.generation, sample.f1)
        assert pair.small.truncated == sample.truncated
        assert pair.small.complete == (sample.answered and not sample.truncated)
    assert report.f1_4bit == pytest.approx(sum(sample.f1 for sample in samples) / 4, abs=1e-6)


def test_training_rows_fill_up_and_are_marked(
    check: Check, world_dataset: Path, tmp_path: Path
) -> None:
    report = check(max_rows=6, max_new_tokens=2)
    assert (report.rows, report.rows_training) == (6, 2)
    pairs = read_jsonl(tmp_path / "out" / "answers.jsonl", AnswerPair)
    assert [pair.split for pair in pairs] == ["validation"] * 4 + ["train"] * 2
    assert "of 6 answers (2 to training rows)" in report.verdict
    described = describe(report)
    assert described is not None
    assert ("answers", "", "6 (2 to training rows)") in described.table.rows

    alone = shutil.copytree(world_dataset, tmp_path / "dataset")
    (alone / "validation.jsonl").write_text("", encoding="utf-8")
    finish_artifact(alone)
    report = check("alone", dataset=str(alone), max_memory_ratio=1, max_new_tokens=2)
    assert report.outcome == "inconclusive" and report.rows_training == 4
    assert "rows of the training alone cannot pass" in report.verdict


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


def test_no_rows(check: Check, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for split in ("validation", "train"):
        (dataset / f"{split}.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no row to compare on"):
        check(dataset=str(dataset))


def random_model(source: Path, folder: Path, **settings: int) -> Path:
    """A model of random weights: another's files, with these settings of config.json changed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(source, folder)
    edit_json(folder / "config.json", **settings)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_an_adapter_that_is_none_or_of_another_base(
    check: Check, world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    import torch

    with pytest.raises(ModelError, match=r"adapter_config\.json: .*No such file"):
        check(adapter=str(world_dataset))
    other = random_model(demo_model, tmp_path / "other")
    with pytest.raises(ModelError, match=f"was trained on {demo_model}, which is another model"):
        check(base_model=str(other))
    check_base(str(world_adapter), str(shutil.copytree(demo_model, tmp_path / "moved")))

    wider = random_model(demo_model, tmp_path / "wider", intermediate_size=320)
    with pytest.raises(ModelError, match="does not fit --base-model"):
        load_tuned(str(wider), str(world_adapter), torch.float32)
    shallow = random_model(demo_model, tmp_path / "shallow", num_hidden_layers=2)
    with pytest.raises(ModelError, match="--base-model has no layer for"):
        load_tuned(str(shallow), str(world_adapter), torch.float32)


@pytest.mark.parametrize(
    ("rows", "memory", "outcome", "decision"),
    [
        (64, 0.5, "pass", {"warn": "go", "stop": "go"}),
        (3, 0.5, "inconclusive", {"warn": "go", "stop": "go"}),
        (64, 0.1, "fail", {"warn": "go", "stop": "stop"}),
    ],
)
def test_only_a_failed_check_behind_a_gate_that_stops_decides_to_stop(
    rows: int, memory: float, outcome: str, decision: dict[str, str]
) -> None:
    answer = FreeAnswer(text="<ANSWER>: a", answer="a", f1=1, truncated=False, complete=True)
    pairs = [
        AnswerPair(row_id=f"{row}", split="validation", gold="a", full=answer, small=answer)
        for row in range(rows)
    ]
    comparison = Comparison(tokens=10, agreed=10)
    for gate, expected in decision.items():
        settings = QuantizeCheckConfig(
            dataset="d", base_model="m", adapter="a", output="o", gate=gate,
            max_memory_ratio=memory,
        )  # fmt: skip
        report = quantize_check.report_on(settings, comparison, pairs, 0, 100, 30, 5)
        assert (report.outcome, report.decision) == (outcome, expected)
        assert report.verdict.startswith(f"{outcome.upper()}: ")


def test_broken_weights_do_not_pass_the_gate(
    check: Check, demo_model: Path, any_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(demo_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        check(base_model=str(broken), adapter=str(any_adapter))
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="--base-model .*cannot be loaded"):
        check(base_model=str(broken), adapter=str(any_adapter))
