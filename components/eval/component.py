"""The eval stage as a Kubeflow component: declaration only.

The image named here is the one that a checkout builds; in the pipeline the Job manifest's `image:`
line replaces it (see pipelines/hardware.py).
"""

# kfp is untyped, and wants lists as defaults.
# mypy: allow-untyped-decorators
# ruff: noqa: B006, B008
from importlib.metadata import version

from kfp import dsl

from components.eval.config import EvalConfig


@dsl.container_component
def eval(
    questions: str,
    base_model: str,
    adapter: dsl.Input[dsl.Model],
    quantization: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    task: str = EvalConfig.default("task"),
    arms: list[str] = list(EvalConfig.default("arms")),
    max_questions: int = EvalConfig.default("max_questions"),
    distractors: list[int] = list(EvalConfig.default("distractors")),
    oracle: list[str] = list(EvalConfig.default("oracle")),
    max_new_tokens: int = EvalConfig.default("max_new_tokens"),
    engine: str = EvalConfig.default("engine"),
    batch_size: int = EvalConfig.default("batch_size"),
    dtype: str = EvalConfig.default("dtype"),
    resamples: int = EvalConfig.default("resamples"),
    seed: int = EvalConfig.default("seed"),
) -> dsl.ContainerSpec:
    """Score the base and the tuned model, in 16 and in 4 bits, on the same questions.

    Args:
        questions: gs:// URI of the questions, a JSON file in HotpotQA form or rows of generate.
        base_model: The adapter's base: a hub id, or the gs:// URI of a model folder.
        adapter: Adapter of train.
        quantization: Folder of quantize-check; its weight bytes go in the report.
        evaluation: Scores with confidence intervals, every generation, the report.
        metrics: F1, EM and contains of each arm; retention.
        report: The report, to read on the run's page.
        task: Prompt: hotpotqa_raft (as trained), hotpotqa_rag (plain retrieval) or
            hotpotqa_closed (no documents).
        arms: Model variants to compare, of base, raft, base-4bit and raft-4bit.
        max_questions: Ask at most this many, sampled by seed.
        distractors: Paragraphs shown beside the oracle ones; -1 shows all of a question's. The
            first number is the comparison's, more of them add a robustness curve.
        oracle: Where the oracle paragraphs stand: present, absent, first or last. The first is
            the comparison's, more of them add curves.
        max_new_tokens: Most tokens in one generation.
        engine: What generates: auto, transformers or vllm.
        batch_size: Questions per batch.
        dtype: Type of the 16-bit arms' weights: auto, bfloat16 or float32; auto fits the GPU.
        resamples: Bootstrap resamples behind each confidence interval.
        seed: Seed of the sample of questions and of the bootstrap.
    """
    return dsl.ContainerSpec(
        image=f"raft-eval:{version('raft-pipelines')}",
        command=["raft", "eval"],
        args=[
            "--questions", questions,
            "--base-model", base_model,
            "--adapter", adapter.path,
            "--quantization", quantization.path,
            "--task", task,
            "--arms", arms,
            "--max-questions", max_questions,
            "--distractors", distractors,
            "--oracle", oracle,
            "--max-new-tokens", max_new_tokens,
            "--engine", engine,
            "--batch-size", batch_size,
            "--dtype", dtype,
            "--resamples", resamples,
            "--seed", seed,
            "--output", evaluation.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
