"""The train stage: RAFT rows and a base model in, a LoRA adapter out.

TRL's supervised fine-tuning with the loss on the answer's tokens only. The adapter and the
tokenizer are saved in safetensors; `training.json` records the training. A run that was stopped
resumes from its newest checkpoint when the same command is given again. Several settings are
compared by a study (`pipelines/study.py`), whose trials run side by side.
"""

import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from components.core import card, storage
from components.core.chat import adopt_template, find_mismatch, pin_template
from components.core.decoding import end_tokens
from components.core.errors import ConfigError, ModelError
from components.core.fingerprints import fingerprint
from components.core.ledger import Ledger
from components.core.memory import free_memory
from components.core.model_files import check_template
from components.core.models import (
    choose_dtype,
    context_length,
    load_tokenizer,
    width,
)
from components.core.pages import REPORT, links_to
from components.core.progress import headline, say
from components.core.records import GenerationReport, Run, TrainingRecord, read_json
from components.core.storage import begin_artifact, finish_artifact, provenance, verify, write_json
from components.train import distributed
from components.train.checkpoints import CHECKPOINTS, Checkpoints
from components.train.config import SHAPES_WEIGHTS, TrainConfig
from components.train.recipe import choose_recipe
from components.train.report import write_page
from components.train.rows import Rows, check_rows, files_of, read_rows
from components.train.trainer import train_adapter


def run(config: TrainConfig) -> TrainingRecord:
    """Write the adapter, its tokenizer, card, `training.json`, `report.html` and `ledger.json`.

    Raises:
        DataError: the dataset is missing, damaged or malformed, or no row fits.
        ModelError: the base model cannot be used.
        ConfigError: the checkpoint belongs to other settings.
        Diverged: the training did.
        SystemExit: SIGTERM came; the same command resumes from the checkpoint.
    """
    output = Path(config.output)
    headline("train", f"{config.base_model} on {config.dataset} → {output}")
    _check_trackers(config.report_to)
    verify(Path(config.dataset), "--dataset")
    with Ledger("train", output) as ledger:
        say("  loading the model")
        tokenizer = _load_tokenizer(config)
        context = context_length(config.base_model, tokenizer)
        if context < config.max_tokens:
            say(f"  --max-tokens {config.max_tokens}: {config.base_model} reads {context} at most")
            config = config.model_copy(update={"max_tokens": context})
        mismatch = _find_mismatch(config, tokenizer)
        rows = read_rows(config, tokenizer)
        check_rows(config, rows)
        begin_artifact(output, "train", keep=CHECKPOINTS, settings=provenance(config))
        processes = distributed.processes(config)
        config = choose_recipe(config, len(rows.train), width(config.base_model), processes)
        rows_a_step = config.batch_size * config.gradient_accumulation * processes
        say(f"  learning rate {config.learning_rate:g}, {rows_a_step} rows a step")
        checkpoints = Checkpoints.of(config, _identity(config))
        if config.fresh:
            checkpoints.discard()
        if finished := checkpoints.finished():
            say(f"  already trained: {finished}")
        else:
            finished = _train(config, tokenizer, rows, checkpoints)
        ignored = shutil.ignore_patterns(Run.FILE, storage.MANIFEST)
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        shutil.copytree(finished, output, ignore=ignored, dirs_exist_ok=True)
        record = read_json(finished / TrainingRecord.FILE, TrainingRecord)
        record = record.model_copy(
            update={
                "base_fingerprint": checkpoints.identity["base_model"],
                "template_mismatch": mismatch,
                "warnings": [*filter(None, [mismatch]), *record.warnings],
            }
        )
        ledger.count(tokens_in=record.tokens)
        write_json(output / TrainingRecord.FILE, record)
        links = links_to(output, [("generate", config.dataset)])
        storage.put(write_page(record, links), output / REPORT)
        made_of = GenerationReport.of(Path(config.dataset))
        storage.put(card.write_card(record, made_of), output / card.FILE)
    finish_artifact(output, without=CHECKPOINTS)
    # A copy in a bucket is kept until the adapter has arrived as well.
    if not (checkpoints.remote or checkpoints.shared):
        checkpoints.discard()
    # Kubeflow would make what is left in the folder a part of the artifact.
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    loss = record.validation_loss
    say(
        f"  {record.rows_train} rows, {record.steps} steps, "
        f"{record.tokens_per_second:.0f} tokens/s, {record.trainable_parameters:,} trainable of "
        f"{record.total_parameters:,} parameters"
        + ("" if loss is None else f", validation loss {loss:.4f}")
    )
    return record


