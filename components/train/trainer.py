"""TRL's trainer as this stage uses it: the only module here that knows torch and its friends.

What is ours: rows of like length share a batch, in an order that the seed and the pass alone
decide, so that a resumed run sees the same batches; and a training that SIGTERM stops at the next
safe point with a checkpoint of the last whole optimizer step.
"""

import errno
import gc
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.answers import find_answer
from components.errors import ConfigError, ModelError, OutOfMemory, StorageError
from components.ledger import peak_memory
from components.metrics import score
from components.models import choose_dtype, load_model
from components.progress import Task, say, task
from components.records import LossPoint, TrainingRecord
from components.storage import write_json
from components.train import optimizer
from components.train.batching import length_grouped
from components.train.chat import Examples, count_tokens
from components.train.checkpoints import FINISHED, Checkpoints, Run
from components.train.config import TrainConfig, profiles
from components.train.memory import GIB, is_split, memory, read_shape
from components.train.report import above_start, overfits, warnings

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

IGNORED = -100  # the label of a token that carries no loss
STOPPED = 128 + signal.SIGTERM  # 143, the code of a process that SIGTERM has ended


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
        say(f"  {_batching_in_words(config)}")
        if said:
            say(f"  {said}")
    # A model whose every weight is trained is read from the checkpoint, share by share.
    source = str(found[0]) if found and split and config.method == "full" else config.base_model
    with _explained(config), ExitStack() as held:
        trainer = build(
            config, tokenizer, examples.train, examples.validation, checkpoints.folder,
            split=split, source=source,
        )  # fmt: skip
        counts = _parameters(trainer.model)  # now: tied weights that are split are two for a while
        stop = held.enter_context(_listening_for_sigterm())
        flow = _flow(trainer, config, checkpoints, found, stop)
        trainer.add_callback(flow)
        if first:
            trainer.add_callback(_reporting(held))
        if found is None:
            trainer.train()
        else:
            folder, run = found
            if first:
                say(f"  going on after step {run.step}, from {folder.name}")
            _resume(config, trainer, folder)
        flow.complete()
        record = _record(config, examples, trainer, flow.seconds, counts, said)
        if answers:  # of all processes: they hear SIGTERM together, and may share a model
            scored = _answer_f1(config, trainer, tokenizer, examples.validation[:answers], flow)
            record = record.model_copy(update={"answer_f1": scored})

        def write(folder: Path) -> None:
            trainer.save_model(str(folder))
            _clean(folder)
            _write_events(folder, trainer.state.log_history)
            write_json(folder / "training.json", record)

        if first:
            checkpoints.finish(write, trainer.state.global_step, flow.seconds)
        elif split:
            trainer.save_model(str(checkpoints.folder / FINISHED))  # gives its shares
        trainer.accelerator.wait_for_everyone()
    for text in record.warnings if first else ():
        say(f"  {text}")
    return record


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory or of disk into errors that say what to do."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if _disk_is_full(text):
            raise _full_disk(config, text) from None
        no_memory = ("out of memory", "can't allocate memory", "not enough memory")
        if isinstance(error, RuntimeError) and not any(word in text.lower() for word in no_memory):
            raise
        raise OutOfMemory(
            f"out of memory with {config.batch_size} rows of up to {config.max_tokens} tokens a "
            f"pass ({text.splitlines()[0][:200] if text else 'no more is known'})",
            hint=_less_memory(config),
        ) from None
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(str(error)) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        raise _full_disk(config, str(error)) from None


def _disk_is_full(text: str) -> bool:
    return any(
        words in text.lower()
        for words in ("no space left on device", "disk quota", "failed writing file")
    )


def _full_disk(config: TrainConfig, text: str) -> StorageError:
    return StorageError(
        f"--output {config.output}: the disk is full ({text.splitlines()[0][:200]})",
        hint="Make room, or lower --checkpoints-kept; the same command goes on from the newest "
        "whole checkpoint.",
    )


def _less_memory(config: TrainConfig) -> str:
    """What to lower, the cheapest first; what has been done already is left out."""
    half = config.batch_size // 2
    steps = []
    if not config.gradient_checkpointing:
        steps.append("--gradient-checkpointing true")
    if half:
        twice = config.gradient_accumulation * config.batch_size // half
        steps.append(f"--batch-size {half} --gradient-accumulation {twice} (the same result)")
    if config.method == "full":
        steps.append("--method lora")
    elif not config.load_in_4bit:
        steps.append("--load-in-4bit true")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not config.load_in_4bit:
        steps.append("--sharding full")
    steps.append("a lower --max-tokens or --rank")
    return (
        f"In this order: {'; '.join(steps)}. Add --fresh true: checkpoints of other settings are "
        "not resumed. `raft plan` says what fits a GPU."
    )


