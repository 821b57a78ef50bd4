"""The study for Kubeflow: several base models and LoRA settings on one dataset, side by side.

One dataset feeds all trials; a trial trains an adapter and evaluates it in all bit widths that
its arms name. Compiled by `raft compile` to pipelines/study.yaml.
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from itertools import product
from typing import Any

from kfp import dsl

from components.train.config import TrainConfig
from pipelines.component import pipeline_arguments, with_signature
from pipelines.light_steps import compare, summary
from pipelines.manifests import Jobs
from pipelines.steps import Steps

BASE_MODELS = ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
SETTINGS = (
    {"rank": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"rank": 64, "alpha": 64, "target_modules": ["all-linear"]},
)
TRIALS = [
    {"base_model": model, "learning_rate": TrainConfig.default("learning_rate"), **settings}
    for model, settings in product(BASE_MODELS, SETTINGS)
]
"""Every model with every setting. Written out, because a loop over a list of trials can collect
its results, and a loop in a loop cannot (kfp 2.17)."""

FORM = {
    "generate": (
        "documents", "teacher", "teacher_endpoint", "teacher_model", "max_chunks", "seed",
    ),
    "train": ("epochs", "seed"),
    "quantize-check": ("seed",),
    "eval": ("questions", "arms", "max_questions", "seed"),
    "hardware": ("train_gpus", "memory", "node_selector", "tolerations"),
}  # fmt: skip
"""The settings that are fields of the dashboard's form, by stage."""

TRIALS_PARAMETER = {
    "trials": (
        list,
        TRIALS,
        f"Trials. A JSON list of objects, each with {', '.join(sorted(TRIALS[0]))}.",
    )
}

DESCRIPTION = """\
Compare base models, LoRA settings and bit widths on one dataset.

Writes RAFT rows once, trains an adapter for every trial, scores each with its base model in 16 and
in 4 bits on the same questions, and sets all of them side by side."""


def pipeline(jobs: Jobs) -> Any:
    """The study, with every step on the hardware that its Job asks for."""

    @dsl.pipeline(name="raft-study")
    @with_signature("study", DESCRIPTION, {**pipeline_arguments(FORM, {}), **TRIALS_PARAMETER})
    def study(**parameters: Any) -> None:
        steps = Steps(jobs, FORM, parameters)
        with dsl.ExitHandler(steps.light(summary()), name="run"):
            hardware = steps.hardware()
            dataset = steps.stage("generate").outputs["dataset"]
            with dsl.ParallelFor(parameters["trials"], name="trials") as trial:
                adapter = steps.stage(
                    "train",
                    steps.placement(hardware, "train"),
                    dataset=dataset,
                    **{name: getattr(trial, name) for name in TRIALS[0]},
                ).outputs["adapter"]
                quantized = steps.stage(
                    "quantize-check",
                    steps.placement(hardware, "quantize-check"),
                    dataset=dataset,
                    base_model=trial.base_model,
                    adapter=adapter,
                )
                evaluated = steps.stage(
                    "eval",
                    steps.placement(hardware, "eval"),
                    base_model=trial.base_model,
                    adapter=adapter,
                    quantization=quantized.outputs["quantization"],
                )
            steps.light(compare(evaluations=dsl.Collected(evaluated.outputs["evaluation"])))

    return study
