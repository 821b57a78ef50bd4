"""The quantize-check stage as a Kubeflow component: declaration only.

The image named here is the one that a checkout builds; in the pipeline the Job manifest's `image:`
line replaces it (see pipelines/hardware.py).
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from importlib.metadata import version

from kfp import dsl

from components.quantize_check.config import QuantizeCheckConfig


@dsl.container_component
def quantize_check(
    dataset: dsl.Input[dsl.Dataset],
    base_model: str,
    adapter: dsl.Input[dsl.Model],
    quantization: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.Output[dsl.HTML],
    decision: dsl.OutputPath(str),  # type: ignore[valid-type]
    max_rows: int = QuantizeCheckConfig.default("max_rows"),
    max_tokens: int = QuantizeCheckConfig.default("max_tokens"),
    min_agreement: float = QuantizeCheckConfig.default("min_agreement"),
    max_memory_ratio: float = QuantizeCheckConfig.default("max_memory_ratio"),
    quantize_lm_head: bool = QuantizeCheckConfig.default("quantize_lm_head"),
    export: str = QuantizeCheckConfig.default("export"),
    gate: str = QuantizeCheckConfig.default("gate"),
    seed: int = QuantizeCheckConfig.default("seed"),
) -> dsl.ContainerSpec:
    """Measure what 4-bit weights save in memory and cost in agreement with 16-bit ones.

    Args:
        dataset: Rows of generate; the validation rows are compared on.
        base_model: The adapter's base: a hub id, or the gs:// URI of a model folder.
        adapter: Adapter of train.
        quantization: Weight bytes at 16 and 4 bits, agreement between the two, the verdict.
        metrics: Memory ratio, agreement, divergence and the verdict.
        verdict: The same to read on the run's page.
        decision: stop where the check failed and gate is stop, else go.
        max_rows: Validation rows to compare on; the first ones are taken.
        max_tokens: Longest row in tokens; longer ones are left out and counted.
        min_agreement: Least share of answer tokens, 0 to 1, on which 16 and 4 bits must agree.
        max_memory_ratio: Most weight bytes at 4 bits per byte at 16 bits, 0 to 1.
        quantize_lm_head: Quantize the output head too; both are measured.
        export: none, merged or 4bit: also write the tuned model to model/ in the artifact.
        gate: What a failed check means: warn says so and goes on to eval, stop keeps eval from
            running.
        seed: Seed of everything random.
    """
    return dsl.ContainerSpec(
        image=f"raft-quantize-check:{version('raft-pipelines')}",
        command=["raft", "quantize-check"],
        args=[
            "--dataset", dataset.path,
            "--base-model", base_model,
            "--adapter", adapter.path,
            "--max-rows", max_rows,
            "--max-tokens", max_tokens,
            "--min-agreement", min_agreement,
            "--max-memory-ratio", max_memory_ratio,
            "--quantize-lm-head", quantize_lm_head,
            "--export", export,
            "--gate", gate,
            "--seed", seed,
            "--output", quantization.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
