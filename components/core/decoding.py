"""Greedy decoding with transformers: what a chat model answers to prompts, and where it stops.

Knows nothing of arms, questions or adapters: a stage loads the model that is to answer.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from components.core.attention import group_heads
from components.core.models import load_config

SHARED_TOKENS = 256
"""From so many on, a beginning that all prompts of a batch share is read once for all of them."""

ROUND = 32
"""New tokens after which the answers that have ended leave a batch."""

LOOP, REPEATS = 24, 3
"""Characters at a text's end that occur so many times: words repeat, half a sentence does not."""


class Completion(NamedTuple):
    """The new token ids of a prompt, the end-of-sequence token included, and their text."""

    ids: tuple[int, ...]
    text: str
    truncated: bool


def end_tokens(source: str, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's and all that the model names (chat models do)."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a model without generation_config.json
        own = load_config(source).eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    show: Callable[[str], None] | None = None,
) -> list[Completion]:
    """Answer the prompts as one batch.

    Args:
        model: of transformers or PEFT.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: of each answer; a longer one is truncated.
        ends: as `end_tokens` finds them.
        show: is given the text as it is written, where there is one prompt.
    """
    import torch
    from transformers import DynamicCache, GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )
    group_heads(model)
    # In place of the model's own settings: some sample, some penalise repetition.
    model.generation_config = greedy
    streamer = _streamer(tokenizer, show) if show else None
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        takes_parts = len(prompts) > 1 and _takes_parts(model, cache)
        inputs = _inputs(model, tokenizer, prompts, cache if takes_parts else None)
        if takes_parts:
            answers = _in_rounds(model, inputs, greedy)
        else:
            output = model.generate(**inputs, generation_config=greedy, streamer=streamer)
            answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    completions = []
    for new in answers:
        stop = next((place for place, token in enumerate(new) if token in ends), len(new) - 1)
        ids = tuple(new[: stop + 1])
        text = tokenizer.decode(ids, skip_special_tokens=True)
        completions.append(Completion(ids, text, ids[-1] not in ends))
    return completions


def _in_rounds(model: Any, inputs: dict[str, Any], greedy: Any) -> list[list[int]]:
    """New tokens of each prompt, padded where an answer ended before its round.

    A few answers that loop to the limit would otherwise keep the whole batch computing.
    """
    import torch

    limit = greedy.max_new_tokens
    answers: list[list[int]] = [[] for _ in inputs["input_ids"]]
    unfinished = list(range(len(answers)))
    for start in range(0, limit, ROUND):
        greedy.max_new_tokens = min(ROUND, limit - start)
        output = model.generate(**inputs, generation_config=greedy)
        new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        for place, tokens in zip(unfinished, new, strict=True):
            answers[place] += tokens
        stay = [row for row, tokens in enumerate(new) if not set(tokens) & set(greedy.eos_token_id)]
        if not stay or start + ROUND >= limit:
            break
        unfinished = [unfinished[row] for row in stay]
        chosen = torch.tensor(stay)  # on the CPU, since layers may lie on several GPUs
        output.past_key_values.batch_select_indices(chosen)
        read = inputs["attention_mask"][chosen]
        inputs = {
            "input_ids": output.sequences[chosen],
            "attention_mask": torch.cat([read, read.new_ones(len(stay), len(new[0]))], dim=1),
            "past_key_values": output.past_key_values,
        }
    return answers


def _inputs(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], cache: Any | None
) -> dict[str, Any]:
    """Prompts as `generate` takes them: padded on the left, but behind what all of them begin with.

    Two examples with their documents are such a beginning: three quarters of a prompt.

    Args:
        model: as `complete`.
        tokenizer: as `complete`.
        prompts: as `complete`.
        cache: an empty one to read the beginning into; without one the prompts are only padded.
    """
    import torch

    columns = zip(*(ids[:-1] for ids in prompts), strict=False)
    start = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    if start < SHARED_TOKENS or cache is None:
        start = 0
    rest = {"input_ids": [list(ids[start:]) for ids in prompts]}
    padded: dict[str, Any] = tokenizer.pad(rest, padding_side="left", return_tensors="pt")
    padded = {name: values.to(model.device) for name, values in padded.items()}
    if cache is not None and start:
        shared = torch.tensor([prompts[0][:start]], device=model.device)
        model(shared, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
        shared = shared.expand(len(prompts), -1)
        before = {"input_ids": shared, "attention_mask": torch.ones_like(shared)}
        padded = {name: torch.cat([before[name], padded[name]], dim=1) for name in before}
        padded["past_key_values"] = cache
    return padded


def _takes_parts(model: Any, cache: Any) -> bool:
    """Whether a model can read a prompt in parts: all keys and values are kept, and stay the same.

    Not where a window or a state runs over the padding, nor where the length of the prompt scales
    its positions.
    """
    from transformers.cache_utils import DynamicLayer

    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    scaled = rope.get("rope_type") in ("dynamic", "longrope")
    has_state = not model._supports_default_dynamic_cache()  # RWKV has no layers that tell
    return not (scaled or has_state) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _streamer(tokenizer: Any, show: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def repeats_itself(text: str) -> bool:
    """Whether a text ends in a loop: no limit of tokens would have been enough."""
    tail = text.strip()[-LOOP:]
    return len(tail) == LOOP and text.count(tail) >= REPEATS
