"""The form of a run: its fields, in the order in which a person fills them in, and their table.

A field is a setting of the stages that are named beside it. The dashboard shows the fields in
alphabetical order, with name and type alone, so the pipeline's description carries the table.
"""

import json
from collections.abc import Mapping
from typing import Any

from components.core.errors import ConfigError
from pipelines.component import EMPTY, Arguments, Form
from pipelines.k8s.job import CONTAINER
from pipelines.manifests import Jobs

MODEL_STEPS = ("train", "quantize-check", "eval")

FIELDS: Form = {
    "documents": ("generate",),
    "questions": ("eval",),
    "base_model": (*MODEL_STEPS, "hardware"),
    "base_revision": (*MODEL_STEPS, "hardware"),
    "teacher": ("generate", "hardware"),
    "teacher_endpoint": ("generate",),
    "teacher_model": ("generate", "hardware"),
    "teacher_gpus": ("hardware",),
    "teacher_max_cost": ("generate",),
    "max_chunks": ("generate",),
    "questions_per_chunk": ("generate",),
    "distractors": ("generate",),
    "oracle_probability": ("generate",),
    "target": ("train",),
    "rank": ("train",),
    "alpha": ("train",),
    "learning_rate": ("train",),
    "epochs": ("train",),
    "max_tokens": ("train", "quantize-check"),
    "load_in_4bit": ("train",),
    "arms": ("eval",),
    "max_questions": ("eval",),
    "gate": ("quantize-check",),
    "state": ("generate", *MODEL_STEPS, "hardware"),
    "gpu": ("hardware", "train"),
    "train_gpus": ("hardware",),
    "node_selector": ("hardware",),
    "tolerations": ("hardware",),
    "memory": ("hardware",),
    "huggingface_secret": ("hardware",),
    "teacher_secret": ("hardware",),
    "seed": ("generate", *MODEL_STEPS),
}

DEFAULTS = {"base_model": "meta-llama/Llama-3.1-8B-Instruct"}
"""Of fields that no stage has a default for."""

SECRETS = {"HF_TOKEN": "huggingface_secret", "OPENAI_API_KEY": "teacher_secret"}
"""The fields that name a secret, by the variable that the secret fills."""


def fields_of(form: Form, stage: str) -> list[str]:
    """The fields that are settings of a stage."""
    return [name for name, stages in form.items() if stage in stages]


def defaults_of(jobs: Jobs, form: Form) -> dict[str, Any]:
    """The defaults that Jobs give to fields: by their flags, and by the names of their secrets.

    Raises:
        ConfigError: two Jobs differ about one field.
    """
    defaults: dict[str, Any] = {}
    for stage, job in jobs.items():
        # Of generate's two Jobs, each has its own teacher.
        fields = set(fields_of(form, job.stage)) - ({"teacher"} if stage != job.stage else set())
        values = {name: value for name, value in job.settings().items() if name in fields}
        for index, variable in enumerate(job.container.env):
            if variable.value_from and variable.name in SECRETS:
                place = job.place(*CONTAINER, "env", index)
                values[SECRETS[variable.name]] = variable.value_from.secret_key_ref.name, place
        for name, (value, place) in values.items():
            default = list(value) if isinstance(value, tuple) else value
            if defaults.setdefault(name, default) != default:
                raise ConfigError(
                    f"{place}: {name} is {default!r}, and {defaults[name]!r} in another Job, but "
                    "the pipeline has one field for both",
                    hint="Write the same in both.",
                )
    return defaults


def form_table(arguments: Arguments, notes: Mapping[str, str] | None = None) -> str:
    """The fields of a form in Markdown.

    Args:
        arguments: the pipeline's parameters.
        notes: text behind a field's name, by field.
    """
    rows = [("field", "default", "meaning"), ("---", "---", "---")]
    for name, (_, default, text) in arguments.items():
        _, _, help_text = text.partition(". ")  # without the group
        rows.append((f"`{name}`{(notes or {}).get(name, '')}", _as_typed(default), help_text))
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _as_typed(default: Any) -> str:
    if default is EMPTY:
        return "required"
    if isinstance(default, str):
        return default
    text = json.dumps(default)
    return text if len(text) < 80 else f"{len(default)} of them"
