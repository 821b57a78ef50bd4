"""The train stage as a Kubeflow component: declaration only.

The image named here is the one that a checkout builds; in the pipeline the Job manifest's `image:`
line replaces it (see pipelines/hardware.py).
"""

# kfp is untyped, and wants lists as defaults.
# mypy: allow-untyped-decorators
# ruff: noqa: B006, B008
from importlib.metadata import version

from kfp import dsl

from components.train.config import TrainConfig


@dsl.container_component
def train(
    dataset: dsl.Input[dsl.Dataset],
    base_model: str,
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    settings: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    rank: int = TrainConfig.default("rank"),
    alpha: int = TrainConfig.default("alpha"),
    dropout: float = TrainConfig.default("dropout"),
    target_modules: list[str] = list(TrainConfig.default("target_modules")),
    rslora: bool = TrainConfig.default("rslora"),
    method: str = TrainConfig.default("method"),
    epochs: float = TrainConfig.default("epochs"),
    learning_rate: float = TrainConfig.default("learning_rate"),
    warmup_ratio: float = TrainConfig.default("warmup_ratio"),
    batch_size: int = TrainConfig.default("batch_size"),
    gradient_accumulation: int = TrainConfig.default("gradient_accumulation"),
    max_tokens: int = TrainConfig.default("max_tokens"),
    stop_on_divergence: bool = TrainConfig.default("stop_on_divergence"),
    stop_on_overfitting: bool = TrainConfig.default("stop_on_overfitting"),
    max_too_long: float = TrainConfig.default("max_too_long"),
    processes: int = TrainConfig.default("processes"),
    sharding: str = TrainConfig.default("sharding"),
    batching: str = TrainConfig.default("batching"),
    load_in_4bit: bool = TrainConfig.default("load_in_4bit"),
    gradient_checkpointing: bool = TrainConfig.default("gradient_checkpointing"),
    dtype: str = TrainConfig.default("dtype"),
    checkpoint_steps: int = TrainConfig.default("checkpoint_steps"),
    checkpoints_kept: int = TrainConfig.default("checkpoints_kept"),
    seed: int = TrainConfig.default("seed"),
) -> dsl.ContainerSpec:
    """Fine-tune a chat model on RAFT rows with LoRA; write the adapter.

    Args:
        dataset: Rows of generate.
        base_model: Chat model to adapt: a hub id, or the gs:// URI of a model folder.
        adapter: LoRA adapter and tokenizer in safetensors, with the loss curve; never merged.
        metrics: Validation loss, steps, tokens per second, peak memory.
        settings: The loss curve.
        report: The curves, speed and memory, and what went wrong, in words.
        rank: Rank r of the LoRA matrices.
        alpha: LoRA scale: updates are multiplied by alpha / rank.
        dropout: Dropout before the LoRA matrices, 0 to 1.
        target_modules: Layers that get an adapter: ["all-linear"], or names such as ["q_proj"].
        rslora: Scale updates by alpha / sqrt(rank) instead.
        method: lora, or full to train every weight of a small model.
        epochs: Passes over the rows.
        learning_rate: Peak learning rate; a cosine takes it down to zero.
        warmup_ratio: Share of the steps, 0 to 1, over which the learning rate rises.
        batch_size: Rows per GPU and pass.
        gradient_accumulation: Passes per optimizer step.
        max_tokens: Longest row in tokens; longer rows are left out and counted, never cut.
        stop_on_divergence: Stop when the loss is no number, or still above its start.
        stop_on_overfitting: Stop after a pass whose validation loss lies 2 % above the least.
        max_too_long: Largest share of rows, 0 to 1, that may be left out for their length.
        processes: Processes that share the rows of a step; 0 is one for each GPU.
        sharding: none, full to share one copy of the model among the processes (FSDP2), or auto:
            full where a whole one does not fit a GPU.
        batching: packed, grouped by length, or auto: packed where a GPU has flash attention.
        load_in_4bit: Keep the base model in 4 bits under the adapter (QLoRA).
        gradient_checkpointing: Compute activations twice to save GPU memory.
        dtype: Type of the weights: auto, bfloat16 or float32; auto fits the GPU.
        checkpoint_steps: Optimizer steps between checkpoints, copied beside the adapter's URI while
            training goes on; a step that is tried again goes on from the newest.
        checkpoints_kept: Newest checkpoints that are kept.
        seed: Seed of the adapter's first weights and of the rows' order.
    """
    return dsl.ContainerSpec(
        image=f"raft-train:{version('raft-pipelines')}",
        command=["raft", "train"],
        args=[
            "--dataset", dataset.path,
            "--base-model", base_model,
            "--rank", rank,
            "--alpha", alpha,
            "--dropout", dropout,
            "--target-modules", target_modules,
            "--rslora", rslora,
            "--method", method,
            "--epochs", epochs,
            "--learning-rate", learning_rate,
            "--warmup-ratio", warmup_ratio,
            "--batch-size", batch_size,
            "--gradient-accumulation", gradient_accumulation,
            "--max-tokens", max_tokens,
            "--stop-on-divergence", stop_on_divergence,
            "--stop-on-overfitting", stop_on_overfitting,
            "--max-too-long", max_too_long,
            "--processes", processes,
            "--sharding", sharding,
            "--batching", batching,
            "--load-in-4bit", load_in_4bit,
            "--gradient-checkpointing", gradient_checkpointing,
            "--dtype", dtype,
            "--checkpoint-steps", checkpoint_steps,
            "--checkpoints-kept", checkpoints_kept,
            "--seed", seed,
            "--output", adapter.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
