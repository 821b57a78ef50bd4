"""`raft plan`: what a training will take, before it is paid for.

Its memory is that of `components/train/memory.py`. Time is an estimate from the FLOPs and a share
of the GPU's peak that is assumed. No figure of these has been held against a GPU yet.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from components.core.describe import duration, money
from components.core.errors import ConfigError
from components.core.gpus import kinds
from components.core.ledger import Prices, read_prices
from components.train.config import TrainConfig
from components.train.memory import (
    CONTEXT_BYTES,
    GIB,
    Memory,
    Shape,
    flops_per_token,
    is_split,
    memory,
    read_shape,
    trainable,
)
from components.train.out_of_memory import what_to_lower


class Plan(NamedTuple):
    """What each GPU holds, and what the training takes.

    held: exact but for activations and for what splitting gathers; seconds and cost are not exact.
    split: whether the GPUs share one copy of the model.
    """

    held: Memory
    parameters: int
    trainable: int
    steps: int
    tokens: int
    seconds: float
    cost: float | None
    memory: int
    gpu: str
    gpus: int
    split: bool

    @property
    def fits(self) -> bool:
        return self.held.total <= self.memory


def plan(
    shape: Shape, config: TrainConfig, rows: int, row_tokens: int, mfu: float, prices: Prices
) -> Plan:
    """What a training on `--processes` GPUs of the config's profile takes."""
    gpu, gpus = kinds()[config.profile], max(config.processes, 1)
    available, longest = round(gpu.memory_gib * GIB), 2 * row_tokens
    split = is_split(config, shape, longest, available, gpus)
    trained = trainable(shape, config)
    frozen = 0 if config.method == "full" else shape.in_layers
    tokens = round(rows * row_tokens * config.epochs)
    a_token = flops_per_token(trained, frozen, shape.layers, shape.hidden, row_tokens)
    seconds = a_token * tokens / (gpu.bf16_tflops * 1e12 * mfu * gpus)
    price = prices.gpu_hour.get(gpu.device)
    passes = math.ceil(rows / config.batch_size / gpus)
    return Plan(
        held=memory(shape, config, longest, gpus if split else 1),
        parameters=shape.parameters,
        trainable=trained,
        steps=math.ceil(math.ceil(passes / config.gradient_accumulation) * config.epochs),
        tokens=tokens,
        seconds=seconds,
        cost=None if price is None else price * gpus * seconds / 3600,
        memory=available,
        gpu=gpu.device,
        gpus=gpus,
        split=split,
    )


def run(
    base_model: str, given: Mapping[str, object], rows: int, row_tokens: int, mfu: float
) -> Plan:
    """Print the plan.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the price table cannot be read.
        ModelError: the model's shape is not known.
    """
    values = {"dataset": "-", "output": "-", "base_model": base_model, **given}
    try:
        config = TrainConfig.parse(values)
    except ConfigError as error:
        raise ConfigError(str(error), hint="raft plan --help shows every flag.") from None
    prices = read_prices(config.prices)
    found = plan(read_shape(base_model), config, rows, row_tokens, mfu, prices)
    print("\n".join(describe(found, config, mfu, prices)))
    return found


def describe(found: Plan, config: TrainConfig, mfu: float, prices: Prices) -> Iterator[str]:
    """The plan in lines."""
    place = f"one {found.gpu}" if found.gpus == 1 else f"each of {found.gpus} {found.gpu}"
    yield f"{config.base_model}, {config.method}, on {place}"
    if found.gpus > 1:
        yield f"  {'split over them (FSDP)' if found.split else 'a whole copy on each'}"
    yield f"  trained  {found.trainable:,} of {found.parameters:,} parameters"
    guessed = {"activations"} | ({"weights"} if found.split else set())
    for name, size in found.held._asdict().items():
        note = "estimate" if name in guessed else "exact"
        yield f"  {name:<12}{size / GIB:>8.2f} GiB  {note}"
    yield f"  {'in all':<12}{found.held.total / GIB:>8.2f} GiB  of {found.memory / GIB:.1f} GiB"
    verdict = "fits" if found.fits else "does not fit"
    yield f"  {verdict} (with {CONTEXT_BYTES / GIB:.1f} GiB for CUDA itself)"
    if not found.fits:
        yield "  " + "; ".join(what_to_lower(config, found.gpus, found.split))
    cost = money(found.cost, prices.currency)
    if found.cost is None:
        cost += f" (--prices FILE, with gpu_hour of {found.gpu})"
    yield (
        f"  {found.steps} steps, {found.tokens:,} tokens: {duration(found.seconds)}, {cost}, if "
        f"the GPU reaches {mfu:.0%} of its peak (an assumption)"
    )
