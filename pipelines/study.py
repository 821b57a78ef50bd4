"""The study for Kubeflow: several base models, settings and targets on one dataset, side by side.

One dataset feeds all trials; a trial trains an adapter and evaluates the arms that it names (see
`trials`). Compiled by `raft compile` to pipelines/study.yaml.
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from itertools import product
from typing import Any

from kfp import dsl

from pipelines.component import Arguments, pipeline_arguments, with_signature
from pipelines.form import FIELDS, defaults_of, form_table
from pipelines.light_steps import compare, summary
from pipelines.manifests import Jobs
from pipelines.steps import Steps
from pipelines.trials import FIELDS as TRIAL_FIELDS
from pipelines.trials import POST_MODELS, completed, settings_of

SETTINGS = (
    {"rank": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"rank": 64, "alpha": 64, "target_modules": ["all-linear"]},
)
TRIALS = [
    completed({"base_model": model, **settings})
    for model, settings in product(POST_MODELS[::2], SETTINGS)
]
"""Every model with every setting. Written out, because a loop over a list of trials can collect
its results, and a loop in a loop cannot (kfp 2.17)."""

FORM = {
    name: stages
    for name, stages in FIELDS.items()
    if name not in (*TRIAL_FIELDS, "base_revision", "gate")
}
"""The fields of the dashboard's form, besides the trials."""

TRIALS_PARAMETER = {
    "trials": (
        list,
        TRIALS,
        f"Trials. A JSON list of objects, each with base_model and any of "
        f"{', '.join(sorted(TRIAL_FIELDS.keys() - {'base_model'}))}; the others have "
        "their defaults (--help of raft train and raft eval).",
    )
}

DESCRIPTION = """\
Compare base models, LoRA settings, training targets and rows, and bit widths on one dataset.

Writes RAFT rows once, trains an adapter for every trial, scores the arms of each on the same
questions, and sets all of them side by side. Locations are gs:// URIs."""


def form(jobs: Jobs) -> Arguments:
    """The parameters of a study."""
    return {**pipeline_arguments(FORM, defaults_of(jobs, FORM)), **TRIALS_PARAMETER}


def pipeline(jobs: Jobs, cache_volume: str = "", parallelism: int | None = None) -> Any:
    """The study, with every step on the hardware that its Job asks for.

    Args:
        jobs: Job manifests by stage.
        cache_volume: a volume claim that keeps base models.
        parallelism: how many trials run at once; all, if it is None.
    """
    fields = form(jobs)

    @dsl.pipeline(name="raft-study")
    @with_signature("study", f"{DESCRIPTION}\n\n{form_table(fields)}", fields)
    def study(**parameters: Any) -> None:
        steps = Steps(jobs, FORM, parameters, cache_volume)
        with dsl.ExitHandler(steps.light(summary(state=parameters["state"])), name="run"):
            steps.hardware(trials=parameters["trials"])
            generated = steps.stage("generate", eval_questions=parameters["questions"])
            dataset = generated.outputs["dataset"]
            trials = parameters["trials"]
            with dsl.ParallelFor(trials, name="trials", parallelism=parallelism) as trial:
                fields = {name: getattr(trial, name) for name in TRIAL_FIELDS}
                adapter = steps.stage(
                    "train", dataset=dataset, **settings_of(fields, "train")
                ).outputs["adapter"]
                quantized = steps.stage(
                    "quantize-check",
                    dataset=dataset,
                    base_model=trial.base_model,
                    adapter=adapter,
                )
                evaluated = steps.stage(
                    "eval",
                    dataset=dataset,
                    base_model=trial.base_model,
                    adapter=adapter,
                    quantization=quantized.outputs["quantization"],
                    **settings_of(fields, "eval"),
                )
            steps.light(compare(evaluations=dsl.Collected(evaluated.outputs["evaluation"])))

    return study
