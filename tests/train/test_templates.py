"""Chat templates that would spoil a training without a word.

The templates are those of well-known models, shortened, on the shipped tiny model.
"""

import json
import os
import signal
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from trl import SFTTrainer

from components.core.errors import ModelError, UserError
from components.core.models import load_tokenizer
from components.core.records import TrainingRecord, read_json
from components.eval import engines
from components.eval import eval as eval_stage
from components.eval.config import EvalConfig
from components.quantize_check import quantize_check
from components.quantize_check.config import QuantizeCheckConfig
from components.report.comparison import Trial, best
from components.train import train
from tests.train.conftest import Configure

USER = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
CHATML = (
    "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
PROMPTED = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
ANSWER = "{% else %}<|assistant|>{{ m.content }}{{ eos_token }}"
NO_END = USER + "{% else %}<|assistant|>{{ m.content }}" + PROMPTED
OPENS_A_THOUGHT = USER + ANSWER + PROMPTED.replace("|assistant|>", "|assistant|><think>\n")
BAD = {
    "no end of turn": (NO_END, "no token that ends a generation"),
    "an end of turn that is no end of text": (CHATML, "no token that ends a generation"),
    "an end before the answer": (
        USER + "{% else %}{{ eos_token }}{{ m.content }}{% endif %}{% endfor %}",
        "no token that ends a generation",
    ),
    "a thought in the prompt alone": (OPENS_A_THOUGHT, "training conversations do not begin with"),
    "a space in the prompt alone": (
        USER + ANSWER + PROMPTED.replace("|assistant|>", "|assistant|> "),
        "training conversations do not begin with",
    ),
    "a system turn in the prompt alone": (
        "{% if add_generation_prompt %}Be brief.{% endif %}" + USER + ANSWER + PROMPTED,
        "training conversations do not begin with",
    ),
}
GOOD = {
    "no generation prompt": USER + ANSWER + "{% endif %}{% endfor %}",
    "an empty thought in the answer alone": USER
    + ANSWER.replace("|assistant|>", "|assistant|><think>\n\n</think>\n\n")
    + PROMPTED,
    "refuses system turns": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}" + USER + ANSWER + PROMPTED,
}


@pytest.fixture
def configure(configure: Configure, model: Path) -> Configure:
    return partial(configure, base_model=model, epochs=0.1, rank=2)


@pytest.mark.parametrize(("template", "reason"), BAD.values(), ids=BAD)
def test_a_template_that_asks_in_another_way_than_it_teaches(
    configure: Configure, template: str, reason: str, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match=reason) as refusal:
        train.run(configure())
    assert refusal.value.exit_code == 2 and "--allow-template-mismatch" in refusal.value.hint
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize("template", GOOD.values(), ids=GOOD)
def test_other_templates_are_trained_on(configure: Configure, template: str, model: Path) -> None:
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    record = train.run(configure())
    assert record.template_mismatch == "" and "template" not in " ".join(record.warnings)


