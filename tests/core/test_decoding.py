"""What a batch reads, where a generation stops, and whether it ever would have."""

from pathlib import Path
from typing import Any

import pytest

from components.core import decoding
from components.core.decoding import complete, end_tokens, repeats_itself
from components.core.models import load_model, load_tokenizer


@pytest.mark.parametrize("shared", [0, 100, 400])
def test_what_all_prompts_begin_with_is_read_once(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    import torch

    tokenizer: Any = load_tokenizer(str(demo_model))
    model = load_model(str(demo_model), torch.float32)
    words = tokenizer("Where was Kelden founded? In 1902, by a river. " * 60)["input_ids"]
    prompts = [words[:shared] + words[place : place + 20 + place] for place in (7, 30, 51)]
    monkeypatch.setattr(decoding, "ROUND", 4)
    read: list[int] = []

    def count(_: Any, arguments: Any, named: dict[str, Any]) -> None:
        read.append((named["input_ids"] if "input_ids" in named else arguments[0]).numel())

    model.register_forward_pre_hook(count, with_kwargs=True)

    def answer() -> list[decoding.Completion]:
        read.clear()
        ends = end_tokens(str(demo_model), tokenizer)
        return complete(model, tokenizer, prompts, max_new_tokens=12, ends=ends)

    once, tokens_once = answer(), read[0] + read[1]
    monkeypatch.setattr(decoding, "SHARED_TOKENS", 10_000)
    assert answer() == once
    longest = 20 + 51
    assert read[0] == 3 * (shared + longest)
    assert tokens_once == (shared + 3 * longest if shared == 400 else read[0] + 3)


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "rwkv", "attention_hidden_size": 16}, False),
        ({"model_type": "mistral", "sliding_window": 8}, False),
        ({"model_type": "llama",
          "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, False),
    ],
)  # fmt: skip
def test_nothing_is_shared_where_padding_would_change_it(
    demo_model: Path, settings: dict[str, Any], shares: bool
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer: Any = load_tokenizer(str(demo_model))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "vocab_size": len(tokenizer)}  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings, **size)).eval()
    beginning = tokenizer("Where was Kelden founded? " * 100)["input_ids"][: decoding.SHARED_TOKENS]
    prompts = [[*beginning, 51, 52], [*beginning, 53]]
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, arguments, named: read.append((*arguments, named.get("input_ids"))[0].numel()),
        with_kwargs=True,
    )
    complete(model, tokenizer, prompts, max_new_tokens=1, ends=[0])
    assert read[0] == (len(beginning) if shares else 2 * (len(beginning) + 2))


def test_answers_that_have_ended_leave_the_batch(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    tokenizer: Any = load_tokenizer(str(demo_model))
    model = load_model(str(demo_model), torch.float32)
    words = tokenizer("Where was Kelden founded? In 1902, by a river. " * 9)["input_ids"]
    prompts = [words[: 20 + place] for place in (7, 30, 51)]
    rows: list[int] = []

    def count(_: Any, arguments: Any, named: dict[str, Any]) -> None:
        rows.append((*arguments, named.get("input_ids"))[0].shape[0])

    model.register_forward_pre_hook(count, with_kwargs=True)

    def answer(ends: list[int]) -> list[decoding.Completion]:
        rows.clear()
        return complete(model, tokenizer, prompts, max_new_tokens=30, ends=ends)

    monkeypatch.setattr(decoding, "ROUND", 100)
    whole = answer([0])
    assert [len(one.ids) for one in whole] == [30, 30, 30] and set(rows) == {3}
    monkeypatch.setattr(decoding, "ROUND", 4)
    assert answer([0]) == whole
    assert [one.ids for one in whole] != [whole[0].ids] * 3
    # An end that the first answer comes to, and the others later or never.
    end = next(one for one in whole[0].ids if all(one not in other.ids[:8] for other in whole[1:]))
    ended = answer([end])
    assert len(ended[0].ids) < 30 and not ended[0].truncated
    for one, full in zip(ended, whole, strict=True):
        assert one.ids == full.ids[: len(one.ids)]
    assert rows[-1] < 3


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("So the answer is Kelden. " * 5, True),
        ("He said: " + "the the the the " * 10, True),
        ("##Reason: " + "0" * 200 + "\n", True),
        (" ".join(map(str, range(400))), False),
        ("So the answer is Kelden. So the answer is Kelden.", False),
        ("no no no no", False),
        ("", False),
    ],
)
def test_a_loop_is_told_from_a_long_answer(text: str, loops: bool) -> None:
    assert repeats_itself(text) == loops
