"""The four commands in order on real HotpotQA paragraphs and questions, with the tiny model.

The model has never read English like this; what counts is that every stage takes real input, and
that what it writes is whole. Its scores are near zero, and reported so.
"""

import json
from pathlib import Path

import pytest

from components.core.records import Evaluation, RaftRow, Sample, read_json, read_jsonl
from components.core.storage import verify
from pipelines.cli import main

QUESTIONS = 6


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as leave:
        main([str(argument) for argument in arguments])
    assert leave.value.code == 0


@pytest.mark.timeout(600)
def test_four_stages(hotpotqa: Path, demo_model: Path, tmp_path: Path) -> None:
    dataset, adapter, quantization, evaluation = (
        tmp_path / name for name in ("dataset", "adapter", "quantization", "evaluation")
    )
    model = ("--base-model", demo_model)
    command(
        "generate", "--teacher", "extractive", "--documents", hotpotqa,
        "--output", dataset, "--max-chunks", 60,
        "--chunk-tokens", 128, "--tokenizer", demo_model,
    )  # fmt: skip
    command(
        "train", "--dataset", dataset, *model, "--output", adapter, "--epochs", 1,
        "--learning-rate", "0.001", "--gradient-checkpointing", "false",
    )  # fmt: skip
    command(
        "quantize-check", "--dataset", dataset, *model, "--adapter", adapter, "--output",
        quantization, "--max-rows", 8, "--max-new-tokens", 48, "--max-memory-ratio", 1,
    )  # fmt: skip
    command(
        "eval", "--questions", hotpotqa, *model, "--adapter", adapter, "--quantization",
        quantization, "--output", evaluation, "--max-questions", QUESTIONS, "--distractors", 2,
        "--max-new-tokens", 48,
    )  # fmt: skip

    rows = [
        row
        for split in ("train", "validation")
        for row in read_jsonl(dataset / f"{split}.jsonl", RaftRow)
    ]
    assert len(rows) >= 25
    paragraphs = {
        "".join(sentences)
        for question in json.loads(hotpotqa.read_text(encoding="utf-8"))
        for _, sentences in question["context"]
    }
    for row in rows:
        assert any(row.oracle_context in paragraph for paragraph in paragraphs)

    result = read_json(evaluation / "results.json", Evaluation)
    assert [arm.name for arm in result.arms] == ["base", "raft", "base-4bit", "raft-4bit"]
    samples = list(read_jsonl(evaluation / "samples.jsonl", Sample))
    assert len(samples) == 4 * QUESTIONS
    for arm in result.arms:
        mine = [sample for sample in samples if sample.arm == arm.name]
        assert arm.n == len(mine) == QUESTIONS
        assert arm.f1 == pytest.approx(sum(sample.f1 for sample in mine) / QUESTIONS)
        # Two oracle paragraphs a question and two others.
        assert all(len(sample.documents) == 4 for sample in mine)
        assert all(len(sample.oracle_indices) == 2 for sample in mine)
    for folder in (dataset, adapter, quantization, evaluation):
        verify(folder, "--output")
        assert (folder / "ledger.json").exists()
