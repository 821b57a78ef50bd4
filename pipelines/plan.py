"""`raft plan`: estimate what a training takes, before paying for it.

Its memory is that of `components/train/memory.py`. Time is an estimate from the FLOPs and a share
of the peak that is assumed. A GPU's peak is the listed one, which has not been checked on a GPU
yet; where there is no GPU, the time on the CPU, whose peak is measured, is estimated as well.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from components.core.describe import duration, few_rows, money
from components.core.gpus import kinds
from components.core.ledger import cost_of
from components.core.models import load_tokenizer
from components.train.config import TrainConfig
from components.train.memory import (
    CONTEXT_BYTES,
    GIB,
    Memory,
    Shape,
    flops_per_token,
    memory,
    read_shape,
    trainable,
)
from components.train.out_of_memory import what_to_lower
from components.train.recipe import choose_recipe
from components.train.rows import check_rows, read_rows


class Plan(NamedTuple):
    """What each GPU holds, and what the training takes.

    held: exact but for activations and for what splitting gathers; seconds and cost are not exact.
    split: whether the GPUs share one copy of the model.
    """

    held: Memory
    fits: bool
    split: bool
    trainable: int
    steps: int
    tokens: int
    seconds: float
    cost: float | None


def plan(shape: Shape, config: TrainConfig, rows: int, row_tokens: int, mfu: float) -> Plan:
    """What a training on `--processes` GPUs of the config's kind takes."""
    gpu, gpus = kinds()[config.gpu], max(config.processes, 1)
    config = choose_recipe(config, rows, shape.hidden, gpus)
    available, longest = round(gpu.memory_gib * GIB), 2 * row_tokens
    split = gpus > 1 and config.sharding == "full"
    held = memory(shape, config, longest, gpus if split else 1)
    trained = trainable(shape, config)
    tokens = round(rows * row_tokens * config.epochs)
    flops = tokens * _flops_of_a_token(shape, config, row_tokens)
    seconds = flops / (gpu.bf16_tflops * 1e12 * mfu * gpus)
    passes = math.ceil(rows / config.batch_size / gpus)
    return Plan(
        held=held,
        fits=held.total <= available,
        split=split,
        trainable=trained,
        steps=math.ceil(math.ceil(passes / config.gradient_accumulation) * config.epochs),
        tokens=tokens,
        seconds=seconds,
        cost=cost_of(0, gpu.device, gpus * seconds),
    )


def _flops_of_a_token(shape: Shape, config: TrainConfig, row_tokens: int) -> float:
    frozen = 0 if config.method == "full" else shape.computed
    return flops_per_token(trainable(shape, config), frozen, shape.layers, shape.hidden, row_tokens)


def count_tokens(base_model: str, dataset: str) -> tuple[int, int]:
    """The training rows of a dataset, and the tokens of one in the mean, as train reads them.

    Raises:
        DataError: the dataset is missing or malformed.
        ModelError: the model has no tokenizer.
    """
    values = {"dataset": dataset, "output": "-", "base_model": base_model, "max_tokens": 1_048_576}
    config = TrainConfig.parse(values)
    rows = read_rows(config, load_tokenizer(base_model))
    check_rows(config, rows)
    lengths = [len(row["input_ids"]) for row in rows.train]
    return len(lengths), round(sum(lengths) / len(lengths))


def print_plan(
    base_model: str, settings: Mapping[str, object], rows: int, row_tokens: int, mfu: float
) -> None:
    """Print the plan.

    Raises:
        ConfigError: a setting is out of range.
        ModelError: the model's shape is not known.
    """
    values = {"dataset": "-", "output": "-", "base_model": base_model, **settings}
    config = TrainConfig.parse(values)
    shape = read_shape(base_model)
    result = plan(shape, config, rows, row_tokens, mfu)
    lines = [*describe(result, shape, config, mfu)]
    if not has_gpu():
        lines.append(describe_cpu(shape, config, result.tokens, row_tokens, mfu))
    lines += [f"  {text}" for text in few_rows(rows)]
    print("\n".join(lines))


def has_gpu() -> bool:
    """Whether torch can train on a GPU of this machine."""
    import torch

    return bool(torch.cuda.is_available())


def describe_cpu(
    shape: Shape, config: TrainConfig, tokens: int, row_tokens: int, mfu: float
) -> str:
    """A line about the same training on this machine's CPU."""
    import torch

    peak, threads = cpu_flops(), torch.get_num_threads()
    seconds = tokens * _flops_of_a_token(shape, config, row_tokens) / (peak * mfu)
    return (
        f"  on this machine's CPU instead: {duration(seconds)}, at {mfu:.0%} of the "
        f"{peak / 1e9:.0f} GFLOPS that a matrix product reached now (threads: {threads})"
    )


def cpu_flops(size: int = 1024) -> float:
    """FLOPs a second of this machine's CPU: the fastest of some matrix products in 32 bits.

    Args:
        size: rows and columns of the matrices.
    """
    import torch

    matrix, fastest = torch.rand(size, size), math.inf
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - started)
    return float(2 * size**3 / fastest)


def describe(result: Plan, shape: Shape, config: TrainConfig, mfu: float) -> Iterator[str]:
    """The plan in lines."""
    gpu, gpus = kinds()[config.gpu], max(config.processes, 1)
    place = f"one {gpu.device}" if gpus == 1 else f"each of {gpus} {gpu.device}"
    yield f"{config.base_model}, {config.method}, on {place}"
    if gpus > 1:
        yield f"  {'split over them (FSDP)' if result.split else 'a whole copy on each'}"
    yield f"  trained  {result.trainable:,} of {shape.parameters:,} parameters"
    guessed = {"activations"} | ({"weights"} if result.split else set())
    for name, size in result.held._asdict().items():
        note = "estimate" if name in guessed else "exact"
        yield f"  {name:<12}{size / GIB:>8.2f} GiB  {note}"
    yield f"  {'in all':<12}{result.held.total / GIB:>8.2f} GiB  of {gpu.memory_gib:.1f} GiB"
    verdict = "fits" if result.fits else "does not fit"
    yield f"  {verdict} (with {CONTEXT_BYTES / GIB:.1f} GiB for CUDA itself)"
    if not result.fits:
        yield "  " + "; ".join(what_to_lower(config, gpus, result.split))
    yield (
        f"  {result.steps} steps, {result.tokens:,} tokens: {duration(result.seconds)}, "
        f"{money(result.cost)}, if the GPU reaches {mfu:.0%} of its peak (an assumption)"
    )
