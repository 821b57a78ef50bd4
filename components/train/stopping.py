"""Stop a training at a safe point when SIGTERM comes, and go on from there in the same way."""

import math
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from components.progress import say
from components.records import Run
from components.train.checkpoints import Checkpoints
from components.train.config import TrainConfig
from components.train.record import write_events
from components.train.report import above_start, overfits

if TYPE_CHECKING:
    from trl import SFTTrainer

STOPPED = 128 + signal.SIGTERM  # 143, the code of a process that SIGTERM has ended


@contextmanager
def listening_for_sigterm() -> Iterator[threading.Event]:
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


def resume(config: TrainConfig, trainer: "SFTTrainer", folder: Path) -> None:
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


def make_flow(
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
                write_events(folder, trainer.state.log_history)
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
