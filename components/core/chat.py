"""Render a conversation: the one place where a RAFT row becomes token ids and a loss mask.

`train` learns the tokens in the mask, `quantize-check` compares two models on them, and what `eval`
asks is `render_prompt`; a test holds it equal to what lm-evaluation-harness sends.

    ids   <s> [INST] <DOCUMENT>…</DOCUMENT> Who …? [/INST] ##Reason: … <ANSWER>: Ada </s>
    mask   0    0                 0                  0        1           1      1    1
"""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.raft_form import ANSWER_MARKER, TEMPLATE, instruction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = "chat_template.jinja"
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
    """The conversation as the chat template writes it; the mask covers what follows the prompt.

    That is the answer with its end, and what a template puts before an answer, such as an empty
    thought. Where the conversation does not begin with the prompt (see `find_mismatch`), the
    answer's text is searched for, from the end.
    """
    turns = [_user(prompt), {"role": "assistant", "content": answer}]
    text: Any = tokenizer.apply_chat_template(turns, tokenize=False)
    question: Any = tokenizer.apply_chat_template(
        turns[:1], add_generation_prompt=True, tokenize=False
    )
    place = len(question) if text.startswith(question) else text.rfind(answer.strip())
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


def render_question(
    tokenizer: "PreTrainedTokenizerBase", documents: Sequence[str], question: str
) -> list[int]:
    """A question with its documents, in the form that the adapter's chat template has.

    A template of another tool has none: there, as `render_prompt` of RAFT's `instruction`.
    """
    if not str(tokenizer.chat_template).startswith(TEMPLATE[: TEMPLATE.index("\n")]):
        return render_prompt(tokenizer, instruction(documents, question))
    encoded: Any = tokenizer.apply_chat_template(
        [_user(question)],
        documents=[{"title": "", "text": text} for text in documents],
        add_generation_prompt=True,
        return_dict=True,
    )
    return list(encoded["input_ids"])


def find_mismatch(tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]) -> str:
    """Why a model would not answer as it was taught, with this chat template; "" if it would.

    Args:
        tokenizer: with the chat template.
        ends: the tokens at which a generation stops.
    """
    prompt, answer = instruction(["A lake."], "What is it?"), f"It is. {ANSWER_MARKER} a lake"
    taught = render(tokenizer, prompt, answer)
    if taught.ids[: taught.start] != render_prompt(tokenizer, prompt):
        return (
            "the training conversations do not begin with the prompt that the model is asked with"
        )
    answered = enumerate(taught.ids[taught.start :])
    # An end at once would be the answer.
    if not next((place for place, token in answered if token in ends), 0):
        return "after an answer it writes no token that ends a generation"
    return ""


def pin_template(
    tokenizer: "PreTrainedTokenizerBase", variables: Mapping[str, Any], now: datetime
) -> None:
    """Write the values of variables, the date and RAFT's form into the chat template itself.

    An adapter is saved with its template, so whatever loads it renders the same conversations, on
    another day too. After the form (`raft_form.TEMPLATE`) the template then begins, for example:

        {% macro strftime_now(format) %}{{ format | replace('%d', '30') }}{% endmacro %}
        {% set enable_thinking = False %}
    """
    template = tokenizer.get_chat_template()
    lines = [f"{{% set {name} = {value!a} %}}\n" for name, value in variables.items()]
    if "strftime_now" in template:
        directives = sorted(set(re.findall(r"%-?[A-Za-z]", template)))
        dates = "".join(f" | replace({code!r}, {now.strftime(code)!a})" for code in directives)
        macro = f"{{% macro strftime_now(format) %}}{{{{ format{dates} }}}}{{% endmacro %}}\n"
        lines.insert(0, macro)
    tokenizer.chat_template = "".join([TEMPLATE, *lines, template])


def adopt_template(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> bool:
    """Use the chat template that was saved in a folder, if there is one; whether it is another."""
    path = folder / CHAT_TEMPLATE
    if not path.is_file() or path.read_text("utf-8") == tokenizer.chat_template:
        return False
    tokenizer.chat_template = path.read_text("utf-8")
    return True


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}
