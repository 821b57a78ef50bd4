"""What a training is set to where its settings are left at 0: by its rows and its model.

The learning rate is the optimum for LoRA that Thinking Machines Lab fitted for Llama models of
1B to 70B ("LoRA Without Regret", 2025; the documentation of Tinker gives the formula), 10 times
that of full fine-tuning. docs/training.md has the table that it was held against.
"""

import math

from components.train.config import TrainConfig

LORA_RATE, FULL_RATE = 5e-4, 5e-5
"""At a hidden size of 2,000."""
WIDTH_EXPONENT = 0.781
ROWS_A_STEP = 16
STEPS = 48
"""Fewer rows share a step where there would be fewer steps than this."""


def choose_recipe(config: TrainConfig, rows: int, hidden: int, processes: int) -> TrainConfig:
    """The settings with every 0 replaced.

    Args:
        config: the settings.
        rows: that are trained on.
        hidden: width of the model.
        processes: how many train, each with its batch.
    """
    chosen: dict[str, float] = {}
    if not config.learning_rate:
        rate = FULL_RATE if config.method == "full" else LORA_RATE
        chosen["learning_rate"] = float(f"{rate * (2000 / hidden) ** WIDTH_EXPONENT:.2g}")
    if not config.gradient_accumulation:
        a_step = min(max(round(rows * config.epochs / STEPS), 1), ROWS_A_STEP) / processes
        passes = math.ceil(a_step / config.batch_size)
        chosen["gradient_accumulation"] = passes
        chosen["batch_size"] = max(round(a_step / passes), 1)
    return config.model_copy(update=chosen)
