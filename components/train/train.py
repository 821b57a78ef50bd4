"""The train stage: RAFT rows and a base model in, a LoRA adapter out.

TRL's supervised fine-tuning with the loss on the answer's tokens only. The adapter and the
tokenizer are saved in safetensors; `training.json` tells how it went. A sweep fits one setting
after another and keeps the adapter with the least validation loss. A run that is stopped goes on
from its newest checkpoint when the same command is given again.
"""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.core import storage
from components.core.errors import DataError, Diverged
from components.core.ledger import Ledger
from components.core.models import (
    choose_dtype,
    context_length,
    fingerprint,
    free_memory,
    load_tokenizer,
)
from components.core.progress import headline, say
from components.core.records import Run, SweepTrial, TrainingRecord, read_json
from components.core.storage import begin_artifact, finish_artifact, provenance, verify, write_json
from components.train import distributed
from components.train.chat import Examples, read_examples
from components.train.checkpoints import FINISHED, Checkpoints
from components.train.config import SHAPES_WEIGHTS, TrainConfig
from components.train.report import write_page
from components.train.trainer import fit

CHECKPOINTS = "checkpoints"
ANSWERS_IN_A_SWEEP = 100  # rows that every setting answers, to compare them by F1
_ROOM = "Raise --max-tokens, or generate with smaller chunks or fewer distractors."