def free() -> None:
    """Give the GPU memory of one setting back before the next one loads the model."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def packs(config: TrainConfig) -> bool:
    """Whether the rows of a batch follow each other without padding.

    Only flash attention keeps such rows apart without computing what lies between them; with any
    other, one long row costs more than short ones side by side.
    """
    if config.batching != "auto":
        return config.batching == "packed"
    return _flash_attention(config) is not None


def _batching_in_words(config: TrainConfig) -> str:
    rows = f"{config.batch_size} rows a batch"
    if packs(config):
        return f"{rows}, one after another without padding ({_flash_attention(config) or 'sdpa'})"
    return f"{rows}, of like length, padded side by side (no flash attention here)"


def _flash_attention(config: TrainConfig) -> str | None:
    """The name of the flash attention that is installed, for 16-bit weights on a GPU."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if not torch.cuda.is_available() or choose_dtype(config.dtype) == torch.float32:
        return None
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


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
    if packs(config) and (flash := _flash_attention(config)):
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
        """Rows in batches of like length; every pass has an order of its own."""

        def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
            self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            shuffle = random.Random(f"{self.seed} {self.epoch}")
            return iter(length_grouped(self.lengths, self.batch_size, shuffle))

    class AnswerTrainer(SFTTrainer):
        logged = (time.monotonic(), 0)  # when the loss was last told, and the tokens until then

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            lengths = [len(ids) for ids in rows["input_ids"]]
            # All processes share a batch, so that none waits for the one with the longest rows.
            together = self.args.train_batch_size * self.args.world_size
            return LengthGrouped(lengths, together, self.args.seed)

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


# ---- stopping and going on ----------------------------------------------------------------------


@contextmanager
def _listening_for_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python hears signals in the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop.is_set():
        say("  SIGTERM: stopped when this setting was trained; the same command goes on there")
        sys.exit(STOPPED)


def _resume(config: TrainConfig, trainer: "SFTTrainer", folder: Path) -> None:
    """Train on from a checkpoint; one of the end only needs to be loaded."""
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    if not _is_over(config, state):
        with suppress(_Over):
            trainer.train(resume_from_checkpoint=str(folder))
    else:
        trainer._load_from_checkpoint(str(folder))
        trainer.state = state


class _Over(Exception):
    """The validation that a stop had cut off said that the step before was the last."""


