"""Packed rows through torch's attention with variable lengths, with a stand-in for its kernel.

The kernel itself runs on a GPU only. The stand-in is plain attention, row by row, and holds callers
to what torch's documentation asks for; what is tested here is what lies around it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen as kernels
from torch.nn.functional import scaled_dot_product_attention

from components.train import batching, trainer, varlen
from tests.train.conftest import Configure, row_losses

calls: list[list[int]] = []


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    assert starts.dtype == torch.int32 and torch.equal(starts, key_starts)
    lengths = starts.diff().tolist()
    assert query.ndim == 3 and query.shape[0] == sum(lengths)
    assert longest == longest_key == max(lengths)
    assert enable_gqa or query.shape[1] == key.shape[1]
    window, after = window_size
    assert after == 0
    calls.append(lengths)
    attended = []
    for row in zip(*(side.split(lengths) for side in (query, key, value)), strict=True):
        heads = [part.transpose(0, 1)[None] for part in row]
        seen = torch.ones(len(row[0]), len(row[0]), dtype=torch.bool).tril()
        if window >= 0:
            seen = seen.triu(-window)
        out = scaled_dot_product_attention(
            *heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        attended.append(out[0].transpose(0, 1))
    return torch.cat(attended)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    monkeypatch.setattr(kernels, "varlen_attn", row_by_row)
    varlen.register()


def test_a_kernel_that_agrees_is_told_from_one_that_does_not() -> None:
    assert varlen.agrees(row_by_row, "cpu", torch.float32)
    assert varlen.agrees(row_by_row, "cpu", torch.bfloat16)

    def one_row(query: Any, key: Any, value: Any, starts: Any, *rest: Any, **named: Any) -> Any:
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return row_by_row(query, key, value, whole, whole, len(query), len(query), **named)

    def no_gradient(query: Any, *rest: Any, **named: Any) -> Any:
        attended = row_by_row(query, *rest, **named)
        return attended.detach() + 0 * (query.sum() + rest[0].sum() + rest[1].sum())

    def not_causal(*arguments: Any, window_size: Any, **named: Any) -> Any:
        return row_by_row(*arguments, window_size=(0, 0), **named)

    for wrong in (one_row, no_gradient, not_causal):
        assert not varlen.agrees(wrong, "cpu", torch.float32), wrong.__name__


def test_without_a_gpu_it_is_not_chosen() -> None:
    assert torch.cuda.is_available() is varlen.works() is False


def llama(**settings: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto import CONFIG_MAPPING

    kind = settings.pop("kind", "llama")
    shape = CONFIG_MAPPING[kind](
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=97, **settings
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "qwen3"},
        {"kind": "mistral", "sliding_window": 6},
        {"kind": "gemma2", "sliding_window": 6, "attn_logit_softcapping": None},
    ],
    ids=lambda settings: settings.get("kind", "llama"),
)
def test_packed_rows_have_the_logits_of_rows_alone(settings: dict[str, Any], kernel: None) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = llama(**settings).train()
    rows = [{"input_ids": torch.randint(0, 97, (length,)).tolist()} for length in (3, 12, 1, 9)]
    model.set_attn_implementation("sdpa")
    alone = torch.cat(
        [model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0] for row in rows]
    )
    model.set_attn_implementation(varlen.NAME)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    batch.pop("labels")
    packed = model(**batch, use_cache=False).logits[0]
    assert calls == [[3, 12, 1, 9]] * 2, "once for each layer"
    torch.testing.assert_close(packed, alone, atol=2e-4, rtol=1e-3)


def test_scores_that_are_capped_take_the_way_that_sdpa_takes(kernel: None) -> None:
    model = llama(kind="gemma2", attn_logit_softcapping=50.0).train()
    ids, places = torch.randint(0, 97, (1, 7)), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    logits = []
    for name in ("sdpa", varlen.NAME):
        model.set_attn_implementation(name)
        bounds = {"cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32), "max_length_q": 4}
        logits.append(model(ids, position_ids=places, use_cache=False, **bounds).logits)
    assert not calls
    torch.testing.assert_close(*logits)


def test_an_answer_under_way_is_the_same(kernel: None) -> None:
    model = llama().eval()
    ids = torch.randint(1, 97, (2, 6))
    seen = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    texts = []
    for name in ("sdpa", varlen.NAME):
        model.set_attn_implementation(name)
        texts.append(
            model.generate(ids, attention_mask=seen, max_new_tokens=8, do_sample=False).tolist()
        )
    assert texts[0] == texts[1] and not calls


def test_the_trainer_packs_with_it(
    configure: Configure,
    tokenized: Any,
    tmp_path: Path,
    kernel: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, dataset, rows = tokenized
    settings = configure("padded", batching="grouped")
    padded = trainer.build(settings, tokenizer, dataset, tmp_path / "padded")
    expected = [row_losses(padded, [row])[0] for row in rows]
    for module in (batching, trainer):
        monkeypatch.setattr(module, "flash_attention", lambda _: varlen.NAME)
    settings = configure("packed")
    assert "without padding (torch_varlen)" in batching.describe_batching(settings)
    made = trainer.build(settings, tokenizer, dataset, tmp_path / "packed")
    assert row_losses(made, rows) == pytest.approx(expected, rel=1e-4)
    assert calls[0] == [len(row["input_ids"]) for row in rows]
    assert made.evaluate(made.train_dataset.select(range(4)))["eval_loss"] > 0
