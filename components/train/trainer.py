"""TRL's trainer as this stage uses it: the only module here that knows torch and its friends.

What is ours: rows of like length share a batch, in an order that the seed and the epoch alone
decide, so that a resumed run sees the same batches (see `batching`); logits where there is a label;
and a training that stops at a safe point (see `stopping`).
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError, ModelError
from components.ledger import peak_memory
from components.metrics import score
from components.models import choose_dtype, load_model
from components.progress import say
from components.raft_form import find_answer
from components.records import Run, TrainingRecord
from components.storage import write_json
from components.train import optimizer
from components.train.batching import (
    batching_in_words,
    flash_attention,
    length_grouped,
    packs,
    passes,
)
from components.train.chat import Examples, count_tokens
from components.train.checkpoints import FINISHED, Checkpoints
from components.train.config import TrainConfig
from components.train.memory import GIB, is_split, memory, read_shape
from components.train.record import count_parameters, make_record, reporting, write_events
from components.train.shortage import explained
from components.train.stopping import listening_for_sigterm, make_flow, resume

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

IGNORED = -100  # the label of a token that carries no loss


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
        ConfigError: the layers do not exist, or training diverged.
        SystemExit: SIGTERM came; what was trained is in a checkpoint.
    """
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
        flow = make_flow(trainer, config, checkpoints, found, stop)
        trainer.add_callback(flow)
        if first:
            trainer.add_callback(reporting(held))
        if found is None:
            trainer.train()
        else:
            folder, run = found
            if first:
                say(f"  going on after step {run.step}, from {folder.name}")
            resume(config, trainer, folder)
        flow.complete()
        record = make_record(config, examples, trainer, flow.seconds, counts, said)
        if answers:  # of all processes: they hear SIGTERM together, and may share a model
            scored = _answer_f1(config, trainer, tokenizer, examples.validation[:answers], flow)
            record = record.model_copy(update={"answer_f1": scored})

        def write(folder: Path) -> None:
            trainer.save_model(str(folder))
            _clean(folder)
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
) -> "SFTTrainer":
    """The trainer of one setting; its checkpoints go to `folder`.

    With `split`, all processes share one copy of the model. `source` takes the place of the base
    model.

    Raises:
        ConfigError: the model has no such layers.
        ModelError: the base model cannot be used.
    """
    import datasets
    from peft import NoMatchingPeftModuleError
    from transformers import PrinterCallback, set_seed

    datasets.disable_progress_bars()
    set_seed(config.seed)  # the adapter is initialised before the trainer seeds itself
    try:
        trainer = _trainer_class()(
            model=_model(config, source or config.base_model, split),
            args=_sft_config(config, folder),
            train_dataset=datasets.Dataset.from_list(train),
            eval_dataset=datasets.Dataset.from_list(validation) if validation else None,
            processing_class=tokenizer,
            peft_config=_lora_config(config) if config.method == "lora" else None,
        )
    except NoMatchingPeftModuleError as error:
        raise ConfigError(
            f"--target-modules {','.join(config.target_modules)}: {error}",
            hint="Use all-linear, or names of the model's layers such as q_proj,v_proj.",
        ) from None
    trainer.remove_callback(PrinterCallback)
    return trainer


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
    elif torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        options["device_map"] = {"": int(os.environ["LOCAL_RANK"])}
    if packs(config) and (flash := flash_attention(config)):
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


