"""Which rows share a batch, that it changes no loss, and that logits are few."""

import itertools
import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import ConfigError, DataError
from components.core.gpus import kinds
from components.core.models import load_tokenizer
from components.core.records import TrainingRecord, read_json
from components.train import batching, train, trainer
from components.train.batching import PASS_TOKENS, length_grouped, passes
from components.train.config import TrainConfig
from components.train.memory import memory, read_shape
from components.train.rows import read_rows
from tests.train.conftest import Configure, row_losses


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 99)
)
def test_every_row_once_and_the_most_tokens_first(lengths: list[int], size: int, seed: int) -> None:
    order = length_grouped(lengths, size, random.Random(seed))
    assert sorted(order) == list(range(len(lengths)))
    assert order == length_grouped(lengths, size, random.Random(seed))
    whole = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
    tokens = [sum(lengths[row] for row in batch) for batch in whole]
    assert tokens[:1] == sorted(tokens, reverse=True)[:1]


def test_grouping_spares_padding() -> None:
    chance = random.Random(0)
    lengths = [round(chance.lognormvariate(6.5, 0.5)) for _ in range(1000)]

    def padded(order: list[int]) -> int:
        batches = [order[at : at + 8] for at in range(0, len(order), 8)]
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)

    few = length_grouped(lengths[:40], 8, chance)
    assert padded(few) < 0.9 * padded(list(range(40))), "few rows are grouped too"
    assert len({tuple(sorted(length_grouped(lengths[:40], 8, chance)[:8])) for _ in range(9)}) > 1
    order = length_grouped(lengths, 8, chance)
    assert padded(order) < 1.1 * sum(lengths) < 1.5 * sum(lengths) < padded(list(range(1000)))
    assert order != length_grouped(lengths, 8, chance), "another order in every pass"


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=7))
def test_passes_cost_as_little_as_any_cuts(lengths: list[int]) -> None:
    batches = passes(lengths)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    falling = sorted(lengths, reverse=True)
    assert [lengths[row] for rows in batches for row in rows] == falling

    def cost(parts: list[list[int]]) -> int:
        return sum(PASS_TOKENS + len(part) * max(part) for part in parts)

    def cut(at: tuple[int, ...]) -> list[list[int]]:
        return [falling[a:b] for a, b in itertools.pairwise((0, *at, len(falling)))]

    places = range(1, len(lengths))
    every = (at for count in range(len(lengths)) for at in itertools.combinations(places, count))
    assert cost([[lengths[row] for row in rows] for rows in batches]) == min(
        cost(cut(at)) for at in every
    )


