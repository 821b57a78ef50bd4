"""When a training validates, saves and stops; importing this imports torch."""

import math
import random
import sys
import threading
import time
from contextlib import ExitStack, suppress
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from components.core.errors import Diverged
from components.core.progress import Task, say, task
from components.train.answer_trainer import AnswerTrainer
from components.train.checkpoints import Checkpoints, Resumed
from components.train.config import TrainConfig
from components.train.record import remove_extras, write_events
from components.train.report import above_start, overfits
from components.train.signals import STOPPED


class Progress(TrainerCallback):
    """Shows a progress bar, opened on `bar` once the number of steps is known."""

    def __init__(self, bar: ExitStack) -> None:
        self.bar = bar
        self.task: Task | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.task = self.bar.enter_context(task("training", state.max_steps, "steps"))
        self.task.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        for name, label in (("loss", "loss"), ("eval_loss", "validation")):
            if name in logs and self.task:
                self.task.advance(int(name == "loss"), **{label: float(logs[name])})


class Divergence(TrainerCallback):
    """Ends a training whose loss is not a number, or stays above its start."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        for name, split in (("loss", "train"), ("eval_loss", "validation")):
            if name in logs and not math.isfinite(logs[name]):
                raise _diverged(f"the {split} loss is {logs[name]} at step {state.global_step}")
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        late = 3 * state.global_step >= state.max_steps
        if "loss" in logs and self.config.stop_on_divergence and late and above_start(losses):
            raise _diverged(
                f"after {state.global_step} steps the train loss is {fmean(losses[-5:]):.3f} (mean "
                f"of five), and it began at {losses[0]:.3f}",
                ", or continue despite it with --stop-on-divergence false",
            )


class Checkpointing(TrainerCallback):
    """Validates after each epoch, saves every so many steps and at SIGTERM.

    A checkpoint always holds the state after a whole optimizer step. When SIGTERM comes within one,
    what the step has done so far to the random numbers and the token count is undone before the
    state is saved.
    """

    def __init__(
        self,
        trainer: AnswerTrainer,
        config: TrainConfig,
        checkpoints: Checkpoints,
        resumed: Resumed | None,
        sigterm: threading.Event,
    ) -> None:
        self.trainer, self.config, self.checkpoints = trainer, config, checkpoints
        self.resumed, self.sigterm = resumed, sigterm
        self.saved = resumed.run.step if resumed else 0
        self.seconds_before = resumed.run.seconds if resumed else 0.0
        self.started = time.monotonic()
        self.last_step: tuple[Any, ...] | None = None
        self.steps_per_epoch = 1
        self.stopping = False

    def train(self) -> None:
        """Train from the start, or from the checkpoint, to the end.

        Raises:
            Diverged: the loss is no number, or stays above its start.
            SystemExit: SIGTERM came; what was trained is in a checkpoint.
        """
        self.trainer.add_callback(self)
        with suppress(_Complete):
            checkpoint = str(self.resumed.folder) if self.resumed else None
            self.trainer.train(resume_from_checkpoint=checkpoint)
        self.validate_if_missing()

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a stop included."""
        return self.seconds_before + time.monotonic() - self.started

    def is_complete(self, state: Any) -> bool:
        """Whether training has reached its last step, or overfitting where that ends it."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        overfitted = self.config.stop_on_overfitting and overfits(losses)
        return state.global_step >= state.max_steps or overfitted

    # ---- called by the trainer ---------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> None:
        self.started = time.monotonic()
        self.trainer.logged = self.started, state.num_input_tokens_seen
        batches = len(train_dataloader)
        self.steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
        if state.global_step % self.steps_per_epoch == 0 or self.is_complete(state):
            self.validate_if_missing()
            if self.is_complete(state):
                raise _Complete

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last_step = _random_state(), state.num_input_tokens_seen
        last = state.global_step >= state.max_steps
        if self.is_stopping():
            control.should_log = control.should_save = True
            return
        if self.trainer.eval_dataset is not None:
            control.should_evaluate = last or state.global_step % self.steps_per_epoch == 0
        every = self.config.checkpoint_steps
        control.should_save = every > 0 and not last and state.global_step % every == 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop_at_sigterm()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop_at_sigterm()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < state.max_steps and self.is_complete(state):
            control.should_training_stop = True
            if self.trainer.is_world_process_zero():
                say(f"  overfitting: stopped after step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.add_checkpoint()

    # ---- saving and stopping -----------------------------------------------------------------

    def add_checkpoint(self) -> None:
        """Make what the trainer has just written a checkpoint to resume from."""
        step = self.trainer.state.global_step
        folder = self.checkpoints.folder / f"checkpoint-{step}"
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random state
        if self.trainer.is_world_process_zero():
            remove_extras(folder)
            write_events(folder, self.trainer.state.log_history)
            self.checkpoints.add(folder, step, self.seconds, wait=self.stopping)
        self.saved = step
        self.stop_at_sigterm()

    def is_stopping(self) -> bool:
        """Whether SIGTERM has come to any of the processes; all get the same answer."""
        if not self.stopping:
            accelerator = self.trainer.accelerator
            received = torch.tensor(float(self.sigterm.is_set()), device=accelerator.device)
            self.stopping = bool(accelerator.reduce(received).item())
        return self.stopping

    def stop_at_sigterm(self) -> None:
        """Exit where SIGTERM has come, with what was trained in a checkpoint."""
        if not self.is_stopping():
            return
        trainer = self.trainer
        if trainer.state.global_step > self.saved and self.last_step is not None:
            random_state, trainer.state.num_input_tokens_seen = self.last_step
            _set_random_state(random_state)
            # Private: `control.should_save` would first finish the step, whose many passes may
            # take longer than a spot node has left.
            trainer._save_checkpoint(trainer.model, None)
            self.add_checkpoint()
        if trainer.is_world_process_zero():
            outlook = self.checkpoints.outlook(self.saved)
            say(f"  SIGTERM: stopped after step {self.saved}; {outlook}")
        trainer.accelerator.wait_for_everyone()  # until it is durable
        sys.exit(STOPPED)

    def validate_if_missing(self) -> None:
        """Repeat the validation that a stop has interrupted."""
        step = self.trainer.state.global_step
        done = any(
            "eval_loss" in entry and entry["step"] == step
            for entry in self.trainer.state.log_history
        )
        if step and self.trainer.eval_dataset is not None and not done:
            self.trainer.evaluate()


class _Complete(Exception):
    """The checkpoint is of the last step: only its validation, at most, was missing."""


def _diverged(reason: str, otherwise: str = "") -> Diverged:
    return Diverged(
        f"training diverged: {reason}",
        hint=f"Lower --learning-rate or raise --warmup-ratio, with --fresh true{otherwise}.",
    )


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    if state[2]:
        torch.cuda.set_rng_state_all(state[2])
