"""The card of an adapter, in the form of the hub: what it was made from, and how to prompt it.

train writes it next to the weights, before anything is evaluated; who publishes an adapter adds the
figures of its evaluation. No path of the machine that trained it is in it.
"""

import json
import shlex
from pathlib import Path
from string import Template

import yaml

from components.core.describe import arms, counted, describe
from components.core.pages import markdown_table, plain
from components.core.raft_form import (
    ANSWER_MARKER,
    QUOTE_BEGIN,
    QUOTE_END,
    REFUSAL,
    instruction,
)
from components.core.records import Evaluation, GenerationReport, TrainingRecord

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
SETTINGS = (
    "method", "rank", "alpha", "dropout", "target_modules", "epochs", "learning_rate",
    "warmup_ratio", "batch_size", "gradient_accumulation", "max_tokens", "load_in_4bit", "dtype",
    "seed",
)  # fmt: skip
"""Those that a card shows; all are in training.json."""
DOCUMENTS = ("Ada Voss was born in Kelden. She paints.", "Bram Kell bakes bread.")
QUESTION = "Where was Ada Voss born?"
ANSWER = (
    f"##Reason: {QUOTE_BEGIN}Ada Voss was born in Kelden.{QUOTE_END} So it was Kelden. "
    f"{ANSWER_MARKER} Kelden"
)


def write_card(training: TrainingRecord, generation: GenerationReport | None) -> str:
    """The card of an adapter.

    Args:
        training: how it was trained.
        generation: how its rows were made, where that is known.
    """
    base, revision = _base(training)
    described = describe(training)
    is_adapter = training.settings.get("method") != "full"
    header: dict[str, object] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation", "license": "other",
        "tags": ["raft", "retrieval-augmented-generation"],
    }  # fmt: skip
    if revision:
        header["base_model"] = base
        header["base_model_relation"] = "adapter" if is_adapter else "finetune"
    named = plain(base)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        header=yaml.safe_dump(header, sort_keys=False).strip(),
        name=f"RAFT {'adapter' if is_adapter else 'tuning'} of {named}",
        what="A LoRA adapter" if is_adapter else "All weights",
        base=f"[{named}](https://huggingface.co/{base}) (commit {revision})" if revision else named,
        facts="\n".join(
            f"| {name} | {plain(text)} |" for name, text in _facts(training, generation)
        ),
        curve=markdown_table(described.table) if described and described.table.rows else "",
        warnings="".join(
            f"> **Warning.** {plain(text)}\n>\n"
            for text in [*training.about_rows, *training.warnings]
        ),
        source=shlex.quote(base),
        question=json.dumps(QUESTION),
        documents=", ".join(json.dumps({"title": "", "text": text}) for text in DOCUMENTS),
        prompt=instruction(DOCUMENTS, QUESTION),
        answer=ANSWER,
        refusals=_refusals(generation),
    )


def with_figures(card: str, evaluation: Evaluation) -> str:
    """A card with the scores of an evaluation at its end."""
    sentences = [
        f"{counted(evaluation.questions, 'question')} of {plain(evaluation.task)}, up to "
        f"{evaluation.max_new_tokens} new tokens, greedy, {plain(evaluation.engine)}.",
        *(f"> {plain(text)}" for text in evaluation.warnings),
    ]
    return (
        "\n\n".join([card.rstrip(), "## Evaluation", *sentences, markdown_table(arms(evaluation))])
        + "\n"
    )


def _base(training: TrainingRecord) -> tuple[str, str]:
    """Hub id and commit of the base; of a folder its name, and ""."""
    origin, _, commit = training.base_fingerprint.partition("@")
    return (origin, commit) if commit else (Path(training.base_model.rstrip("/")).name, "")


def _facts(training: TrainingRecord, generation: GenerationReport | None) -> list[tuple[str, str]]:
    rows = f"{training.rows_train} for training, {training.rows_validation} for validation"
    if generation:
        made = f"from {counted(generation.documents, 'document')} ({generation.chunks_used} chunks)"
        rows = f"{rows}, {made}; {generation.rows_without_oracle} without their oracle"
    if training.rows_excluded:
        rows += f"; {training.rows_excluded} excluded after a review"
    documents = training.documents_shown
    loss = training.validation_loss
    chosen = {name: training.settings[name] for name in SETTINGS if name in training.settings}
    settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
    return [
        ("rows", rows),
        ("documents in a prompt", f"up to {documents}" if documents else "not known"),
        ("teacher", generation.teacher if generation else "not known"),
        ("steps", str(training.steps)),
        ("validation loss", "none" if loss is None else f"{loss:.4f}"),
        ("parameters trained", f"{training.trainable_parameters:,}"),
        ("settings", settings),
    ]


def _refusals(generation: GenerationReport | None) -> str:
    if generation and not generation.rows_without_oracle:
        return "It was not taught to decline: every row had a document with the answer."
    return (
        "Where no document answers the question, it may have been taught to decline: "
        f"`{ANSWER_MARKER} {REFUSAL}`."
    )
