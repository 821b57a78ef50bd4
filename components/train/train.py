"""The train stage: RAFT rows and a base model in, a LoRA adapter out.

TRL's supervised fine-tuning with the loss on the answer's tokens only. The adapter and the
tokenizer are saved in safetensors; `training.json` tells how it went. A sweep fits one setting
after another and keeps the adapter with the least validation loss.
"""

import gc
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.errors import ConfigError, DataError
from components.ledger import Ledger, peak_memory, stopwatch
from components.models import choose_dtype, load_model, load_tokenizer
from components.progress import Task, headline, say, task
from components.records import LossPoint, SweepTrial, TrainingRecord
from components.storage import seal, unseal, verify, write_json
from components.train.chat import examples as encode
from components.train.chat import read_rows
from components.train.config import TrainConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer


def run(config: TrainConfig) -> TrainingRecord:
    """Write the adapter, its tokenizer, `training.json` and `ledger.json`.

    Raises:
        DataError: the dataset is missing, damaged or malformed, or no row fits.
        ModelError: the base model cannot be used.
    """
    output = Path(config.output)
    headline("train", f"{config.base_model} on {config.dataset} → {output}")
    verify(Path(config.dataset), "--dataset")
    with Ledger("train", output, config.prices) as ledger:
        rows = read_rows(Path(config.dataset) / "train.jsonl")
        validation_rows = read_rows(Path(config.dataset) / "validation.jsonl")
        say("  loading the model")
        tokenizer = load_tokenizer(config.base_model)
        train, train_long = encode(rows, tokenizer, config.max_tokens)
        validation, validation_long = encode(validation_rows, tokenizer, config.max_tokens)
        too_long = train_long + validation_long
        if too_long:
            say(
                f"  {len(too_long)} rows are over --max-tokens {config.max_tokens} and left out: "
                + ", ".join(too_long[:5])
                + (" …" if len(too_long) > 5 else "")
            )
        if not train:
            raise DataError(
                f"none of the {len(rows)} rows has at most --max-tokens {config.max_tokens}",
                path=Path(config.dataset) / "train.jsonl",
                hint="Raise --max-tokens, or generate with smaller chunks or fewer distractors.",
            )

        if len(config.sweep) > 1 and not validation:
            raise DataError(
                "no validation row to compare the settings of --sweep by",
                path=Path(config.dataset) / "validation.jsonl",
                hint="Generate with --validation-fraction above 0, or give one setting.",
            )
        unseal(output)
        record = _best(config, tokenizer, Examples(train, validation, len(too_long)), ledger)
        write_json(output / "training.json", record)
    seal(output)
    loss = record.validation_loss
    said = "" if loss is None else f", validation loss {loss:.4f}"
    say(
        f"  {len(train)} rows, {record.steps} steps, {record.tokens_per_second:.0f} tokens/s, "
        f"{record.trainable_parameters:,} trainable of {record.total_parameters:,} parameters{said}"
    )
    return record


class Examples(NamedTuple):
    """What every setting is fitted on: tokenized rows, and how many were too long."""

    train: list[Any]
    validation: list[Any]
    too_long: int


def _best(
    config: TrainConfig, tokenizer: Any, examples: Examples, ledger: Ledger
) -> TrainingRecord:
    """Fit every setting of the sweep; leave the adapter with the least validation loss."""
    if not config.sweep:
        return _fit(config, tokenizer, examples, ledger)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sweep-", dir=output) as scratch:
        records, changed, seconds = [], [], []
        for number, (trial, given) in enumerate(
            zip(config.trials(), config.sweep, strict=True), start=1
        ):
            changed.append(trial.model_dump(mode="json", include=set(given)))
            words = " ".join(f"{name}={value}" for name, value in changed[-1].items())
            say(f"  setting {number} of {len(config.sweep)}: {words or 'the defaults'}")
            folder = trial.model_copy(update={"output": str(Path(scratch) / str(number))})
            with stopwatch() as watch:
                records.append(_fit(folder, tokenizer, examples, ledger))
            seconds += watch
            _free()
        # The first of equals: the order in which a person lists settings is a preference.
        losses = [_or_infinite(record.validation_loss) for record in records]
        best = losses.index(min(losses))
        for path in (Path(scratch) / str(best + 1)).iterdir():
            path.replace(output / path.name)
    trials = [
        SweepTrial(
            settings=settings,
            steps=record.steps,
            train_loss=next(p.loss for p in reversed(record.curve) if p.split == "train"),
            validation_loss=record.validation_loss,
            seconds=round(took, 3),
            chosen=index == best,
        )
        for index, (settings, record, took) in enumerate(
            zip(changed, records, seconds, strict=True)
        )
    ]
    return records[best].model_copy(
        update={
            "sweep": trials,
            "settings": records[best].settings | {"output": config.output},
        }
    )


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None or math.isnan(loss) else loss


