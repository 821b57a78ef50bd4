"""Render a conversation: the one place where a RAFT row becomes token ids and a loss mask.

`train` learns the tokens in the mask, `quantize-check` compares two models on them, and what a
model is asked is `render_prompt`: what `eval` sends is held equal to it by a test, token by token.

    ids   <s> [INST] <DOCUMENT>…</DOCUMENT> Who …? [/INST] ##Reason: … <ANSWER>: Ada </s>
    mask   0    0                 0                  0        1           1      1    1
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that carries no loss, as torch's cross entropy has it."""


class Rendered(NamedTuple):
    """A conversation as token ids, and which of them the model is to write."""

    ids: list[int]
    mask: list[bool]

    @property
    def start(self) -> int:
        """Place of the answer's first token."""
        return self.mask.index(True)

    @property
    def labels(self) -> list[int]:
        return [
            token if written else IGNORED
            for token, written in zip(self.ids, self.mask, strict=True)
        ]


def render(tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str) -> Rendered:
    """The conversation as the chat template writes it; the mask covers the answer and its end.

    The generation prompt need not be how the conversation begins (a template may add an empty
    thought, or today's date twice), so the answer's text is searched for, from the end.
    """
    turns = [_user(prompt), {"role": "assistant", "content": answer}]
    text: Any = tokenizer.apply_chat_template(turns, tokenize=False)
    place = text.rfind(answer.strip())
    if place >= 0 and tokenizer.is_fast:
        # The template has written all special tokens itself.
        encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], (end for _, end in encoded["offset_mapping"])
        start = next((index for index, end in enumerate(ends) if end > place), len(ids) - 1)
    else:
        # A template that rewrites answers: what the prompt and the conversation have in common.
        whole: Any = tokenizer.apply_chat_template(turns, return_dict=True)
        ids, alone = whole["input_ids"], render_prompt(tokenizer, prompt)
        pairs = enumerate(zip(alone, ids[:-1], strict=False))
        shorter = min(len(alone), len(ids) - 1)
        start = next((index for index, (one, other) in pairs if one != other), shorter)
    start = max(start, 1)  # a first token is predicted from nothing
    return Rendered(list(ids), [index >= start for index in range(len(ids))])


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """What a model is given to answer: the conversation up to where its answer begins."""
    encoded: Any = tokenizer.apply_chat_template(
        [_user(prompt)], add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}
