import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import ConfigError, DataError, ModelError
from components.core.models import load_tokenizer
from components.core.records import RaftRow, TrainingRecord, read_json, read_jsonl
from components.core.storage import verify
from components.train import train
from components.train.rows import check_rows, read_rows, read_split
from components.train.trainer import build
from tests.conftest import edit_json
from tests.train.conftest import Configure


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
    configure: Configure, world_adapter: Path, tmp_path: Path
) -> None:
    train.run(configure("again", learning_rate=2e-3))
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (world_adapter / weights).read_bytes()


def test_only_answer_tokens_carry_loss(
    configure: Configure, world_dataset: Path, demo_model: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    rows = list(read_jsonl(world_dataset / "train.jsonl", RaftRow))
    settings = configure()
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
    configure: Configure, world_dataset: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    rows = list(read_jsonl(world_dataset / "train.jsonl", RaftRow))
    lengths = sorted(train_tokens(tokenizer, row) for row in rows)
    limit = lengths[len(lengths) // 2]
    data = read_rows(configure(max_tokens=limit), tokenizer)
    assert len(data.train) == sum(length <= limit for length in lengths)
    assert len(data.train) < len(rows) and set(data.too_long) > set()

    with pytest.raises(DataError, match="none of the 40 rows has at most --max-tokens 64"):
        train.run(configure(max_tokens=64))
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
        ('{"id": "x"', "not JSON"),
        ('{"id": "x"}', r"question: Field required; .*\(and 2 more\)"),
        ('{"instruction": "?", "output": "!"}', r"id: Field required; question: Field required"),
        ("\\xff", "not UTF-8|not JSON"),
        ("no marker", "cot_answer has no <ANSWER>: marker"),
        ("no answer", "cot_answer has no <ANSWER>: marker with an answer"),
    ],
)
def test_an_unfit_row_is_left_out_and_named_with_its_line(
    configure: Configure,
    world_dataset: Path,
    demo_model: Path,
    tmp_path: Path,
    line: str,
    complaint: str,
) -> None:
    """26"""
    good = (world_dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    marked, _, answer = json.loads(good[0])["cot_answer"].rpartition("<ANSWER>:")
    endings = {"no marker": marked + answer, "no answer": f"{marked}<ANSWER>:"}
    if line in endings:
        line = json.dumps(json.loads(good[0]) | {"cot_answer": endings[line]})
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([*good, line]), encoding="utf-8")
    tokenizer = load_tokenizer(str(demo_model))
    settings = configure(dataset=rows)
    read = read_rows(settings, tokenizer)
    assert len(read.train) == 2 and len(read.unfit) == 1
    assert re.search(rf"rows\.jsonl:3: .*({complaint})", str(read.unfit[0]))
    check_rows(settings, read)
    rows.write_text("\n".join([good[0], line, line]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"2 of 3 rows are unfit .*rows.jsonl:2: .*({complaint})"):
        train.run(settings)


@pytest.mark.parametrize("name", ["train.jsonl", "my_raft.jsonl"])
@pytest.mark.parametrize("whole", [True, False])
def test_one_file_of_published_rows_is_enough(
    configure: Configure,
    world_dataset: Path,
    demo_model: Path,
    tmp_path: Path,
    name: str,
    whole: bool,
) -> None:
    """26: rows as neighbours leave them: numbers as ids, equal ids, no type, other spellings."""
    lines = (world_dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines[:4]]
    rows[0]["id"] = rows[1]["id"] = 7
    del rows[2]["type"]
    rows[3]["cot_answer"] = rows[3]["cot_answer"].replace("<ANSWER>:", "**Answer**:")
    text = json.dumps(rows) if whole else "\n".join(map(json.dumps, rows))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    for dataset in (folder, folder / name):
        settings = configure(dataset=dataset, max_tokens=64)
        read = read_rows(settings, load_tokenizer(str(demo_model)))
        assert not read.unfit
        assert read.too_long == ["7", "7 (2)", rows[2]["id"], rows[3]["id"]]


def test_a_dataset_of_one_file_is_trained_on(
    configure: Configure, world_dataset: Path, tmp_path: Path
) -> None:
    """26"""
    lines = (world_dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:4], "{}"]), encoding="utf-8")
    record = train.run(configure(dataset=tmp_path / "rows.jsonl"))
    assert (record.rows_train, record.rows_unfit, len(record.left_out)) == (4, 1, 1)


def test_a_folder_without_rows_is_named(configure: Configure, tmp_path: Path) -> None:
    """26"""
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"train\.jsonl: no such file"):
        train.run(configure(dataset=tmp_path / "data"))


def test_published_rows_without_provenance_are_read(tmp_path: Path, world_dataset: Path) -> None:
    row = json.loads((world_dataset / "train.jsonl").open(encoding="utf-8").readline())
    published = dict(list(row.items())[:7])
    (tmp_path / "train.jsonl").write_text(json.dumps(published), encoding="utf-8")
    assert read_split(tmp_path / "train.jsonl", [])[0].question == row["question"]


def test_a_model_that_is_not_there(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        train.run(configure(base_model=tmp_path / "nowhere"))


def test_a_gated_model_says_what_to_do(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\n401 Client Error.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="gated repo") as refused:
        train.run(configure(base_model=Path("meta-llama/Llama")))
    for step in ("licence on the page of meta-llama/Llama", "HF_TOKEN", "create secret generic"):
        assert step in refused.value.hint


def test_rows_beyond_what_the_model_reads_are_skipped(
    configure: Configure, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(model / "config.json", max_position_embeddings=160)
    with pytest.raises(DataError, match="over --max-tokens 160"):
        train.run(configure(base_model=model))
    assert "reads 160 at most" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["q_prj", "q_prj,v_proj"], ids=["alone", "next to a right one"])
def test_layers_that_the_model_lacks(configure: Configure, names: str) -> None:
    settings = configure(target_modules=names)
    with pytest.raises(ConfigError) as caught:
        train.run(settings)
    assert str(caught.value) == (
        "--target-modules q_prj: no such layer (allowed: all-linear, or some of q_proj, k_proj, "
        "v_proj, o_proj, gate_proj, up_proj, down_proj)"
    )


TINY_TEXT = {
    "vocab_size": 1771, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
    "max_position_embeddings": 4096,
}  # fmt: skip
TINY_EYE = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
SEEING = {
    "gemma3": {
        "text_config": TINY_TEXT | {"head_dim": 16, "num_key_value_heads": 1},
        "mm_tokens_per_image": 4,
    },
    "git": TINY_TEXT,
}


@pytest.mark.parametrize(
    ("kind", "targets", "number"),
    [
        ("gemma3", "all-linear", 14),
        ("gemma3", "q_proj,v_proj", 4),
        ("git", "all-linear", 12),
        ("git", "query", 2),
    ],
)
def test_an_image_encoder_gets_no_adapter(
    configure: Configure, kind: str, targets: str, number: int, model: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(kind, vision_config=TINY_EYE, **SEEING[kind])
    AutoModelForCausalLM.from_config(settings).save_pretrained(model)
    short = {"rank": 2, "epochs": 0.05, "target_modules": targets.split(",")}
    train.run(configure(base_model=model, **short))
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="np") as file:
        adapted = {name for name in file.keys() if "lora_A" in name}  # noqa: SIM118
    assert len(adapted) == number
    assert not [name for name in adapted if "vision" in name or "image" in name]
