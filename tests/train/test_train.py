import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, DataError, ModelError
from components.core.models import load_tokenizer
from components.core.records import RaftRow, TrainingRecord, read_json, read_jsonl
from components.core.storage import verify
from components.train import train
from components.train.config import TrainConfig
from components.train.rows import read_rows, read_split
from components.train.trainer import build


def config(dataset: Path, model: Path, output: Path, **settings: Any) -> TrainConfig:
    quick = {"epochs": 1, "gradient_accumulation": 1, "gradient_checkpointing": False}
    return TrainConfig(
        dataset=str(dataset), base_model=str(model), output=str(output), **(quick | settings)
    )


def test_the_adapter_is_what_was_asked_for(world_adapter: Path) -> None:
    verify(world_adapter, "--adapter")
    names = {path.name for path in world_adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}, "no pickle"
    lora = json.loads((world_adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (lora["r"], lora["lora_alpha"], lora["peft_type"]) == (64, 64, "LORA")
    assert set(lora["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_training_is_recorded_and_learns(world_adapter: Path) -> None:
    record = read_json(world_adapter / "training.json", TrainingRecord)
    assert (record.rows_train, record.rows_validation, record.steps) == (36, 4, 9)
    losses = [point.loss for point in record.curve if point.split == "train"]
    assert len(losses) == record.steps and losses[-1] < losses[0]
    assert record.validation_loss == record.curve[-1].loss < losses[0]
    assert record.tokens > 0 and record.tokens_per_second > 0 and record.peak_memory_bytes > 0


def test_same_seed_gives_the_same_weights(
    world_dataset: Path, demo_model: Path, world_adapter: Path, tmp_path: Path
) -> None:
    train.run(config(world_dataset, demo_model, tmp_path / "again", learning_rate=2e-3))
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (world_adapter / weights).read_bytes()


def test_only_answer_tokens_carry_loss(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    rows = list(read_jsonl(world_dataset / "train.jsonl", RaftRow))
    settings = config(world_dataset, demo_model, tmp_path / "out")
    trainer = build(settings, tokenizer, read_rows(settings, tokenizer), tmp_path / "out")
    seen = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            spoken = tokenizer.decode(ids[labels != -100])
            answers = [tokenizer.decode(tokenizer(row.cot_answer)["input_ids"]) for row in rows]
            answer = spoken.removesuffix(tokenizer.eos_token)
            assert spoken.endswith(tokenizer.eos_token)
            assert answer.strip() in {written.strip() for written in answers}
            seen += 1
    assert seen == len(rows)


def test_long_rows_are_skipped_whole_and_named(
    world_dataset: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    rows = list(read_jsonl(world_dataset / "train.jsonl", RaftRow))
    lengths = sorted(train_tokens(tokenizer, row) for row in rows)
    limit = lengths[len(lengths) // 2]
    kept = read_rows(
        config(world_dataset, demo_model, tmp_path / "out", max_tokens=limit), tokenizer
    )
    assert len(kept.train) == sum(length <= limit for length in lengths)
    assert len(kept.train) < len(rows) and set(kept.too_long) > set()

    with pytest.raises(DataError, match="none of the 40 rows has at most --max-tokens 64"):
        train.run(config(world_dataset, demo_model, tmp_path / "out", max_tokens=64))
    assert "40 rows are over --max-tokens 64 and skipped: seed_task_" in capsys.readouterr().err


def train_tokens(tokenizer: Any, row: RaftRow) -> int:
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": row.instruction},
            {"role": "assistant", "content": row.cot_answer},
        ],
        tokenize=False,
    )
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "x"', "Invalid JSON"),
        ('{"id": "x"}', "these are not RAFT rows"),
        (
            '{"instruction": "?", "input": "", "output": "!"}',
            r"these are not RAFT rows \(found: instruction, input, output; expected: id, type, "
            r"question, context, oracle_context, cot_answer, instruction\)",
        ),
        (None, "cot_answer has no <ANSWER>: marker"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(
    world_dataset: Path, demo_model: Path, tmp_path: Path, line: str | None, complaint: str
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    good = (world_dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    bad = good[0].replace("<ANSWER>:", "Answer:") if line is None else line
    (dataset / "train.jsonl").write_text("\n".join([*good, bad]), encoding="utf-8")
    (dataset / "validation.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=rf"train\.jsonl:3: .*{complaint}"):
        train.run(config(dataset, demo_model, tmp_path / "out"))


def test_published_rows_without_provenance_are_read(tmp_path: Path, world_dataset: Path) -> None:
    row = json.loads((world_dataset / "train.jsonl").open(encoding="utf-8").readline())
    published = dict(list(row.items())[:7])
    (tmp_path / "train.jsonl").write_text(json.dumps(published), encoding="utf-8")
    assert read_split(tmp_path / "train.jsonl")[0].question == row["question"]


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer_config.json"),
        (["tokenizer.json"], "its tokenizer cannot be loaded"),
        (["chat_template.jinja"], "has no chat template"),
        (["config.json"], "no config.json"),
        (["model.safetensors"], "cannot be loaded"),
    ],
)
def test_an_incomplete_model_folder(
    world_dataset: Path, demo_model: Path, tmp_path: Path, missing: list[str], complaint: str
) -> None:
    model = shutil.copytree(demo_model, tmp_path / "model")
    for name in missing:
        (model / name).unlink()
    with pytest.raises(ModelError, match=complaint):
        train.run(config(world_dataset, model, tmp_path / "out"))


def test_a_model_that_is_not_there(world_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        train.run(config(world_dataset, tmp_path / "nowhere", tmp_path / "out"))


def test_a_gated_model_says_what_to_do(
    world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\n401 Client Error.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="gated repo") as refused:
        train.run(config(world_dataset, Path("meta-llama/Llama"), tmp_path / "out"))
    for step in ("licence on the page of meta-llama/Llama", "HF_TOKEN", "create secret generic"):
        assert step in refused.value.hint


def test_rows_beyond_what_the_model_reads_are_skipped(
    world_dataset: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(demo_model, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = 160
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match="over --max-tokens 160"):
        train.run(config(world_dataset, model, tmp_path / "out"))
    assert "reads 160 at most" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["q_prj", "q_prj,v_proj"], ids=["alone", "next to a right one"])
def test_layers_that_the_model_lacks(
    names: str, world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    settings = config(world_dataset, demo_model, tmp_path / "out", target_modules=names)
    with pytest.raises(ConfigError) as caught:
        train.run(settings)
    assert str(caught.value) == (
        "--target-modules q_prj: no such layer (allowed: all-linear, or some of q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj)"
    )


def test_layers_may_be_named_by_their_path(
    world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    path = "layers.0.self_attn.q_proj"
    settings = config(world_dataset, demo_model, tmp_path / "out", target_modules=path)
    trainer = build(settings, tokenizer, read_rows(settings, tokenizer), tmp_path / "out")
    assert sum(weight.requires_grad for weight in trainer.model.parameters()) == 2