def _trainer_class() -> type["SFTTrainer"]:
    import torch
    from peft import PeftModel
    from torch.utils.data import Sampler
    from transformers import Trainer
    from transformers.distributed.utils import gather_full_state_dict, is_dtensor
    from trl import SFTTrainer

    class LengthGrouped(Sampler):
        """Rows in batches of like length; every epoch has an order of its own."""

        def __init__(self, lengths: list[int], batch_size: int, seed: int, in_passes: bool) -> None:
            self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
            self.in_passes = in_passes
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            shuffle = random.Random(f"{self.seed} {self.epoch}")
            return iter(
                length_grouped(self.lengths, self.batch_size, shuffle, in_passes=self.in_passes)
            )

    class AnswerTrainer(SFTTrainer):
        logged = (time.monotonic(), 0)  # when the loss was last told, and the tokens until then

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            lengths = [len(ids) for ids in rows["input_ids"]]
            # All processes share a batch, so that none waits for the one with the longest rows.
            together = self.args.train_batch_size * self.args.world_size
            return LengthGrouped(lengths, together, self.args.seed, self.in_passes)

        @property
        def in_passes(self) -> bool:
            """Whether a batch may take several passes: padded rows, and no other process waits."""
            return not self.padding_free and self.args.world_size == 1

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> Any:
            """Loss of a batch, whose gradients are added to those that are there.

            Rows that padding would make much longer are computed in a pass of their own.
            """
            if not self.in_passes or num_items_in_batch is None:
                return super().training_step(model, inputs, num_items_in_batch)
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            total: Any = 0
            for rows in passes(lengths):
                longest = max(lengths[row] for row in rows)
                part = {name: values[rows, :longest] for name, values in inputs.items()}
                total += super().training_step(model, part, num_items_in_batch)
            return total

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """Mean loss per labelled token, from the logits of labelled positions only.

            On a GPU TRL does that with a kernel of its own; elsewhere it computes the logits of
            every position, which at a large vocabulary is most of the memory.
            """
            split = self.is_distributed_loading_by_transformers
            theirs = self.accelerator.device.type == "cuda" and not split
            if theirs or self.aux_loss_enabled or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            inputs = dict(inputs)
            labels = inputs.pop("labels")
            # Where any row's next token carries a label; rows of like length agree on most.
            kept = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
            # A cache would let packed rows see each other in validation.
            logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits
            labels = labels[:, kept + 1]
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1),
                labels.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            if num_items_in_batch is None:
                return loss / (labels != IGNORED).sum().clamp(min=1)
            # The count is of all processes' tokens, while the gradients are averaged over them.
            processes = self.accelerator.num_processes
            scale = processes if self.args.average_tokens_across_devices else 1
            return loss * scale / num_items_in_batch

        def evaluate(self, *args: Any, **named: Any) -> Any:
            # A validation takes nothing from the random numbers of training, so it may happen at
            # another moment in a resumed run.
            with torch.random.fork_rng():
                return super().evaluate(*args, **named)

        def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
            if "loss" in logs:
                now, tokens = time.monotonic(), self.state.num_input_tokens_seen
                then, before = self.logged
                logs["tokens_per_second"] = round((tokens - before) / max(now - then, 1e-9), 1)
                logs["peak_memory_gib"] = round(peak_memory() / 2**30, 3)
                self.logged = now, tokens
            super().log(logs, *args, **named)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            if not self.is_distributed_loading_by_transformers:
                super().save_model(output_dir, _internal_call)
            elif not self.shares_base:
                # All give their shares. A head that is the embeddings would be written twice.
                state = gather_full_state_dict(self.model)
                for name in self.model.all_tied_weights_keys:
                    state.pop(name, None)
                shares = self.model.config.__dict__.pop("distributed_config")
                if self.args.should_save:
                    self._save(output_dir, state_dict=state)
                self.model.config.distributed_config = shares
            elif self.args.should_save:
                # The adapter is whole on each process; PEFT would gather the base model as well.
                state = self.model.state_dict()
                own = {name: value for name, value in state.items() if not is_dtensor(value)}
                self._save(output_dir, state_dict=own)

        @property
        def shares_base(self) -> bool:
            """Whether processes share the base model, under an adapter of which each has all."""
            split = bool(self.is_distributed_loading_by_transformers)
            return split and isinstance(self.model, PeftModel)

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            write = self.args.should_save
            optimizer.save(self.optimizer, self.lr_scheduler, Path(output_dir), write=write)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                optimizer.load(self.optimizer, self.lr_scheduler, Path(checkpoint))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            # A model that is split and trained whole has been read from there already.
            if self.shares_base or not self.is_distributed_loading_by_transformers:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            Trainer._save_checkpoint(self, model, trial)  # without TRL's model card
            _clean(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    return AnswerTrainer


def _sft_config(config: TrainConfig, folder: Path) -> "SFTConfig":
    import torch
    from trl import SFTConfig

    dtype = choose_dtype(config.dtype)
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
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
    config: TrainConfig, trainer: "SFTTrainer", tokenizer: Any, rows: list[Any], flow: Any
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


def _clean(folder: Path) -> None:
    """Drop what the trainer leaves beside the weights: a pickle, and a card with placeholders."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