def run(config: TrainConfig) -> TrainingRecord:
    """Write the adapter, its tokenizer, `training.json` and `ledger.json`.

    Raises:
        DataError: the dataset is missing, damaged or malformed, or no row fits.
        ModelError: the base model cannot be used.
        ConfigError: a checkpoint is there that belongs to other settings.
        Diverged: the training did, or that of every setting of a sweep.
        SystemExit: SIGTERM came; the same command goes on from the checkpoint.
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
        examples = read_examples(config, tokenizer)
        rows = len(examples.train) + len(examples.validation) + len(examples.too_long)
        _explain_too_long(config, examples.too_long, rows)
        if not examples.train:
            raise DataError(
                f"none of the {rows} rows has at most --max-tokens {config.max_tokens}",
                path=Path(config.dataset) / "train.jsonl",
                hint=_ROOM,
            )

        if len(config.sweep) > 1 and not examples.validation:
            raise DataError(
                "no validation row to compare the settings of --sweep by",
                path=Path(config.dataset) / "validation.jsonl",
                hint="Generate with --validation-fraction above 0, or give one setting.",
            )
        begin_artifact(output, "train", keep=CHECKPOINTS, settings=provenance(config))
        record = _best(config, tokenizer, examples, ledger)
        write_json(output / TrainingRecord.FILE, record)
        with storage.atomic_write(output / "report.html") as file:
            file.write(write_page(record))
    finish_artifact(output, without=CHECKPOINTS)
    for checkpoints in _all_places(config):
        if not checkpoints.remote:
            checkpoints.discard()
    # What is also in a bucket stays there until the adapter has arrived as well; Kubeflow would
    # make what is left in the folder a part of the artifact.
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    loss = record.validation_loss
    say(
        f"  {record.rows_train} rows, {record.steps} steps, "
        f"{record.tokens_per_second:.0f} tokens/s, {record.trainable_parameters:,} trainable of "
        f"{record.total_parameters:,} parameters"
        + ("" if loss is None else f", validation loss {loss:.4f}")
    )
    return record


def _explain_too_long(config: TrainConfig, too_long: list[str], rows: int) -> None:
    if not too_long:
        return
    named = ", ".join(too_long[:5]) + (" …" if len(too_long) > 5 else "")
    said = f"{len(too_long)} rows are over --max-tokens {config.max_tokens} and left out: {named}"
    say(f"  {said}")
    if rows > len(too_long) > config.max_too_long * rows:
        raise DataError(
            f"{said} ({len(too_long) / rows:.0%} of {rows}, more than --max-too-long "
            f"{config.max_too_long})",
            path=config.dataset,
            hint=f"{_ROOM} Or raise --max-too-long, if what is left will do.",
        )


def published(config: TrainConfig) -> None:
    """The adapter has arrived where it belongs: its checkpoints can go."""
    for checkpoints in _all_places(config):
        if checkpoints.remote:
            checkpoints.discard()


def _best(
    config: TrainConfig, tokenizer: Any, examples: Examples, ledger: Ledger
) -> TrainingRecord:
    """Fit every setting of the sweep; leave the adapter of the best."""
    output = Path(config.output)
    places = _places(config)
    if config.fresh:
        for checkpoints in _all_places(config):
            checkpoints.discard()
    inputs = _inputs(config)
    records: list[TrainingRecord | None] = []
    changed = []
    for number, (trial, checkpoints) in enumerate(zip(config.trials(), places, strict=True), 1):
        given = config.sweep[number - 1] if config.sweep else {}
        changed.append(trial.model_dump(mode="json", include=set(given)))
        if config.sweep:
            words = " ".join(f"{name}={value}" for name, value in changed[-1].items())
            say(f"  setting {number} of {len(config.sweep)}: {words or 'the defaults'}")
        checkpoints.identity = inputs | _settings(trial)
        answers = ANSWERS_IN_A_SWEEP if len(config.sweep) > 1 else 0
        try:
            record = _fit(trial, tokenizer, examples, checkpoints, answers)
        except Diverged as error:
            if number == len(places) and not any(records):
                raise
            say(f"  {error}")
            records.append(None)
            continue
        records.append(record)
        ledger.count(tokens_in=record.tokens)
    # The first of equals: the order in which a person lists settings is a preference.
    found = {number: record for number, record in enumerate(records) if record is not None}
    best = min(found, key=lambda number: _worse(config, found[number]))
    aside = shutil.ignore_patterns(Run.FILE, storage.MANIFEST)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    shutil.copytree(places[best].folder / FINISHED, output, ignore=aside, dirs_exist_ok=True)
    if not config.sweep:
        return found[best].model_copy(update={"base_fingerprint": inputs["base_model"]})
    trials = [
        SweepTrial(settings=settings)
        if record is None
        else SweepTrial(
            settings=settings,
            steps=record.steps,
            train_loss=next(p.loss for p in reversed(record.curve) if p.split == "train"),
            validation_loss=record.validation_loss,
            answer_f1=record.answer_f1,
            seconds=record.seconds,
            curve=record.curve,
            chosen=index == best,
        )
        for index, (settings, record) in enumerate(zip(changed, records, strict=True))
    ]
    return found[best].model_copy(
        update={"base_fingerprint": inputs["base_model"], "sweep": trials}
    )


def _fit(
    config: TrainConfig,
    tokenizer: Any,
    examples: Examples,
    checkpoints: Checkpoints,
    answers: int,
) -> TrainingRecord:
    """Train one setting, unless an earlier attempt has; in several processes where asked to."""
    if finished := checkpoints.finished():
        say(f"  trained before: {finished}")
        return read_json(finished / TrainingRecord.FILE, TrainingRecord)
    found, number = checkpoints.newest(), distributed.processes(config)
    if number > 1:
        say(f"  in {number} processes")
        return distributed.fit(config, checkpoints, found, number, answers)
    try:
        return fit(config, tokenizer, examples, checkpoints, found, answers)
    finally:
        free_memory()  # for the next setting


def _worse(config: TrainConfig, record: TrainingRecord) -> tuple[float, ...]:
    """What is least for the best setting; the other measure decides between equals."""
    loss = math.inf if record.validation_loss is None else record.validation_loss
    f1 = -(record.answer_f1 or 0.0)
    return (f1, loss) if config.sweep_by == "f1" else (loss, f1)


# ---- what a checkpoint belongs to ---------------------------------------------------------------


def _all_places(config: TrainConfig) -> list[Checkpoints]:
    """Where the checkpoints of each setting lie, and those of a longer sweep that was stopped."""
    first, *_ = places = _places(config)
    roots = (str(first.folder.parent), first.remote.rpartition("/")[0])
    there = {name for root in roots if root for name in storage.folders(root)}
    others = {int(name) for name in there if name.isdecimal()} - set(range(len(places) + 1))
    return places + _places(config, sorted(others))


def _places(config: TrainConfig, numbers: Iterable[int] | None = None) -> list[Checkpoints]:
    """Where the checkpoints of each setting lie, or of the settings with these numbers."""
    local, remote = Path(config.output) / CHECKPOINTS, config.checkpoints
    if not remote.startswith(storage.SCHEME):
        local, remote = Path(remote or local), ""
    return [
        Checkpoints(
            local / str(number), f"{remote}/{number}" if remote else "", config.checkpoints_kept
        )
        for number in (range(1, len(config.trials()) + 1) if numbers is None else numbers)
    ]


def _settings(trial: TrainConfig) -> dict[str, str]:
    """The settings on which the weights depend, as text."""
    found = trial.model_dump(mode="json", include=SHAPES_WEIGHTS)
    return {
        name: ",".join(value) if isinstance(value, list) else str(value)
        for name, value in found.items()
    }


def _inputs(config: TrainConfig) -> dict[str, str]:
    """What is trained on, by content: where it lies may differ from one attempt to the next."""
    dataset = Path(config.dataset)
    splits = [storage.checksum(dataset / f"{name}.jsonl") for name in ("train", "validation")]
    return {
        "dataset": " ".join(splits),
        "base_model": fingerprint(config.base_model),
        "processes": str(distributed.processes(config)),
        "dtype": str(choose_dtype(config.dtype)).removeprefix("torch."),
    }
