"""What a training tells: progress, the record of how it went, and TensorBoard events."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.gpus import of_device
from components.core.ledger import peak_memory
from components.core.models import choose_dtype
from components.core.progress import Task, task
from components.core.records import LossPoint, TrainingRecord
from components.train.batching import batching_in_words
from components.train.chat import Examples
from components.train.config import TrainConfig
from components.train.memory import flops_per_token
from components.train.report import warnings

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import SFTTrainer


def reporting(bar: ExitStack) -> "TrainerCallback":
    """A callback that shows a progress bar, opened on `bar` once the number of steps is known."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        progress: Task

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress = bar.enter_context(task("training", state.max_steps, "steps"))
            self.progress.advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.advance()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            for name, shown in (("loss", "loss"), ("eval_loss", "validation")):
                if name in logs and hasattr(self, "progress"):
                    self.progress.advance(0, **{shown: float(logs[name])})

    return Reporting()


def make_record(
    config: TrainConfig,
    examples: Examples,
    trainer: "SFTTrainer",
    seconds: float,
    counts: tuple[int, int],
    sharing: str,
) -> TrainingRecord:
    tokens = int(trainer.state.num_input_tokens_seen)
    curve = read_curve(trainer.state.log_history)
    validated = [point.loss for point in curve if point.split == "validation"]
    return TrainingRecord(
        base_model=config.base_model,
        rows_train=len(examples.train),
        rows_validation=len(examples.validation),
        rows_too_long=len(examples.too_long),
        left_out=examples.too_long,
        steps=trainer.state.global_step,
        epochs=config.epochs,
        trainable_parameters=counts[0],
        total_parameters=counts[1],
        tokens=tokens,
        tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
        seconds=round(seconds, 3),
        mfu=_mfu(config, trainer, counts, tokens, seconds),
        batching=batching_in_words(config),
        sharing=sharing,
        warnings=warnings(curve),
        peak_memory_bytes=peak_memory(),
        curve=curve,
        validation_loss=validated[-1] if validated else None,
        settings=config.model_dump(mode="json"),
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """How many parameters are trained, and of how many."""
    if hasattr(model, "get_nb_trainable_parameters"):  # of PEFT, which counts packed 4-bit right
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    return model.num_parameters(only_trainable=True), model.num_parameters()


def read_curve(history: list[dict[str, Any]]) -> list[LossPoint]:
    """The losses by step."""
    return [
        LossPoint(
            step=entry["step"],
            loss=float(entry[name]),
            split=split,
            learning_rate=entry.get("learning_rate"),
        )
        for entry in history
        for name, split in (("loss", "train"), ("eval_loss", "validation"))
        if name in entry
    ]


def _mfu(
    config: TrainConfig,
    trainer: "SFTTrainer",
    counts: tuple[int, int],
    tokens: int,
    seconds: float,
) -> float | None:
    """Model FLOPs utilisation; None where the device's peak is not known."""
    import torch

    if not torch.cuda.is_available() or choose_dtype(config.dtype) != torch.bfloat16:
        return None
    gpu = of_device(torch.cuda.get_device_name(0))
    rows = len(trainer.train_dataset) * (trainer.state.epoch or 0)  # overfitting may end it early
    if gpu is None or not rows:
        return None
    shape = trainer.model.config.get_text_config()
    trainable, total = counts
    outside = 1 if shape.tie_word_embeddings else 2
    inner = total - outside * shape.vocab_size * shape.hidden_size
    a_token = flops_per_token(
        trainable,
        max(inner - trainable, 0),
        shape.num_hidden_layers,
        shape.hidden_size,
        tokens / rows,
    )
    peak = gpu.bf16_tflops * 1e12 * int(os.environ.get("WORLD_SIZE", "1"))
    return round(a_token * tokens / max(seconds, 1e-9) / peak, 4)


def write_events(folder: Path, history: list[dict[str, Any]]) -> None:
    """The whole history as TensorBoard events, in a folder `tensorboard`.

    Written anew each time, so that a run which was stopped shows as one.
    """
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for entry in history:
            for name, value in entry.items():
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    group = "validation" if name.startswith("eval_") else "train"
                    writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, entry["step"])
