"""The train stage: RAFT rows and a base model in, a LoRA adapter out.

TRL's supervised fine-tuning with the loss on the answer's tokens only. The adapter and the
tokenizer are saved in safetensors; `training.json` tells how it went.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.ledger import Ledger, peak_memory
from components.models import choose_dtype, load_model, load_tokenizer
from components.progress import Task, headline, say, task
from components.records import LossPoint, TrainingRecord
from components.storage import seal, unseal, verify, write_json
from components.train.chat import examples, read_rows
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
    unseal(output)
    with Ledger("train", output, config.prices) as ledger:
        rows = read_rows(Path(config.dataset) / "train.jsonl")
        validation_rows = read_rows(Path(config.dataset) / "validation.jsonl")
        say("  loading the model")
        tokenizer = load_tokenizer(config.base_model)
        train, train_long = examples(rows, tokenizer, config.max_tokens)
        validation, validation_long = examples(validation_rows, tokenizer, config.max_tokens)
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

        trainer = _trainer(config, tokenizer, train, validation)
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
        record = TrainingRecord(
            base_model=config.base_model,
            rows_train=len(train),
            rows_validation=len(validation),
            rows_too_long=len(too_long),
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
        write_json(output / "training.json", record)
    seal(output)
    said = "" if not validated else f", validation loss {validated[-1]:.4f}"
    say(
        f"  {len(train)} rows, {record.steps} steps, {record.tokens_per_second:.0f} tokens/s, "
        f"{trainable:,} trainable of {total:,} parameters{said}"
    )
    return record


def _trainer(
    config: TrainConfig, tokenizer: Any, train: list[Any], validation: list[Any]
) -> "SFTTrainer":
    import datasets
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    datasets.disable_progress_bars()
    set_seed(config.seed)  # the adapter is initialised before the trainer seeds itself
    trainer = SFTTrainer(
        model=load_model(config.base_model, choose_dtype(config.dtype)),
        args=_sft_config(config, validate=bool(validation)),
        train_dataset=datasets.Dataset.from_list(train),
        eval_dataset=datasets.Dataset.from_list(validation) if validation else None,
        processing_class=tokenizer,
        peft_config=_lora_config(config),
    )
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
    return [
        LossPoint(step=entry["step"], loss=float(entry[name]), split=split)
        for entry in history
        for name, split in (("loss", "train"), ("eval_loss", "validation"))
        if name in entry
    ]


def _clean(output: Path) -> None:
    """Drop what the trainer leaves beside the adapter: a pickle, and a card with placeholders."""
    for name in ("training_args.bin", "README.md"):
        (output / name).unlink(missing_ok=True)
