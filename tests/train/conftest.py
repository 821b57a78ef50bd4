"""A quick training's settings, and rows as the trainer sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.models import load_tokenizer
from components.train import trainer
from components.train.config import TrainConfig
from components.train.rows import read_rows

Configure = Callable[..., TrainConfig]
QUICK = {"epochs": 1, "gradient_accumulation": 1, "gradient_checkpointing": False}


def config(dataset: Path, model: Path, output: Path | str, **settings: Any) -> TrainConfig:
    inputs = {"dataset": str(dataset), "base_model": str(model), "output": str(output)}
    return TrainConfig.parse(QUICK | inputs | settings)


@pytest.fixture
def configure(world_dataset: Path, demo_model: Path, tmp_path: Path) -> Configure:
    """Makes such settings for the shipped model, by default into the test's folder `out`."""

    def made(
        output: Path | str = "out",
        *,
        dataset: Path = world_dataset,
        base_model: Path = demo_model,
        **settings: Any,
    ) -> TrainConfig:
        remote = str(output).startswith("gs://")
        return config(dataset, base_model, output if remote else tmp_path / output, **settings)

    return made


def row_losses(made: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Each row's summed loss, read off the gradient of nothing: one label at a time is kept."""
    made.model.train()
    losses = []
    for number in range(len(rows)):
        labelled = [
            row if number == at else row | {"labels": [-100] * len(row["labels"])}
            for at, row in enumerate(rows)
        ]
        batch = made._prepare_inputs(made.data_collator(labelled))
        count = torch.tensor(1)
        losses.append(made.compute_loss(made.model, batch, num_items_in_batch=count).item())
    return losses


@pytest.fixture(scope="module")
def tokenized(world_dataset: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Rows as the trainer sees them, of different lengths."""
    tokenizer = load_tokenizer(str(demo_model))
    settings = config(world_dataset, demo_model, tmp_path_factory.mktemp("t") / "out")
    rows = read_rows(settings, tokenizer)
    made = trainer.build(settings, tokenizer, rows, tmp_path_factory.mktemp("c"))
    ordered = sorted(
        ({name: row[name] for name in ("input_ids", "labels")} for row in made.train_dataset),
        key=lambda row: len(row["input_ids"]),
    )
    return tokenizer, rows, [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