def test_a_mismatch_that_was_allowed_is_in_every_report(
    configure: Configure, world_dataset: Path, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").write_text(NO_END, encoding="utf-8")
    adapter = tmp_path / "adapter"
    train.run(configure(adapter, allow_template_mismatch=True))
    record = read_json(adapter / TrainingRecord.FILE, TrainingRecord)
    accepted = "which --allow-template-mismatch accepted"
    assert accepted in record.template_mismatch and record.warnings[0] == record.template_mismatch
    assert accepted in (adapter / "report.html").read_text("utf-8")

    places = {"base_model": str(model), "adapter": str(adapter)}
    checked = quantize_check.run(
        QuantizeCheckConfig(
            dataset=str(world_dataset), output=str(tmp_path / "q"), max_rows=1, **places
        )
    )
    assert accepted in checked.verdict
    evaluation = eval_stage.run(
        EvalConfig(
            questions=str(world_dataset),
            output=str(tmp_path / "e"),
            max_questions=1,
            max_new_tokens=4,
            **places,
        )
    )
    assert [text for text in evaluation.warnings if accepted in text] == [
        f"raft-4bit: {record.template_mismatch}"
    ]
    assert accepted in (tmp_path / "e" / "report.html").read_text("utf-8")
    assert accepted in best([Trial(evaluation, record)])[-1]


# ---- what a template is given -----------------------------------------------------------------

DATED = {
    "a date": ("Today Date: {{ strftime_now('%d %b %Y') }}\n", "Today Date: 03 Feb 2031\n"),
    "a date by default, and its time": (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%-d %B') %}"
        "{%- endif %}{{ date_string }} ({{ strftime_now('%H:%M') }})\n",
        "3 February (04:05)\n",
    ),
}


def on(day: int) -> type[datetime]:
    class Day(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2031, 2, day, 4, 5, tzinfo=tz)

    return Day


@pytest.mark.parametrize(("head", "text"), DATED.values(), ids=DATED)
def test_the_date_of_the_first_day_stays(
    configure: Configure, head: str, text: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    template = model / "chat_template.jinja"
    template.write_text(head + template.read_text("utf-8"), encoding="utf-8")
    monkeypatch.setattr(train, "datetime", on(3))
    train.run(configure("whole", epochs=0.2))

    step, steps_begun = SFTTrainer.training_step, []

    def stop_in_the_first(*args: Any, **named: Any) -> Any:
        steps_begun.append(True)
        if len(steps_begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **named)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(SFTTrainer, "training_step", stop_in_the_first)
        train.run(configure(epochs=0.2))
    monkeypatch.setattr(train, "datetime", on(4))
    train.run(configure(epochs=0.2))
    for name in ("adapter_model.safetensors", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # Whoever loads the adapter's tokenizer asks with that date, as eval and quantize-check do.
    for tokenizer in (
        load_tokenizer(str(model), str(tmp_path / "out")),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    ):
        turn = {"role": "user", "content": "Where?"}
        assert tokenizer.apply_chat_template([turn], tokenize=False).startswith(text)


THINKS = (
    USER
    + ANSWER.replace("|assistant|>", "|assistant|><think>\n\n</think>\n\n")
    + PROMPTED.replace(
        "|assistant|>",
        "|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
    )
)
EXTRA = {
    "a thinking model": (THINKS, {"enable_thinking": False}, "<|assistant|><think>\n\n</think>"),
    "a text": (
        "{{ style }} {{ limits.words if limits }}" + USER + ANSWER + PROMPTED,
        {"style": "\"Be 'brief'\"\n", "limits": {"words": [3, None]}},
        "\"Be 'brief'\"\n [3, None]",
    ),
}


@pytest.mark.parametrize(("template", "extra", "text"), EXTRA.values(), ids=EXTRA)
def test_variables_of_a_template_are_kept_with_the_adapter(
    configure: Configure, template: str, extra: dict[str, Any], text: str, world_dataset: Path,
    model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    record = train.run(configure(adapter, template_extra=json.dumps(extra)))
    assert record.template_mismatch == "" and record.settings["template_extra"] == extra
    train.run(configure(other, allow_template_mismatch=True))
    evaluation = EvalConfig(
        questions=str(world_dataset),
        output=str(tmp_path / "e"),
        max_questions=1,
        adapter=str(adapter),
        adapters={"adapter": str(adapter), "other": str(other)},
        base_model=str(model),
        max_new_tokens=4,
        arms=("base", "raft"),
    )
    prompts: dict[str, set[str]] = {}

    def note(requests: Any, config: EvalConfig) -> Any:
        for request in requests:
            prompts.setdefault(request.arm.name, set()).add(plain.decode(request.ids))
        return answer(requests, config)

    plain, answer = load_tokenizer(str(model)), engines.with_transformers
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engines, "with_transformers", note)
        eval_stage.run(evaluation)
    assert prompts["base"] == prompts["raft"] == prompts["raft:adapter"] != prompts["raft:other"]
    assert all(
        plain.decode(plain(text)["input_ids"]).strip() in prompt for prompt in prompts["raft"]
    )


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ('{"enable_thinkin": false}', "has no such variable"),
        ('{"messages": []}', "'messages' is no variable that can be set"),
        ('{"a b": 1}', "'a b' is no variable that can be set"),
        ("[1]", "valid dictionary"),
    ],
)
def test_variables_that_no_template_has(
    configure: Configure, extra: str, complaint: str, model: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        train.run(configure(template_extra=extra))
