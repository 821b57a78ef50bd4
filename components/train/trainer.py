"""One setting, trained: the model, TRL's trainer and its settings, from here to the adapter."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import ConfigError, ModelError
from components.core.metrics import score
from components.core.models import choose_dtype, load_model
from components.core.progress import say
from components.core.raft_form import find_answer
from components.core.records import Run, TrainingRecord
from components.core.storage import write_json
from components.train import varlen
from components.train.batching import batching_in_words, flash_attention, packs
from components.train.chat import Examples, count_tokens
from components.train.checkpoints import FINISHED, Checkpoints
from components.train.config import TrainConfig
from components.train.memory import GIB, check_layers, is_split, memory, read_shape
from components.train.record import count_parameters, make_record, reporting, write_events
from components.train.shortage import explained
from components.train.stopping import listening_for_sigterm

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig

    from components.train.answer_trainer import AnswerTrainer


def fit(
    config: TrainConfig,
    tokenizer: Any,
    examples: Examples,
    checkpoints: Checkpoints,
    found: tuple[Path, Run] | None,
    answers: int = 0,
) -> TrainingRecord:
    """Train one setting, or go on from the checkpoint found; keep its adapter as `finished`.

    With `answers`, the tuned model answers so many validation rows, and its F1 is recorded.

    Raises:
        ConfigError: the layers do not exist.
        Diverged: the loss is no number, or stays above its start.
        SystemExit: SIGTERM came; what was trained is in a checkpoint.
    """
    from components.train.answer_trainer import clean
    from components.train.flow import Flow

    first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
    split, said = _splitting(config, tokenizer, examples)
    if first:
        say(f"  {batching_in_words(config)}")
        if said:
            say(f"  {said}")
    # A model whose every weight is trained is read from the checkpoint, share by share.
    source = str(found[0]) if found and split and config.method == "full" else config.base_model
    with explained(config), ExitStack() as held:
        trainer = build(
            config, tokenizer, examples.train, examples.validation, checkpoints.folder,
            split=split, source=source,
        )  # fmt: skip
        # Now: tied weights that are split are two for a while.
        counts = count_parameters(trainer.model)
        stop = held.enter_context(listening_for_sigterm())
        flow = Flow(trainer, config, checkpoints, found, stop)
        if first:
            trainer.add_callback(reporting(held))
        if first and found:
            say(f"  going on after step {found[1].step}, from {found[0].name}")
        flow.run()
        record = make_record(config, examples, trainer, flow.seconds, counts, said)
        if answers:  # of all processes: they hear SIGTERM together, and may share a model
            scored = _answer_f1(config, trainer, tokenizer, examples.validation[:answers], flow)
            record = record.model_copy(update={"answer_f1": scored})

        def write(folder: Path) -> None:
            trainer.save_model(str(folder))
            clean(folder)
            write_events(folder, trainer.state.log_history)
            write_json(folder / TrainingRecord.FILE, record)

        if first:
            checkpoints.finish(write, trainer.state.global_step, flow.seconds)
        elif split:
            trainer.save_model(str(checkpoints.folder / FINISHED))  # gives its shares
        trainer.accelerator.wait_for_everyone()
    for text in record.warnings if first else ():
        say(f"  {text}")
    return record


def build(
    config: TrainConfig,
    tokenizer: Any,
    train: list[Any],
    validation: list[Any],
    folder: Path,
    *,
    split: bool = False,
    source: str = "",
) -> "AnswerTrainer":
    """The trainer of one setting; its checkpoints go to `folder`.

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
        train_dataset=datasets.Dataset.from_list(train),
        eval_dataset=datasets.Dataset.from_list(validation) if validation else None,
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
    """Refuse --target-modules that the model has none of; PEFT minds only where it has none at all.

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


def _splitting(config: TrainConfig, tokenizer: Any, examples: Examples) -> tuple[bool, str]:
    """Whether the processes share one copy of the model, and why, in words; "" for one process.

    Raises:
        ConfigError: it is to be shared, and there is one process.
    """
    import torch

    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        if config.sharding == "full":
            raise ConfigError(
                "--sharding full: there is one process, which has nobody to share with",
                hint="Leave it out, or give --processes 2 or more.",
            )
        return False, ""
    shared, whole = f"one copy of the model on {number} processes", "a whole model on each process"
    if config.sharding != "auto" or not torch.cuda.is_available():
        return (True, f"{shared} (FSDP)") if config.sharding == "full" else (False, whole)
    try:
        shape = read_shape(config.base_model)
    except ModelError as error:
        return False, f"{whole}; whether it fits is not known ({error})"
    longest = max(examples.train, key=lambda row: len(str(row)))
    tokens = count_tokens(tokenizer, longest)
    available = int(torch.cuda.get_device_properties(0).total_memory)
    needed = memory(shape, config, tokens).total
    estimate = f"{needed / GIB:.1f} GiB by estimate, of {available / GIB:.1f}"
    if not is_split(config, shape, tokens, available, number):
        return False, f"{whole} ({estimate})"
    share = memory(shape, config, tokens, number).total
    return True, f"{shared} (FSDP): a whole one takes {estimate}, a share {share / GIB:.1f}"


def _model(config: TrainConfig, source: str, split: bool) -> Any:
    import torch

    options: dict[str, Any] = {}
    if split:
        from transformers.distributed import DistributedConfig

        # FSDP2 (arXiv 2304.11277): each process reads its share of every layer, and no more.
        shares = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
        options |= {"distributed_config": shares, "device_map": None}
    elif torch.cuda.is_available():
        # All of it: "auto" would put what does not fit on the CPU, and say nothing.
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
            hint="Give another number of --processes, --sharding none, or --method lora.",
        )
    for module in model.modules():
        # On some CPUs bitsandbytes rearranges 4-bit weights at the first validation, for a kernel
        # through which no gradient flows: training would go on without learning, and say nothing.
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
        # The mean over rows then does not depend on how they are batched, and settings of a sweep
        # are measured alike.
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # a share of the steps, since it is below 1
        weight_decay=0.0,
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,  # rows that are too long were left out; nothing is cut
        padding_free=packs(config),
        completion_only_loss=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        include_num_input_tokens_seen="non_padding",
        eval_strategy="no",  # when to validate and to save is decided below
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number is to be seen
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


def _answer_f1(
    config: TrainConfig, trainer: "AnswerTrainer", tokenizer: Any, rows: list[Any], flow: Any
) -> float | None:
    """Mean token F1 of the answers that the tuned model writes, greedily, for validation rows."""
    import torch

    if not rows:
        return None
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    written = [tokenizer(row["completion"][0]["content"])["input_ids"] for row in rows]
    room = round(1.5 * max(map(len, written))) + 8
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    scores = []
    try:
        for start in range(0, len(rows), config.batch_size):
            flow.leave_if_asked()
            batch = rows[start : start + config.batch_size]
            prompts = tokenizer.apply_chat_template(
                [row["prompt"] for row in batch],
                add_generation_prompt=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            ).to(model.device)
            with torch.no_grad():
                found = model.generate(**prompts, max_new_tokens=room, do_sample=False)
            texts = tokenizer.batch_decode(
                found[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for row, text in zip(batch, texts, strict=True):
                gold, _ = find_answer(row["completion"][0]["content"])
                scores.append(score(find_answer(text)[0], gold).f1)
    finally:
        tokenizer.padding_side = side
    return sum(scores) / len(scores)