def test_one_long_row_has_a_pass_of_its_own_and_like_ones_share() -> None:
    assert passes([75, 75, 4000, 75]) == [[2], [0, 1, 3]]
    assert passes([500] * 8) == [list(range(8))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_and_padded_rows_have_the_losses_of_rows_alone(
    configure: Configure,
    attention: str,
    training: bool,
    tokenized: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, dataset, rows = tokenized
    alone: list[float] = []
    for way in ("grouped", "packed"):
        settings = configure(way, batching=way)
        made = trainer.build(settings, tokenizer, dataset, tmp_path / way)
        made.model.set_attn_implementation(attention)
        # An adapter that does something: fresh ones add nothing.
        torch.manual_seed(0)
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        monkeypatch.setattr(made.model, "train", lambda mode=True: None)
        torch.nn.Module.train(made.model, training)
        if not alone:
            alone = [row_losses(made, [row])[0] for row in rows]
        assert row_losses(made, rows) == pytest.approx(alone, rel=1e-4), way
    assert len({round(loss, 3) for loss in alone}) == 3


def test_a_batch_in_passes_has_its_loss_and_gradients(
    configure: Configure, tokenized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, dataset, rows = tokenized
    settings = configure(dropout=0.0)
    made = trainer.build(settings, tokenizer, dataset, tmp_path / "out")
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1
    count = torch.tensor(sum(label != -100 for row in rows for label in row["labels"][1:]))
    widths: list[int] = []
    counted = made.model.register_forward_pre_hook(
        lambda _, __, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        widths.clear()
        made.model.zero_grad()
        loss = made.training_step(made.model, made.data_collator(rows), count)
        named = made.model.named_parameters()
        gradients = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
        return loss.item(), gradients

    monkeypatch.setattr(batching, "PASS_TOKENS", 0)
    loss, gradients = step()
    assert widths == sorted({len(row["input_ids"]) for row in rows}, reverse=True)
    monkeypatch.setattr(batching, "PASS_TOKENS", 10**9)
    together, expected = step()
    assert len(widths) == 1
    counted.remove()
    assert loss == pytest.approx(together, rel=1e-5)
    assert gradients.keys() == expected.keys() and len(expected) > 20
    assert all(torch.allclose(gradients[name], expected[name], atol=1e-6) for name in expected)
    assert sum(gradient.abs().sum().item() for gradient in expected.values()) > 0


def test_the_loss_is_that_of_all_logits(
    configure: Configure, tokenized: Any, tmp_path: Path
) -> None:
    tokenizer, dataset, rows = tokenized
    settings = configure()
    made = trainer.build(settings, tokenizer, dataset, tmp_path / "out")
    batch = made._prepare_inputs(made.data_collator(rows))
    logits = made.model(batch["input_ids"], batch["attention_mask"], use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    assert made.compute_loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("batching", ["grouped", "packed"])
def test_the_choice_is_logged(
    configure: Configure, batching: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train.run(configure(batching=batching))
    log = capsys.readouterr().err
    assert ("packed without padding" in log) is (batching == "packed")
    assert ("grouped by length" in log) is (batching == "grouped")
    assert record.steps == 9 and record.tokens > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "learning_rate": 2e-3},
        {"method": "full", "learning_rate": 1e-3},
    ],
)
def test_other_ways_to_train_learn_too(
    configure: Configure, settings: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    record = train.run(configure(output, epochs=2, **settings))
    losses = [point.loss for point in record.curve if point.split == "train"]
    assert losses[-1] < losses[0]
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    if settings.get("method") == "full":
        assert record.trainable_parameters == record.total_parameters
        again = configure("again", base_model=output, epochs=1)
        assert train.run(again).base_model == str(output), "the output is a model"


def test_what_is_trained_on_4_bits_is_in_32(
    configure: Configure, tokenized: Any, demo_model: Path, tmp_path: Path
) -> None:
    tokenizer, dataset, _ = tokenized
    settings = configure(load_in_4bit=True)
    made = trainer.build(settings, tokenizer, dataset, tmp_path / "out")
    trained = [weight for weight in made.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    size = sum(weight.numel() * weight.element_size() for weight in trained)
    assert memory(read_shape(str(demo_model)), settings, 100).adapter == size


def test_gradients_in_4_bits_survive_a_validation(
    configure: Configure, tokenized: Any, tmp_path: Path
) -> None:
    tokenizer, dataset, rows = tokenized
    settings = configure(load_in_4bit=True)
    made = trainer.build(settings, tokenizer, dataset, tmp_path / "out")

    def gradients() -> dict[str, torch.Tensor]:
        made.model.train()
        made.model.zero_grad()
        made.compute_loss(made.model, made._prepare_inputs(made.data_collator(rows))).backward()
        named = made.model.named_parameters()
        return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}

    before = gradients()
    made.evaluate(made.train_dataset)
    after = gradients()
    assert before.keys() == after.keys() and len(before) > 20
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert sum(grad.abs().sum().item() > 0 for grad in before.values()) >= len(before) // 2


def test_full_and_4_bits_do_not_agree(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="cannot train 4-bit weights"):
        configure(method="full", load_in_4bit=True)


def test_gpu_settings_fill_in_and_flags_win() -> None:
    base = {"dataset": "d", "base_model": "m", "output": "o"}
    names = set(get_args(TrainConfig.model_fields["gpu"].annotation)) - {""}
    assert names == set(kinds())
    for name in names:
        assert TrainConfig.parse(base | {"gpu": name}).gpu == name
    l4 = TrainConfig.parse(base | {"gpu": "l4"})
    assert (l4.batch_size, l4.load_in_4bit) == (1, True)
    assert TrainConfig.parse(base | {"gpu": "l4", "batch_size": "3"}).batch_size == 3
    with pytest.raises(ConfigError, match="--gpu 'tpu'"):
        TrainConfig.parse(base | {"gpu": "tpu"})


def test_too_many_rows_too_long_stop_the_stage(
    configure: Configure, demo_model: Path, tmp_path: Path
) -> None:
    rows = read_rows(configure(), load_tokenizer(str(demo_model)))
    limit = sorted(len(row["input_ids"]) for row in rows.train)[17]
    settings = {"max_tokens": limit, "epochs": 0.2}
    with pytest.raises(DataError, match="more than --max-too-long 0.1") as stopped:
        train.run(configure(**settings))
    assert "seed_task_" in str(stopped.value) and "--max-tokens" in stopped.value.hint
    assert not (tmp_path / "out").exists(), "nothing was begun"
    record = train.run(configure(max_too_long=0.9, **settings))
    assert len(record.left_out) == record.rows_too_long > 0
    assert read_json(tmp_path / "out" / "training.json", TrainingRecord) == record
