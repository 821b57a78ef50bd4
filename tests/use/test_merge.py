"""`raft merge-adapter`: a folder that stock transformers load, and that answers as the adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core import decoding
from components.core.chat import render_question
from components.core.models import load_4bit, load_tokenizer, load_tuned
from components.core.raft_form import TEMPLATE
from components.core.records import RaftRow, read_jsonl
from components.core.storage import verify
from tests.conftest import Raft

PROMPTS, LIMIT = 36, 40


@pytest.fixture(scope="module")
def merged(
    raft: Raft, world_adapter: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folders = {bits: tmp_path_factory.mktemp("merged") / bits for bits in ("16", "4")}
    for bits, folder in folders.items():
        done = raft(
            "merge-adapter", "--base-model", demo_model, "--adapter", world_adapter,
            "--bits", bits, "--output", folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "MB of weights" in done.stderr and f"vllm serve {folder}" in done.stderr
        verify(folder, "--output")
    return folders


def answers(model: Any, tokenizer: Any, rows: list[RaftRow], base: Path) -> list[tuple[int, ...]]:
    prompts = [render_question(tokenizer, row.context.sentences[0], row.question) for row in rows]
    ends = decoding.end_tokens(str(base), tokenizer)
    completed = decoding.complete(model, tokenizer, prompts, max_new_tokens=LIMIT, ends=ends)
    return [completion.ids for completion in completed]


def test_stock_transformers_load_both_and_answer_as_the_adapter(
    merged: dict[str, Path], world_adapter: Path, world_dataset: Path, demo_model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [*read_jsonl(world_dataset / "train.jsonl", RaftRow)][:PROMPTS]
    named = str(demo_model), str(world_adapter)
    tokenizer = load_tokenizer(*named)
    expected = {
        "16": answers(load_tuned(*named, torch.float32), tokenizer, rows, demo_model),
        "4": answers(load_4bit(*named, torch.bfloat16), tokenizer, rows, demo_model),
    }
    same = {}
    for bits, folder in merged.items():
        dtype = torch.bfloat16 if bits == "4" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        own = AutoTokenizer.from_pretrained(folder)
        assert own.chat_template == tokenizer.chat_template
        assert own.chat_template.startswith(TEMPLATE)
        found = answers(model, own, rows, demo_model)
        same[bits] = sum(map(tuple.__eq__, found, expected[bits])) / len(rows)
    print(f"merged and in memory, same answers of {len(rows)}: {same}")
    assert same["16"] >= 0.9, "the folder's weights are rounded to 16 bits"
    assert same["4"] >= 0.9


def test_the_weights_are_what_was_asked_for(merged: dict[str, Path]) -> None:
    sizes = {
        bits: sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for bits, folder in merged.items()
    }
    assert sizes["4"] < 0.7 * sizes["16"]
    configs = {
        bits: json.loads((folder / "config.json").read_text()) for bits, folder in merged.items()
    }
    assert configs["16"]["dtype"] == "bfloat16" and "quantization_config" not in configs["16"]
    assert configs["4"]["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    for folder in merged.values():
        assert not list(folder.glob("adapter_*")) and (folder / "chat_template.jinja").is_file()


def test_another_base_is_an_error_before_anything_is_written(
    raft_here: Raft, world_adapter: Path, demo_model: Path, tmp_path: Path
) -> None:
    import shutil

    other = Path(shutil.copytree(demo_model, tmp_path / "other"))
    config = (other / "config.json").read_text("utf-8")
    (other / "config.json").write_text(config.replace("1e-06", "1e-05"))
    done = raft_here(
        "merge-adapter", "--base-model", other, "--adapter", world_adapter,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 2 and "which is another model than" in done.stderr
    assert not (tmp_path / "out").exists()
