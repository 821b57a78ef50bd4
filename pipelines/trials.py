"""Trials of a study: their fields, and those of the post and the paper.

A field is a setting of train or eval; what a trial leaves out has the setting's default.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from pipelines.stages import config_class

FIELDS = {
    "base_model": ("train", "base_model"),
    "rank": ("train", "rank"),
    "alpha": ("train", "alpha"),
    "learning_rate": ("train", "learning_rate"),
    "target_modules": ("train", "target_modules"),
    "target": ("train", "target"),
    "keep_oracle": ("train", "keep_oracle"),
    "max_distractors": ("train", "max_distractors"),
    "arms": ("eval", "arms"),
    "tested_distractors": ("eval", "distractors"),
}
"""By the name in a trial: the stage, and its setting."""

Trial = dict[str, Any]


def completed(trial: Mapping[str, Any]) -> Trial:
    """A trial with all fields, as the pipeline's loop needs it."""
    return {
        name: list(value) if isinstance(value, tuple | list) else value
        for name, (stage, setting) in FIELDS.items()
        for value in [trial.get(name, config_class(stage).default(setting))]
    }


def settings_of(trial: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings of a stage that a trial has, by their names there."""
    return {
        setting: trial[name]
        for name, (owner, setting) in FIELDS.items()
        if owner == stage and name in trial
    }


# ---- the post and the paper --------------------------------------------------------------------

POST_MODELS = (
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-3.1-8B-Instruct",
)
PAPER_MODEL = "meta-llama/Llama-2-7b-chat-hf"
PAPER_DISTRACTORS = 4
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""P, the share of the rows that show their oracle: figure 5 of the paper."""


def post_trials(*models: str) -> list[Trial]:
    """Each model (by default the post's) with rank 16 and 64, on some layers and on all of them."""
    layers = (["q_proj", "v_proj"], ["all-linear"])
    return [
        completed({"base_model": model, "rank": rank, "alpha": rank, "target_modules": modules})
        for model, rank, modules in product(models or POST_MODELS, (16, 64), layers)
    ]


def paper_trials(model: str = PAPER_MODEL, distractors: int = PAPER_DISTRACTORS) -> list[Trial]:
    """The methods of tables 1 and 2, then P (figure 5) and the number of distractors (figure 6).

    RAFT itself is trained with P = 80 %, and tested with 0 to `distractors` beside the oracle.
    """
    raft: Trial = {"base_model": model, "keep_oracle": 0.8, "max_distractors": distractors}
    answer = {**raft, "target": "answer"}
    methods = ["base-closed", "base-rag", "base", "base-examples", "raft"]
    tested = [distractors, *range(distractors)]
    trials = [
        {**raft, "arms": methods, "tested_distractors": [distractors]},
        {**answer, "arms": ["raft-no-reasoning"], "tested_distractors": [distractors]},
        {**answer, "keep_oracle": 0.0, "max_distractors": 0, "arms": ["dsf", "dsf-rag"],
         "tested_distractors": [distractors]},
    ]  # fmt: skip
    trials += [
        {**raft, "keep_oracle": share, "arms": ["raft"], "tested_distractors": [distractors]}
        for share in SHARES
        if share != raft["keep_oracle"]
    ]
    # The first trial's adapter once more: to train it costs less than to ask all of its arms again.
    trials += [
        {**raft, "max_distractors": count, "arms": ["raft"], "tested_distractors": tested}
        for count in range(distractors + 1)
    ]
    return [completed(trial) for trial in trials]
