"""When a training saves and stops; importing this imports torch."""

import math
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

import tensorboardX  # noqa: F401 (at once, or the first checkpoint would wait for it)
import torch
from transformers import TrainerCallback

from components.core.progress import Task, say, task
from components.train.answer_trainer import AnswerTrainer
from components.train.checkpoints import Checkpoints, Resumed
from components.train.record import remove_extras, write_events
from components.train.signals import STOPPED, Events


class Progress(TrainerCallback):
    """Shows a progress bar, opened on `bar` once the number of steps is known."""

    def __init__(self, bar: ExitStack) -> None:
        self.bar = bar
        self.task: Task | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        running = task("training", state.max_steps, "steps", before=state.global_step)
        self.task = self.bar.enter_context(running)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        for name, label in (("loss", "loss"), ("eval_loss", "validation")):
            if name in logs and self.task:
                self.task.advance(int(name == "loss"), **{label: float(logs[name])})


SAVING_SHARE = 0.05
"""The share of the time that checkpoints may take, but for the first."""


class Checkpointing(TrainerCallback):
    """Makes what the trainer saves a checkpoint; decides when to save, and stops at SIGTERM.

    A checkpoint always holds the state after a whole optimizer step. When SIGTERM comes within one,
    what the step has done so far to the random numbers and the token count is undone before the
    state is saved.
    """

    def __init__(
        self,
        trainer: AnswerTrainer,
        checkpoints: Checkpoints,
        resumed: Resumed | None,
        events: Events,
        minutes: float,
    ) -> None:
        self.trainer, self.checkpoints = trainer, checkpoints
        self.resumed, self.events, self.minutes = resumed, events, minutes
        self.saved = resumed.run.step if resumed else 0
        self.seconds_before = resumed.run.seconds if resumed else 0.0
        self.started = self.saved_at = self.step_began = self.save_began = time.monotonic()
        self.seconds_saving = self.seconds_of_last_save = 0.0
        self.noticed = False
        self.last_step: tuple[Any, ...] | None = None
        self.stopping = False

    def train(self) -> None:
        """Train from the start, or from the checkpoint, to the end.

        Raises:
            Diverged: the loss is no number.
            SystemExit: SIGTERM came; what was trained is in a checkpoint.
        """
        self.trainer.add_callback(self)
        with suppress(_Complete):
            checkpoint = str(self.resumed.folder) if self.resumed else None
            self.trainer.train(resume_from_checkpoint=checkpoint)

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a stop included."""
        return self.seconds_before + time.monotonic() - self.started

    # ---- called by the trainer ---------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> None:
        self.started = self.saved_at = time.monotonic()
        self.trainer.logged = self.started, state.num_input_tokens_seen
        steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        complete = state.global_step >= state.max_steps
        if state.global_step and (state.global_step % steps_per_epoch == 0 or complete):
            self.validate_if_missing()
        if complete:
            raise _Complete

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        cuda = torch.cuda.get_rng_state_all()
        self.last_step = torch.get_rng_state(), cuda, state.num_input_tokens_seen
        every, last = args.save_steps, state.global_step >= state.max_steps
        # Each process has a clock of its own.
        due = self.in_any_process(self.is_due())
        if self.is_stopping():
            control.should_log = control.should_save = True
        elif not last:
            control.should_save = due or (every > 0 and state.global_step % every == 0)
        self.save_began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop_at_sigterm()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop_at_sigterm()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A validation comes before the save of its step, and is no part of the next one's speed.
        self.save_began = time.monotonic()
        self.trainer.logged = self.save_began, state.num_input_tokens_seen

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.add_checkpoint()
        self.saved_at = time.monotonic()
        self.seconds_of_last_save = self.saved_at - self.save_began
        self.seconds_saving += self.seconds_of_last_save

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

    def is_due(self) -> bool:
        """Whether to save after this step: the machine will be taken, or the next step is late."""
        if self.events.preemption.is_set() and not self.noticed:
            self.noticed = True
            say("  notice of a preemption: saving a checkpoint")
            return True
        now = time.monotonic()
        after_next_step = now - self.saved_at + now - self.step_began
        saving = self.seconds_saving + self.seconds_of_last_save
        return 0 < 60 * self.minutes < after_next_step and saving <= SAVING_SHARE * (
            now - self.started
        )

    def is_stopping(self) -> bool:
        """Whether SIGTERM has come to any of the processes."""
        self.stopping = self.stopping or self.in_any_process(self.events.sigterm.is_set())
        return self.stopping

    def in_any_process(self, condition: bool) -> bool:
        """Whether something is so in any of the processes; all get the same answer."""
        accelerator = self.trainer.accelerator
        number = torch.tensor(float(condition), device=accelerator.device)
        return bool(accelerator.reduce(number).item())

    def stop_at_sigterm(self) -> None:
        """Exit where SIGTERM has come, with what was trained in a checkpoint."""
        if not self.is_stopping():
            return
        trainer = self.trainer
        if trainer.state.global_step > self.saved and self.last_step is not None:
            cpu, cuda, trainer.state.num_input_tokens_seen = self.last_step
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(cuda)
            # Private: `control.should_save` would first finish the step, whose many passes may
            # take longer than a spot node has left.
            trainer._save_checkpoint(trainer.model, None)
            self.add_checkpoint()
        if trainer.is_world_process_zero():
            say(f"  SIGTERM: stopped after step {self.saved}; the same command resumes there")
        trainer.accelerator.wait_for_everyone()  # until it is durable
        sys.exit(STOPPED)

    def validate_if_missing(self) -> None:
        """Repeat the validation that a stop has interrupted."""
        state = self.trainer.state
        done = any(
            "eval_loss" in entry and entry["step"] == state.global_step
            for entry in state.log_history
        )
        if self.trainer.eval_dataset is not None and not done:
            self.trainer.evaluate()


class _Complete(Exception):
    """The checkpoint is of the last step: only its validation, at most, was missing."""
