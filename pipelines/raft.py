"""The RAFT pipeline for Kubeflow: wiring only.

What a step runs is declared in its component, what it needs of the cluster in its Job manifest.
Compiled by `raft compile` to pipelines/raft.yaml, which is what one uploads.
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from typing import Any

from kfp import dsl

from components.core.hardware import Placement
from pipelines.component import EMPTY, pipeline_arguments, with_signature
from pipelines.light_steps import merge, summary
from pipelines.manifests import Jobs
from pipelines.steps import Steps

FORM = {
    "generate": (
        "documents", "teacher", "teacher_endpoint", "teacher_model", "chunk_tokens", "max_chunks",
        "questions_per_chunk", "distractors", "oracle_probability", "seed",
    ),
    "train": ("base_model", "rank", "alpha", "learning_rate", "epochs", "seed"),
    "quantize-check": ("base_model", "max_memory_ratio", "gate", "seed"),
    "eval": ("questions", "base_model", "max_questions", "seed"),
    "hardware": ("train_gpus", "memory", "node_selector", "tolerations"),
}  # fmt: skip
"""The settings that are fields of the dashboard's form, by stage."""

DEFAULTS = {"base_model": "meta-llama/Llama-3.1-8B-Instruct"}

DESCRIPTION = """\
Adapt a chat model to your documents with retrieval augmented fine-tuning.

Writes questions and reasoned answers about the documents, fine-tunes the base model on them with
LoRA, measures what 4-bit weights save and cost, and scores base and tuned model."""


def pipeline(jobs: Jobs, shards: int = 1) -> Any:
    """The pipeline, with every step on the hardware that its Job asks for.

    Args:
        jobs: Job manifests by stage.
        shards: how many pods write rows side by side.
    """
    gated_eval = _gated_eval(jobs)

    @dsl.pipeline(name="raft")
    @with_signature("raft", DESCRIPTION, pipeline_arguments(FORM, DEFAULTS))
    def raft(**parameters: Any) -> None:
        steps = Steps(jobs, FORM, parameters)
        with dsl.ExitHandler(steps.light(summary()), name="run"):
            hardware = steps.hardware()
            dataset = _rows(steps, shards).outputs["dataset"]
            adapter = steps.stage(
                "train", steps.placement(hardware, "train"), dataset=dataset
            ).outputs["adapter"]
            quantized = steps.stage(
                "quantize-check",
                steps.placement(hardware, "quantize-check"),
                dataset=dataset,
                adapter=adapter,
            )
            gated_eval(
                decision=quantized.outputs["decision"],
                adapter=adapter,
                quantization=quantized.outputs["quantization"],
                **{name: parameters[name] for name in FORM["eval"]},
                **steps.placement(hardware, "eval"),
            ).set_caching_options(False)

    return raft


def _rows(steps: Steps, shards: int) -> dsl.PipelineTask:
    """The task whose output is the whole dataset."""
    if shards == 1:
        return steps.stage("generate")
    names = [f"{number}/{shards}" for number in range(1, shards + 1)]
    with dsl.ParallelFor(names, name="shards") as shard:
        part = steps.stage("generate", shard=shard)
    return steps.light(merge(shards=dsl.Collected(part.outputs["dataset"])))


def _gated_eval(jobs: Jobs) -> Any:
    """Evaluation behind the gate of quantize-check.

    A pipeline of its own, because kfp.local cannot see another step's output in a condition
    beside it; as a parameter it can, and a cluster does the same with both.
    """
    form = {"eval": FORM["eval"]}
    settings = pipeline_arguments(form, {})
    kinds = {"node_selector": dict, "tolerations": list}
    placement = {name: (kinds.get(name, str), EMPTY, "") for name in Placement.model_fields}

    @dsl.pipeline(name="gated-eval")
    @with_signature(
        "gated_eval",
        "Evaluate, unless quantize-check decided to stop.",
        {
            "decision": (str, EMPTY, "go or stop."),
            **{name: (kind, EMPTY, text) for name, (kind, _, text) in settings.items()},
            **placement,
            "adapter": (dsl.Input[dsl.Model], EMPTY, "Adapter of train."),
            "quantization": (dsl.Input[dsl.Artifact], EMPTY, "Folder of quantize-check."),
        },
    )
    def gated_eval(decision: Any, adapter: Any, quantization: Any, **parameters: Any) -> None:
        with dsl.If(decision == "go", name="gate"):
            Steps(jobs, form, parameters).stage(
                "eval",
                {name: parameters[name] for name in placement},
                adapter=adapter,
                quantization=quantization,
            )

    return gated_eval
