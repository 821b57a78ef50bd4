"""The train stage: RAFT rows and a base model in, a LoRA adapter out.

TRL's supervised fine-tuning with the loss on the answer's tokens only. The adapter and the
tokenizer are saved in safetensors; `training.json` tells how it went. A run that was stopped
resumes from its newest checkpoint when the same command is given again. Several settings are
compared by a study (`pipelines/study.py`), whose trials run side by side.
"""

import shutil
from pathlib import Path
from typing import Any

from components.core import storage
from components.core.fingerprints import fingerprint
from components.core.ledger import Ledger
from components.core.models import (
    choose_dtype,
    context_length,
    free_memory,
    load_tokenizer,
)
from components.core.progress import headline, say
from components.core.records import Run, TrainingRecord, read_json
from components.core.storage import begin_artifact, finish_artifact, provenance, verify, write_json
from components.train import distributed
from components.train.checkpoints import CHECKPOINTS, Checkpoints
from components.train.config import SHAPES_WEIGHTS, TrainConfig
from components.train.report import write_page
from components.train.rows import Rows, check_lengths, read_rows
from components.train.trainer import train_adapter


def run(config: TrainConfig) -> TrainingRecord:
    """Write the adapter, its tokenizer, `training.json`, `report.html` and `ledger.json`.

    Raises:
        DataError: the dataset is missing, damaged or malformed, or no row fits.
        ModelError: the base model cannot be used.
        ConfigError: the checkpoint belongs to other settings.
        Diverged: the training did.
        SystemExit: SIGTERM came; the same command resumes from the checkpoint.
    """
    output = Path(config.output)
    headline("train", f"{config.base_model} on {config.dataset} → {output}")
    verify(Path(config.dataset), "--dataset")
    with Ledger("train", output, config.prices) as ledger:
        say("  loading the model")
        tokenizer = load_tokenizer(config.base_model)
        context = context_length(config.base_model, tokenizer)
        if context < config.max_tokens:
            say(f"  --max-tokens {config.max_tokens}: {config.base_model} reads {context} at most")
            config = config.model_copy(update={"max_tokens": context})
        rows = read_rows(config, tokenizer)
        check_lengths(config, rows)
        begin_artifact(output, "train", keep=CHECKPOINTS, settings=provenance(config))
        checkpoints = Checkpoints.of(config)
        if config.fresh:
            checkpoints.discard()
        checkpoints.identity = _identity(config)
        if finished := checkpoints.finished():
            say(f"  already trained: {finished}")
        else:
            finished = _train(config, tokenizer, rows, checkpoints)
        ignored = shutil.ignore_patterns(Run.FILE, storage.MANIFEST)
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        shutil.copytree(finished, output, ignore=ignored, dirs_exist_ok=True)
        record = read_json(finished / TrainingRecord.FILE, TrainingRecord)
        record = record.model_copy(update={"base_fingerprint": checkpoints.identity["base_model"]})
        ledger.count(tokens_in=record.tokens)
        write_json(output / TrainingRecord.FILE, record)
        with storage.atomic_write(output / "report.html") as file:
            file.write(write_page(record))
    finish_artifact(output, without=CHECKPOINTS)
    # A copy in a bucket is kept until the adapter has arrived as well.
    if not checkpoints.remote:
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
    if checkpoints.remote:
        checkpoints.discard()


def _train(config: TrainConfig, tokenizer: Any, rows: Rows, checkpoints: Checkpoints) -> Path:
    """Train to the end, from the newest checkpoint, in several processes where there are GPUs."""
    resumed, processes = checkpoints.newest(), distributed.processes(config)
    if processes > 1:
        say(f"  in {processes} processes")
        distributed.train_in_processes(config, checkpoints, resumed, processes)
    else:
        try:
            train_adapter(config, tokenizer, rows, checkpoints, resumed)
        finally:
            free_memory()
    return checkpoints.result


def _identity(config: TrainConfig) -> dict[str, str]:
    """What the weights depend on, as text: settings, and inputs by content wherever they are."""
    settings = config.model_dump(mode="json", include=SHAPES_WEIGHTS)
    dataset = Path(config.dataset)
    splits = [storage.checksum(dataset / f"{name}.jsonl") for name in ("train", "validation")]
    return {
        name: ",".join(value) if isinstance(value, list) else str(value)
        for name, value in settings.items()
    } | {
        "dataset": " ".join(splits),
        "base_model": fingerprint(config.base_model),
        "processes": str(distributed.processes(config)),
        "dtype": str(choose_dtype(config.dtype)).removeprefix("torch."),
    }
