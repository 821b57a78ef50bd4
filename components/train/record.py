"""The record of a training, and the same as TensorBoard events."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.fingerprints import hub_origin
from components.core.gpus import of_device
from components.core.ledger import peak_memory
from components.core.models import choose_dtype
from components.core.records import GenerationReport, LossPoint, TrainingRecord
from components.train.batching import describe_batching
from components.train.config import TrainConfig
from components.train.memory import flops_per_token
from components.train.report import warnings
from components.train.rows import Rows

if TYPE_CHECKING:
    from trl import SFTTrainer


def make_record(
    config: TrainConfig,
    rows: Rows,
    trainer: "SFTTrainer",
    seconds: float,
    parameters: tuple[int, int],
) -> TrainingRecord:
    tokens = int(trainer.state.num_input_tokens_seen)
    curve = read_curve(trainer.state.log_history)
    validated = [point.loss for point in curve if point.split == "validation"]
    return TrainingRecord(
        # As it was given: the stage may read a copy that is gone afterwards.
        base_model=hub_origin(config.base_model).partition("@")[0]
        or config.recorded()["base_model"],
        rows_train=len(rows.train),
        rows_validation=len(rows.validation),
        rows_too_long=len(rows.too_long),
        rows_unfit=len(rows.unfit),
        rows_excluded=rows.excluded,
        documents_shown=rows.documents,
        left_out=[*rows.too_long, *map(str, rows.unfit)],
        steps=trainer.state.global_step,
        epochs=config.epochs,
        trainable_parameters=parameters[0],
        total_parameters=parameters[1],
        tokens=tokens,
        tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
        seconds=round(seconds, 3),
        mfu=_mfu(config, trainer, parameters, tokens, seconds),
        batching=describe_batching(config),
        sharing=describe_sharing(config),
        warnings=warnings(curve),
        about_rows=GenerationReport.warnings_of(Path(config.dataset)),
        peak_memory_bytes=peak_memory(),
        curve=curve,
        validation_loss=validated[-1] if validated else None,
        settings=config.model_dump(mode="json"),
    )


def is_split(config: TrainConfig) -> bool:
    """Whether the processes share one copy of the base model."""
    return config.sharding == "full" and int(os.environ.get("WORLD_SIZE", "1")) > 1


def describe_sharing(config: TrainConfig) -> str:
    """How several processes hold the model; "" for one."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        return ""
    if is_split(config):
        return f"one copy of the model on {number} processes (FSDP)"
    return f"a whole model on each of {number} processes"


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
    parameters: tuple[int, int],
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
    trainable, total = parameters
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

    Rewritten each time, so that a run which was stopped shows as one.
    """
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for entry in history:
            for name, value in entry.items():
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    group = "validation" if name.startswith("eval_") else "train"
                    writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, entry["step"])


def remove_extras(folder: Path) -> None:
    """Remove what the trainer writes next to the weights: a pickle, and a card of placeholders."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
