"""Train an adapter: the model, TRL's trainer and its settings, from here to the result."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import ConfigError
from components.core.models import choose_dtype, load_model
from components.core.progress import say
from components.core.records import TrainingRecord
from components.core.storage import write_json
from components.train import varlen
from components.train.batching import describe_batching, flash_attention, packs
from components.train.checkpoints import Checkpoints, Resumed
from components.train.config import TrainConfig
from components.train.memory import check_layers
from components.train.out_of_memory import explained
from components.train.record import count_parameters, make_record, remove_extras, write_events
from components.train.rows import Rows
from components.train.sharding import choose_sharding
from components.train.signals import listening_for_sigterm

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
        Diverged: the loss is no number, or stays above its start.
        SystemExit: SIGTERM came; what was trained is in a checkpoint.
    """
    from components.train.callbacks import Checkpointing, Divergence, Progress

    first = os.environ.get("RANK", "0") == "0"  # of several processes, one logs
    split, sharing = choose_sharding(config, rows)
    if first:
        say(f"  {describe_batching(config)}")
        if sharing:
            say(f"  {sharing}")
    # A model whose every weight is trained is read from the checkpoint, share by share.
    source = str(resumed.folder) if resumed and split and config.method == "full" else ""
    with explained(config), ExitStack() as stack:
        trainer = build(config, tokenizer, rows, checkpoints.folder, split=split, source=source)
        # Now: tied weights that are split are two for a while.
        parameters = count_parameters(trainer.model)
        sigterm = stack.enter_context(listening_for_sigterm())
        trainer.add_callback(Divergence(config))
        if first:
            trainer.add_callback(Progress(stack))
        if first and resumed:
            say(f"  resuming after step {resumed.run.step}, from {resumed.folder.name}")
        checkpointing = Checkpointing(trainer, config, checkpoints, resumed, sigterm)
        checkpointing.train()
        seconds = checkpointing.seconds
        record = make_record(config, rows, trainer, seconds, parameters, sharing)

        def write(folder: Path) -> None:
            trainer.save_model(str(folder))
            remove_extras(folder)
            write_events(folder, trainer.state.log_history)
            write_json(folder / TrainingRecord.FILE, record)

        if first:
            checkpoints.finish(write, trainer.state.global_step, seconds)
        elif split:
            trainer.save_model(str(checkpoints.result))  # this process's share
        trainer.accelerator.wait_for_everyone()
    for text in record.warnings if first else ():
        say(f"  {text}")


def build(
    config: TrainConfig,
    tokenizer: Any,
    rows: Rows,
    folder: Path,
    *,
    split: bool = False,
    source: str = "",
) -> "AnswerTrainer":
    """The trainer; its checkpoints go to `folder`.

    With `split`, all processes share one copy of the model. `source` takes the place of the base
    model.

    Raises:
        ConfigError: the model has no such layers.
        ModelError: the base model cannot be used.
    """
    import datasets
    from transformers import PrinterCallback, set_seed

    from components.train.answer_trainer import AnswerTrainer

    datasets.disable_progress_bars()
    set_seed(config.seed)  # the adapter is initialised before the trainer seeds itself
    model = _model(config, source or config.base_model, split)
    if config.method == "lora":
        _check_targets(config, model)
    trainer = AnswerTrainer(
        model=model,
        args=_sft_config(config, folder),
        train_dataset=datasets.Dataset.from_list(rows.train),
        eval_dataset=datasets.Dataset.from_list(rows.validation) if rows.validation else None,
        processing_class=tokenizer,
        peft_config=_lora_config(config) if config.method == "lora" else None,
    )
    if config.load_in_4bit:
        # TRL leaves such an adapter in 16 bits, where Adam's small updates are rounded away.
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_targets(config: TrainConfig, model: Any) -> None:
    """Refuse --target-modules that the model lacks; PEFT refuses only where it lacks all of them.

    Raises:
        ConfigError: names the model's linear layers.
    """
    from torch.nn import Linear

    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    missing = [
        target
        for target in config.target_modules
        if not any(f".{path}".endswith(f".{target}") for path in modules)
    ]
    linears = (
        path.rpartition(".")[2]
        for path, module in modules.items()
        if isinstance(module, Linear) and module is not head
    )
    if missing:
        check_layers(missing, dict.fromkeys(linears))


def _model(config: TrainConfig, source: str, split: bool) -> Any:
    import torch

    options: dict[str, Any] = {}
    if split:
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
    model = load_model(source, dtype, in_4bit=config.load_in_4bit, **options)
    rows = model.config.get_text_config().vocab_size
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if split and config.method == "full" and tied and rows % int(os.environ["WORLD_SIZE"]):
        # torch's FSDP2 pads uneven shares, once for each of the two, which then drift apart.
        raise ConfigError(
            f"--sharding full: the model's head is its embeddings, whose {rows} rows the "
            "processes cannot share evenly",
            hint="Pass another number of --processes, --sharding none, or --method lora.",
        )
    for module in model.modules():
        # On some CPUs bitsandbytes rearranges 4-bit weights at the first validation, for a kernel
        # through which no gradient flows: training would silently stop learning.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _sft_config(config: TrainConfig, folder: Path) -> "SFTConfig":
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
        lr_scheduler_type="cosine",
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
        eval_strategy="no",  # when to validate and to save: callbacks.py
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must show
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
        use_rslora=config.rslora,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