def _is_over(config: TrainConfig, state: Any) -> bool:
    """Whether a training has come to its end: its last step, or overfitting where that ends it."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return state.global_step >= state.max_steps or (config.stop_on_overfitting and overfits(losses))


def _flow(
    trainer: "SFTTrainer",
    config: TrainConfig,
    checkpoints: Checkpoints,
    found: tuple[Path, Run] | None,
    stop: threading.Event,
) -> Any:
    """The callback that decides when to validate, to save and to stop."""
    import torch
    from transformers import TrainerCallback

    class Flow(TrainerCallback):
        """Validates after each pass, saves every so many steps and when SIGTERM has come.

        A checkpoint always holds the state after a whole optimizer step. When SIGTERM comes
        within one, what the step has done so far to the random numbers and the token count is
        taken back before the state is saved.
        """

        def __init__(self) -> None:
            self.saved = found[1].step if found else 0
            self.before = found[1].seconds if found else 0.0
            self.started = time.monotonic()
            self.last_step: tuple[Any, ...] | None = None
            self.steps_per_epoch = 1
            self.stopping = False

        @property
        def seconds(self) -> float:
            return self.before + time.monotonic() - self.started

        def on_train_begin(
            self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
        ) -> None:
            self.started = time.monotonic()
            trainer.logged = self.started, state.num_input_tokens_seen
            batches = len(train_dataloader)
            self.steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
            if state.global_step % self.steps_per_epoch == 0:
                self.validate_if_missing()
                if _is_over(config, state):
                    raise _Over

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last_step = _random_state(), state.num_input_tokens_seen
            last = state.global_step >= state.max_steps
            if self.asked():
                control.should_log = control.should_save = True
                return
            if trainer.eval_dataset is not None:
                control.should_evaluate = last or state.global_step % self.steps_per_epoch == 0
            every = config.checkpoint_steps
            control.should_save = every > 0 and not last and state.global_step % every == 0

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step < state.max_steps and _is_over(config, state):
                control.should_training_stop = True
                if trainer.is_world_process_zero():
                    say(f"  overfitting: stopped after step {state.global_step}")

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            if "loss" in logs and config.stop_on_divergence:
                self.stop_if_diverged(state)

        def stop_if_diverged(self, state: Any) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            late = 3 * state.global_step >= state.max_steps
            if not math.isfinite(losses[-1]):
                reason = f"the train loss is {losses[-1]}"
            elif late and above_start(losses):
                reason = f"the train loss is {losses[-1]:.3f}, and it began at {losses[0]:.3f}"
            else:
                return
            raise ConfigError(
                f"training diverged: {reason} at step {state.global_step}",
                hint="Lower --learning-rate, or raise --warmup-ratio, and add --fresh true; "
                "--stop-on-divergence false would have gone on.",
            )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.keep()

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.leave_if_asked()

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.leave_if_asked()

        def keep(self) -> None:
            step = trainer.state.global_step
            folder = checkpoints.folder / f"checkpoint-{step}"
            trainer.accelerator.wait_for_everyone()  # each process writes its random state
            if trainer.is_world_process_zero():
                _write_events(folder, trainer.state.log_history)
                checkpoints.add(folder, step, self.seconds, wait=self.stopping)
            self.saved = step
            self.leave_if_asked()

        def asked(self) -> bool:
            """Whether SIGTERM has come to any of the processes; all get the same answer."""
            if not self.stopping:
                heard = torch.tensor(float(stop.is_set()), device=trainer.accelerator.device)
                self.stopping = bool(trainer.accelerator.reduce(heard).item())
            return self.stopping

        def leave_if_asked(self) -> None:
            if not self.asked():
                return
            if trainer.state.global_step > self.saved and self.last_step is not None:
                random_state, trainer.state.num_input_tokens_seen = self.last_step
                _set_random_state(random_state)
                trainer._save_checkpoint(trainer.model, None)
                self.keep()
            if trainer.is_world_process_zero():
                say(f"  SIGTERM: stopped after step {self.saved}; the same command goes on there")
            trainer.accelerator.wait_for_everyone()  # until it is durable
            sys.exit(STOPPED)

        def complete(self) -> None:
            """After the last step: what a stop has left out."""
            self.validate_if_missing()

        def validate_if_missing(self) -> None:
            step = trainer.state.global_step
            done = any(
                "eval_loss" in entry and entry["step"] == step
                for entry in trainer.state.log_history
            )
            if step and trainer.eval_dataset is not None and not done:
                trainer.evaluate()

    def _random_state() -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return random.getstate(), torch.get_rng_state(), cuda

    def _set_random_state(state: tuple[Any, ...]) -> None:
        random.setstate(state[0])
        torch.set_rng_state(state[1])
        if state[2]:
            torch.cuda.set_rng_state_all(state[2])

    return Flow()


# ---- what is told -------------------------------------------------------------------------------


def _reporting(bar: ExitStack) -> "TrainerCallback":
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


def _record(
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
        mfu=_mfu(config, trainer.model, counts, tokens, seconds, len(examples.train)),
        batching=_batching_in_words(config),
        sharing=sharing,
        warnings=warnings(curve),
        peak_memory_bytes=peak_memory(),
        curve=curve,
        validation_loss=validated[-1] if validated else None,
        settings=config.model_dump(mode="json"),
    )


def _parameters(model: Any) -> tuple[int, int]:
    """How many parameters are trained, and of how many."""
    if hasattr(model, "get_nb_trainable_parameters"):  # of PEFT, which counts packed 4-bit right
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    return model.num_parameters(only_trainable=True), model.num_parameters()


def read_curve(history: list[dict[str, Any]]) -> list[LossPoint]:
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
                rate = entry.get("learning_rate")
                curve.append(
                    LossPoint(step=entry["step"], loss=loss, split=split, learning_rate=rate)
                )
    return curve


def _mfu(
    config: TrainConfig, model: Any, counts: tuple[int, int], tokens: int, seconds: float, rows: int
) -> float | None:
    """Model FLOPs utilisation; None where the device's peak is not known.

    FLOPs a token as in PaLM (arXiv 2204.02311, appendix B): 6 for every trained parameter and 4
    for every frozen one, whose weights need no gradient, and 12 · layers · width · tokens of the
    row for attention. Embedding and output head are not counted (the head is computed for a few
    tokens only), nor is what gradient checkpointing computes twice.
    """
    import torch

    if not torch.cuda.is_available() or choose_dtype(config.dtype) != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(0)
    peaks = [entry["bfloat16_tflops"] for entry in profiles().values() if entry["gpu"] == name]
    if not peaks or not rows:
        return None
    shape = model.config.get_text_config()
    trainable, total = counts
    outside = 1 if shape.tie_word_embeddings else 2
    inner = total - outside * shape.vocab_size * shape.hidden_size
    length = tokens / (rows * config.epochs)
    a_token: float = 6 * trainable + 4 * max(inner - trainable, 0)
    a_token += 12 * shape.num_hidden_layers * shape.hidden_size * length
    peak = float(peaks[0]) * 1e12 * int(os.environ.get("WORLD_SIZE", "1"))
    return round(float(a_token * tokens / max(seconds, 1e-9) / peak), 4)


def _write_events(folder: Path, history: list[dict[str, Any]]) -> None:
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


def _clean(folder: Path) -> None:
    """Drop what the trainer leaves beside the weights: a pickle, and a card with placeholders."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
