"""TRL's trainer as this stage uses it; importing this imports torch.

Rows of similar length share a batch, in an order that the seed and the epoch alone decide, so that
a resumed run sees the same batches (see `batching`); logits are computed where there is a label;
checkpoints of the optimizer are not pickles.
"""

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.distributed.utils import is_dtensor
from trl import SFTTrainer

from components.core.chat import IGNORED
from components.core.errors import Diverged
from components.core.ledger import peak_memory
from components.train import optimizer
from components.train.batching import length_grouped, passes


class LengthGrouped(Sampler):
    """Rows in batches of similar length; every epoch has an order of its own."""

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
    logged = (time.monotonic(), 0)  # when the loss was last logged, and the tokens until then

    def get_train_dataloader(self) -> Any:
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        # All processes share a batch, so that none waits for the one with the longest rows.
        together = self.args.train_batch_size * self.args.world_size
        loader: Any = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            sampler=LengthGrouped(lengths, together, self.args.seed),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a batch, whose gradients are added to those that are there.

        Rows that padding would make much longer are computed in a pass of their own, but for
        packed rows, and where other processes would wait.
        """
        if self.padding_free or self.args.world_size > 1 or num_items_in_batch is None:
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

        On a GPU TRL does that with a kernel of its own; on a CPU that takes 4 % longer.
        """
        split = self.is_distributed_loading_by_transformers
        trl_kernel = self.accelerator.device.type == "cuda" and not split
        if trl_kernel or self.aux_loss_enabled or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        # Where any row's next token carries a label; rows of similar length agree on most.
        labelled = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
        # A cache would let packed rows see each other in validation.
        logits = model(**inputs, logits_to_keep=labelled, use_cache=False).logits
        labels = labels[:, labelled + 1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        if num_items_in_batch is None:
            return loss / (labels != IGNORED).sum().clamp(min=1)
        # The count is of all processes' tokens, while the gradients are averaged over them.
        return loss * self.accelerator.num_processes / num_items_in_batch

    def evaluate(self, *args: Any, **named: Any) -> Any:
        # A validation takes nothing from the random numbers of training, so it may happen at
        # another moment in a resumed run.
        with torch.random.fork_rng():
            return super().evaluate(*args, **named)

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        """Add speed and memory.

        Raises:
            Diverged: the loss is no number.
        """
        for name, split in (("loss", "train"), ("eval_loss", "validation")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise Diverged(
                    f"training diverged: the {split} loss is {logs[name]} at step "
                    f"{self.state.global_step}",
                    hint="Lower --learning-rate or raise --warmup-ratio, with --fresh true.",
                )
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
        elif self.args.should_save:
            # The adapter is whole on each process; PEFT would gather the base model as well.
            state = self.model.state_dict()
            state = {name: value for name, value in state.items() if not is_dtensor(value)}
            self.model.save_pretrained(output_dir, state_dict=state)
            self.processing_class.save_pretrained(output_dir)

    def create_model_card(self, *args: Any, **named: Any) -> None:
        """None: TRL would write one, with placeholders, at every checkpoint."""

    # Private hooks, for resuming: nothing public writes or reads an optimizer's state but as a
    # pickle.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            optimizer.save(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer.load(self.optimizer, self.lr_scheduler, Path(checkpoint))