def published(config: TrainConfig) -> None:
    """The adapter has arrived where it belongs: remove its checkpoints in the bucket."""
    checkpoints = Checkpoints.of(config)
    if checkpoints.remote and not checkpoints.shared:
        checkpoints.discard()


def _train(config: TrainConfig, tokenizer: Any, rows: Rows, checkpoints: Checkpoints) -> Path:
    """Train to the end, from the newest checkpoint, in several processes where there are GPUs."""
    resumed, processes = checkpoints.newest(), distributed.processes(config)
    if resumed and adopt_template(tokenizer, resumed.folder):
        rows = read_rows(config, tokenizer)  # with the date of the checkpoint
    if processes > 1:
        say(f"  in {processes} processes")
        distributed.train_in_processes(config, tokenizer, rows, checkpoints, resumed, processes)
    else:
        try:
            train_adapter(config, tokenizer, rows, checkpoints, resumed)
        finally:
            free_memory()
    return checkpoints.result


def _load_tokenizer(config: TrainConfig) -> Any:
    """The base's tokenizer, its chat template with the date of now and `--template-extra`."""
    tokenizer = load_tokenizer(config.base_model)
    template = tokenizer.get_chat_template()
    for name in config.template_extra:
        if not re.search(rf"\b{name}\b", template):
            raise ModelError(
                f"--template-extra {name}: the chat template of {config.base_model} has no such "
                "variable",
                hint="Look for its variables in chat_template.jinja, in the model's folder.",
            )
    pin_template(tokenizer, config.template_extra, datetime.now().astimezone())
    check_template(config.base_model, tokenizer)
    return tokenizer


def _find_mismatch(config: TrainConfig, tokenizer: Any) -> str:
    """A sentence for the reports, where the chat template does not suit; "" where it does."""
    reason = find_mismatch(tokenizer, end_tokens(config.base_model, tokenizer))
    if not reason:
        return ""
    if not config.allow_template_mismatch:
        raise ModelError(
            f"--base-model {config.base_model}: its chat template does not suit training: {reason}",
            hint="Correct chat_template.jinja in the model's folder, or the eos_token_id of its "
            "generation_config.json; or set a variable of the template, with --template-extra. "
            "--allow-template-mismatch true trains all the same; the model may then answer much "
            "worse than it could.",
        )
    sentence = (
        f"The base's chat template does not suit training ({reason}), which "
        "--allow-template-mismatch accepted"
    )
    say(f"  {sentence}")
    return sentence


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers before a model is loaded."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            raise ConfigError(
                f"--report-to {name}: not available (allowed here: "
                f"{' | '.join(available) or 'none'})",
                hint=f"pip install {name}; in a cluster, add it to the image of train.",
            )


def _identity(config: TrainConfig) -> dict[str, str]:
    """What the weights depend on, as text: settings, and inputs by content wherever they are."""
    settings = config.model_dump(mode="json", include=SHAPES_WEIGHTS)
    splits = [storage.checksum(path) for path in files_of(Path(config.dataset)).values()]
    excluded = {"exclude": storage.checksum(Path(config.exclude))} if config.exclude else {}
    return (
        {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in settings.items()
        }
        | excluded
        | {
            "dataset": " ".join(splits),
            "base_model": fingerprint(config.base_model),
            "processes": str(distributed.processes(config)),
            "dtype": str(choose_dtype(config.dtype)).removeprefix("torch."),
        }
    )
