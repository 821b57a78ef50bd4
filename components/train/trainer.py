"""Train an adapter: the model, TRL's trainer and its settings, from here to the result."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.models import (
    choose_dtype,
    clean_generation_config,
    load_model,
)
from components.core.progress import say
from components.core.records import TrainingRecord
from components.core.storage import write_json
from components.train import varlen
from components.train.batching import describe_batching, flash_attention, packs
from components.train.checkpoints import CHECKPOINTS_KEPT, Checkpoints, Resumed
from components.train.config import TrainConfig
from components.train.layers import is_linear, linear_layers
from components.train.memory import check_layers
from components.train.out_of_memory import explained
from components.train.record import (
    count_parameters,
    is_split,
    make_record,
    remove_extras,
    write_events,
)
from components.train.rows import Rows
from components.train.signals import listening

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig

    from components.train.answer_trainer import AnswerTrainer


def train_adapter(
    config: TrainConfig,
    tokenizer: Any,
    rows: Rows,
    checkpoints: Checkpoints,
    resumed: Resumed | None,
) -> None:
    """Train from the start or from a checkpoint; `checkpoints` keeps the result as finished.

    Raises:
        ConfigError: the layers do not exist.
        Diverged: the loss is no number.
        SystemExit: SIGTERM came; what was trained is in a checkpoint.
    """
    from components.train.callbacks import Checkpointing, Progress

    first = os.environ.get("RANK", "0") == "0"  # of several processes, one logs
    with explained(config), ExitStack() as stack:
        trainer = build(config, tokenizer, rows, checkpoints.folder)
        # Now: tied weights that are split are two for a while.
        parameters = count_parameters(trainer.model)
        events = stack.enter_context(listening())
        if first:
            trainer.add_callback(Progress(stack))
            say(f"  {describe_batching(config)}")
            if resumed:
                say(f"  resuming after step {resumed.run.step}, from {resumed.folder.name}")
        minutes = config.checkpoint_minutes
        trainer.args.eval_on_start &= resumed is None
        checkpointing = Checkpointing(trainer, checkpoints, resumed, events, minutes)
        checkpointing.train()
        seconds = checkpointing.seconds
        record = make_record(config, rows, trainer, seconds, parameters)

        def write(folder: Path) -> None:
            trainer.save_model(str(folder))
            remove_extras(folder)
            write_events(folder, trainer.state.log_history)
            write_json(folder / TrainingRecord.FILE, record)

        if first:
            checkpoints.finish(write, trainer.state.global_step, seconds)
        trainer.accelerator.wait_for_everyone()
    for text in record.warnings if first else ():
        say(f"  {text}")


def build(config: TrainConfig, tokenizer: Any, rows: Rows, folder: Path) -> "AnswerTrainer":
    """The trainer; its checkpoints go to `folder`.

    Raises:
        ConfigError: the model has no such layers.
        ModelError: the base model cannot be used.
    """
    import datasets
    from transformers import PrinterCallback, set_seed

    from components.train.answer_trainer import AnswerTrainer

    datasets.disable_progress_bars()
    set_seed(config.seed)  # the adapter is initialised before the trainer seeds itself
    model = _model(config)
    if config.method == "lora":
        # PEFT refuses only where the model lacks all of them.
        names = dict.fromkeys(path.rpartition(".")[2] for path in linear_layers(model))
        check_layers(config.target_modules, names)
    trainer = AnswerTrainer(
        model=model,
        args=_sft_config(config, folder, validate=bool(rows.validation)),
        train_dataset=datasets.Dataset.from_list(rows.train),
        eval_dataset=datasets.Dataset.from_list(rows.validation) if rows.validation else None,
        processing_class=tokenizer,
        peft_config=_lora_config(config, model) if config.method == "lora" else None,
    )
    if config.load_in_4bit:
        # TRL leaves such an adapter in 16 bits, where Adam's small updates are rounded away.
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    trainer.remove_callback(PrinterCallback)
    return trainer


def _model(config: TrainConfig) -> Any:
    import torch

    options: dict[str, Any] = {}
    if is_split(config):
        from transformers.distributed import DistributedConfig

        # FSDP2 (arXiv 2304.11277): each process reads its share of every layer, and no more.
        shares = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
        options |= {"distributed_config": shares, "device_map": None}
    elif torch.cuda.is_available():
        # All of it: "auto" would silently put what does not fit on the CPU.
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    if packs(config) and (flash := flash_attention(config)):
        varlen.register()
        options["attn_implementation"] = flash
    dtype = choose_dtype(config.dtype)
    if config.method == "full" and config.dtype == "auto":
        # Small updates would be rounded away in 16 bits; the computation is in 16 all the same.
        dtype = torch.float32
    model = load_model(config.base_model, dtype, in_4bit=config.load_in_4bit, **options)
    if config.method == "full":
        clean_generation_config(config.base_model, model)
    for module in model.modules():
        # On some CPUs bitsandbytes rearranges 4-bit weights at the first validation, for a kernel
        # through which no gradient flows: training would silently stop learning.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _sft_config(config: TrainConfig, folder: Path, *, validate: bool) -> "SFTConfig":
    import torch
    from trl import SFTConfig

    dtype = choose_dtype(config.dtype)
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        # The mean over rows then does not depend on how they are batched, so trials compare.
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        # Unlike "cosine", its first step is not at rate 0, which would be one of some dozens.
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=config.warmup_ratio,  # a share of the steps, since it is below 1
        weight_decay=0.0,
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,  # rows that are too long were skipped; none is truncated
        padding_free=packs(config),
        completion_only_loss=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="epoch" if validate else "no",
        eval_on_start=validate,
        save_strategy="no",  # callbacks.py saves: transformers would refuse where a model is split
        save_steps=config.checkpoint_steps,
        save_total_limit=CHECKPOINTS_KEPT,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must show
        report_to=list(config.report_to),
        disable_tqdm=True,
    )


def _lora_config(config: TrainConfig, model: Any) -> "LoraConfig":
    from peft import LoraConfig

    targets = list(config.target_modules)
    layers = linear_layers(model)
    if sum(map(is_linear, model.modules())) > len(layers) + 1:  # others than the head
        targets = [
            path
            for path in layers
            if targets == ["all-linear"] or path.rpartition(".")[2] in targets
        ]
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