def _fit(config: TrainConfig, tokenizer: Any, examples: Examples, ledger: Ledger) -> TrainingRecord:
    """Train one setting and save its adapter in the output folder."""
    output = Path(config.output)
    trainer = _trainer(config, tokenizer, examples.train, examples.validation)
    with ExitStack() as bar:
        trainer.add_callback(_reporting(bar))
        result = trainer.train()
    trainer.save_model(str(output))
    _clean(output)

    tokens = int(trainer.state.num_input_tokens_seen)
    ledger.count(tokens_in=tokens)
    curve = _curve(trainer.state.log_history)
    validated = [point.loss for point in curve if point.split == "validation"]
    trainable, total = trainer.model.get_nb_trainable_parameters()
    return TrainingRecord(
        base_model=config.base_model,
        rows_train=len(examples.train),
        rows_validation=len(examples.validation),
        rows_too_long=examples.too_long,
        steps=trainer.state.global_step,
        epochs=config.epochs,
        trainable_parameters=trainable,
        total_parameters=total,
        tokens=tokens,
        tokens_per_second=round(tokens / result.metrics["train_runtime"], 1),
        peak_memory_bytes=peak_memory(),
        curve=curve,
        validation_loss=validated[-1] if validated else None,
        settings=config.model_dump(mode="json"),
    )


def _trainer(
    config: TrainConfig, tokenizer: Any, train: list[Any], validation: list[Any]
) -> "SFTTrainer":
    import datasets
    from peft import NoMatchingPeftModuleError
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    datasets.disable_progress_bars()
    set_seed(config.seed)  # the adapter is initialised before the trainer seeds itself
    try:
        trainer = SFTTrainer(
            model=load_model(config.base_model, choose_dtype(config.dtype)),
            args=_sft_config(config, validate=bool(validation)),
            train_dataset=datasets.Dataset.from_list(train),
            eval_dataset=datasets.Dataset.from_list(validation) if validation else None,
            processing_class=tokenizer,
            peft_config=_lora_config(config),
        )
    except NoMatchingPeftModuleError as error:
        raise ConfigError(
            f"--target-modules {','.join(config.target_modules)}: {error}",
            hint="Use all-linear, or names of the model's layers such as q_proj,v_proj.",
        ) from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _sft_config(config: TrainConfig, *, validate: bool) -> "SFTConfig":
    import torch
    from trl import SFTConfig

    dtype = choose_dtype(config.dtype)
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=config.output,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # a share of the steps, since it is below 1
        weight_decay=0.0,
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,  # rows that are too long were left out; nothing is cut
        completion_only_loss=True,
        # Rows of like length share a batch, so less of it is padding.
        train_sampling_strategy="group_by_length",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="epoch" if validate else "no",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def _lora_config(config: TrainConfig) -> "LoraConfig":
    from peft import LoraConfig

    targets = list(config.target_modules)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def _reporting(bar: ExitStack) -> "TrainerCallback":
    """A callback that shows a progress bar, opened on `bar` once the number of steps is known."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        progress: Task

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress = bar.enter_context(task("training", state.max_steps, "steps"))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.advance()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            for name, shown in (("loss", "loss"), ("eval_loss", "validation")):
                if name in logs:
                    self.progress.advance(0, **{shown: float(logs[name])})

    return Reporting()


def _curve(history: list[dict[str, Any]]) -> list[LossPoint]:
    """The losses by step.

    Raises:
        ConfigError: training diverged; the adapter is worth nothing.
    """
    curve = []
    for entry in history:
        for name, split in (("loss", "train"), ("eval_loss", "validation")):
            if name in entry:
                loss = float(entry[name])
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"training diverged: the {split} loss is {loss} at step {entry['step']}",
                        hint="Lower --learning-rate, or raise --warmup-ratio.",
                    )
                curve.append(LossPoint(step=entry["step"], loss=loss, split=split))
    return curve


def _clean(output: Path) -> None:
    """Drop what the trainer leaves beside the adapter: a pickle, and a card with placeholders."""
    for name in ("training_args.bin", "README.md"):
        (output / name).unlink(missing_ok=True)


def _free() -> None:
    """Give the GPU memory of one setting back before the next one loads the model."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
