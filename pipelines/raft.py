"""The RAFT pipeline for Kubeflow: wiring only.

What a step runs is declared in its component, what it needs of the cluster in its Job manifest.
Compiled by `raft compile` to pipelines/raft.yaml, which is what one uploads.
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from typing import Any

from kfp import dsl

from pipelines.component import Arguments, pipeline_arguments, with_signature
from pipelines.form import DEFAULTS, FIELDS, defaults_of, form_table
from pipelines.light_steps import summary
from pipelines.manifests import Jobs
from pipelines.steps import Steps

FORM = FIELDS

DESCRIPTION = """\
Adapt a chat model to your documents with retrieval augmented fine-tuning.

Writes questions and reasoned answers about the documents, fine-tunes the base model on them with
LoRA, measures what 4-bit weights save and cost, and scores base and tuned model. Locations
are gs:// URIs."""


def form(jobs: Jobs) -> Arguments:
    """The parameters of a run."""
    return pipeline_arguments(FORM, DEFAULTS | defaults_of(jobs, FORM))


def pipeline(jobs: Jobs, cache_volume: str = "") -> Any:
    """The pipeline, with every step on the hardware that its Job asks for.

    Args:
        jobs: Job manifests by stage.
        cache_volume: a volume claim that keeps base models.
    """
    fields = form(jobs)

    @dsl.pipeline(name="raft")
    @with_signature("raft", f"{DESCRIPTION}\n\n{form_table(fields)}", fields)
    def raft(**parameters: Any) -> None:
        steps = Steps(jobs, FORM, parameters, cache_volume)
        with dsl.ExitHandler(steps.light(summary(state=parameters["state"])), name="run"):
            steps.hardware()
            generated = steps.stage("generate", eval_questions=parameters["questions"])
            dataset = generated.outputs["dataset"]
            adapter = steps.stage("train", dataset=dataset).outputs["adapter"]
            quantized = steps.stage("quantize-check", dataset=dataset, adapter=adapter)
            with dsl.If(quantized.outputs["decision"] == "go", name="gate"):
                steps.stage(
                    "eval",
                    dataset=dataset,
                    adapter=adapter,
                    quantization=quantized.outputs["quantization"],
                )

    return raft
