"""One renderer: its ids are the chat template's, its mask is TRL's, and eval asks the same prompt.

Not tested: what a template writes. That is its makers' affair.
"""

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.core.chat import IGNORED, pin_template, render, render_prompt, render_question
from components.core.models import load_tokenizer
from components.core.raft_form import instruction

DOCUMENTS, QUESTION = ["Ada Voss was born in Kelden.", "Kelden lies by a lake."], "Where was Ada?"
PROMPT = instruction(DOCUMENTS, QUESTION)
ANSWER = "##Reason: ##begin_quote##born in Kelden##end_quote##. <ANSWER>: Kelden"
THOUGHT = "<think>\n\n</think>\n\n"
ENDS_IN_THOUGHT = "{% if add_generation_prompt %}" + THOUGHT + "{% endif %}"


@pytest.fixture(scope="module", params=["demo", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    folder: Path = request.getfixturevalue(f"{request.param}_model")
    return load_tokenizer(str(folder))


def test_the_mask_and_the_ids_are_those_of_trl(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                        num_hidden_layers=1, num_attention_heads=1)  # fmt: skip
    row = {
        "prompt": [{"role": "user", "content": PROMPT}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    }
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(shape),
        args=SFTConfig(str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )
    (expected,) = trainer.train_dataset
    rendered = render(tokenizer, PROMPT, ANSWER)
    assert rendered.ids == expected["input_ids"]
    assert rendered.labels == expected["labels"]


def test_a_prompt_is_how_the_conversation_begins(tokenizer: Any) -> None:
    rendered, prompt = render(tokenizer, PROMPT, ANSWER), render_prompt(tokenizer, PROMPT)
    assert rendered.ids[: rendered.start] == prompt
    assert set(rendered.labels[: rendered.start]) == {IGNORED}
    assert rendered.labels[rendered.start :] == rendered.ids[rendered.start :]


def test_the_stock_harness_asks_the_same_prompt(tokenizer: Any) -> None:
    """lm-eval renders a prompt to text, without special tokens of the tokenizer's own."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == render_prompt(tokenizer, PROMPT)


@pytest.mark.parametrize("generation_prompt", ["", ENDS_IN_THOUGHT], ids=["plain", "thought"])
def test_the_mask_is_the_answer_whatever_the_generation_prompt_is(
    tokenizer: Any, generation_prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates of reasoning models end the generation prompt in what the conversation lacks."""
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + generation_prompt)
    rendered = render(tokenizer, PROMPT, ANSWER)
    answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    # After the answer there is the end of the turn, and nothing else.
    assert rendered.ids[rendered.start :][: len(answer)] == answer
    assert len(rendered.ids) - rendered.start - len(answer) <= 2
    assert tokenizer.eos_token_id in rendered.ids[rendered.start + len(answer) :]


def test_a_template_that_rewrites_answers(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask then begins where the conversation departs from the prompt."""
    template = tokenizer.chat_template.replace("message['content']", "message['content']|upper")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rendered = render(tokenizer, PROMPT, ANSWER)
    written = [token for token, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    assert tokenizer.decode(written, skip_special_tokens=True).strip() == ANSWER.upper()


def test_the_saved_template_has_the_form_of_raft(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers and vLLM render of a request with documents is what was trained on."""
    plain = render_prompt(tokenizer, PROMPT)
    assert render_question(tokenizer, DOCUMENTS, QUESTION) == plain  # a template without it
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template)
    pin_template(tokenizer, {}, datetime.now(UTC))
    assert render_prompt(tokenizer, PROMPT) == plain
    assert render_question(tokenizer, DOCUMENTS, QUESTION) == plain
    titled = [{"title": "", "text": text} for text in DOCUMENTS]
    history = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
    ]
    with_form, without = (
        tokenizer.apply_chat_template(
            [*history, {"role": "user", "content": content}, *history[1:]],
            documents=documents,
            tokenize=False,
        )
        for content, documents in ((QUESTION, titled), (PROMPT, None))
    )
    assert with_form == without and PROMPT in without


def test_the_form_goes_in_front_of_a_question_in_parts(tokenizer: Any) -> None:
    """vLLM hands a template that reads parts a list of them."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ part['text'] }}{% endfor %}{% endfor %}"
    )
    pin_template(tokenizer, {}, datetime.now(UTC))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        documents=[{"title": "", "text": text} for text in DOCUMENTS],
        tokenize=False,
    )
    assert text == PROMPT
