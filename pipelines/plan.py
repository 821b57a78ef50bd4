"""`raft plan`: what a training will take, before it is paid for.

Exact are the bytes of weights, adapter, gradients and optimizer: they follow from the shapes. The
rest is an estimate and says so: activations from what a layer keeps, time from the FLOPs and a
share of the GPU's peak that is assumed. No figure of these has been held against a GPU yet.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.describe import duration, money
from components.errors import ConfigError, ModelError
from components.ledger import Prices
from components.records import read_json
from components.train.config import TrainConfig, profiles

GIB = 2**30
CONTEXT_BYTES = 0.8 * GIB  # CUDA, its libraries and the allocator's gaps
ADAM_MOMENTS = 2
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
KNOWN = ("llama", "mistral", "qwen2")
"""Model types whose layers are the seven below; others are laid out differently."""


class Linear(NamedTuple):
    """A linear layer of the decoder: width of its input and output, and whether it has a bias."""

    name: str
    inputs: int
    outputs: int
    bias: bool


class Shape(NamedTuple):
    """What of a model's config.json its size depends on."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head: int
    vocabulary: int
    tied: bool
    bias: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], source: str) -> "Shape":
        """From config.json.

        Raises:
            ModelError: another kind of model, or a size is missing.
        """
        kind = config.get("model_type")
        if kind not in KNOWN:
            raise ModelError(
                f"{source}: a plan for model_type {kind!r} cannot be made",
                hint=f"Known are {', '.join(KNOWN)}.",
            )
        try:
            heads = config["num_attention_heads"]
            return cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                inner=config["intermediate_size"],
                heads=heads,
                key_value_heads=config.get("num_key_value_heads") or heads,
                head=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                bias=kind == "qwen2",
            )
        except KeyError as missing:
            raise ModelError(f"{source}: no {missing} in its config.json") from None

    def linears(self) -> list[Linear]:
        """The linear layers of one decoder layer."""
        queries, values = self.heads * self.head, self.key_value_heads * self.head
        return [
            Linear("q_proj", self.hidden, queries, self.bias),
            Linear("k_proj", self.hidden, values, self.bias),
            Linear("v_proj", self.hidden, values, self.bias),
            Linear("o_proj", queries, self.hidden, False),
            Linear("gate_proj", self.hidden, self.inner, False),
            Linear("up_proj", self.hidden, self.inner, False),
            Linear("down_proj", self.inner, self.hidden, False),
        ]

    @property
    def in_layers(self) -> int:
        """Weights of the linear layers, without biases."""
        return self.layers * sum(linear.inputs * linear.outputs for linear in self.linears())

    @property
    def elsewhere(self) -> int:
        """Embedding, head, norms and biases: they stay in 16 bits."""
        biases = sum(linear.outputs for linear in self.linears() if linear.bias)
        norms = 2 * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.layers * (norms + biases) + self.hidden + embeddings


class Plan(NamedTuple):
    """Bytes on the GPU, by what they hold, and what the training takes.

    weights, adapter, gradients and optimizer are exact; activations, seconds and cost are not.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    parameters: int
    trainable: int
    steps: int
    tokens: int
    seconds: float
    cost: float | None
    memory: int
    gpu: str

    @property
    def total(self) -> int:
        return round(
            self.weights
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + CONTEXT_BYTES
        )

    @property
    def fits(self) -> bool:
        return self.total <= self.memory


def plan(
    shape: Shape, config: TrainConfig, rows: int, row_tokens: int, mfu: float, prices: Prices
) -> Plan:
    """What a training on the GPU of the config's profile takes."""
    gpu = profiles()[config.profile]
    full = config.method == "full"
    size = 4 if config.dtype == "float32" or (full and config.dtype == "auto") else 2
    adapter = 0 if full else adapter_parameters(shape, config)
    parameters = shape.in_layers + shape.elsewhere
    trainable = parameters if full else adapter
    # PEFT keeps adapters in 32 bits; Adam's moments have the type of what is trained.
    trained_size = size if full else 4
    linear_bytes = nf4_bytes(shape) if config.load_in_4bit else shape.in_layers * size
    tokens = round(rows * row_tokens * config.epochs)
    a_token = 6 * trainable + 4 * max(shape.in_layers - (trainable if full else 0), 0)
    a_token += 12 * shape.layers * shape.hidden * row_tokens
    seconds = a_token * tokens / (gpu["bfloat16_tflops"] * 1e12 * mfu)
    price = prices.gpu_hour.get(gpu["gpu"])
    passes = math.ceil(rows / config.batch_size)
    return Plan(
        weights=linear_bytes + shape.elsewhere * size,
        adapter=adapter * 4,
        gradients=trainable * trained_size,
        optimizer=ADAM_MOMENTS * trainable * trained_size,
        activations=activation_bytes(shape, config, row_tokens, size),
        parameters=parameters,
        trainable=trainable,
        steps=math.ceil(math.ceil(passes / config.gradient_accumulation) * config.epochs),
        tokens=tokens,
        seconds=seconds,
        cost=None if price is None else price * seconds / 3600,
        memory=round(gpu["memory_gib"] * GIB),
        gpu=gpu["gpu"],
    )


def adapter_parameters(shape: Shape, config: TrainConfig) -> int:
    """Parameters of the LoRA matrices: rank · (inputs + outputs) for every layer that has them.

    Raises:
        ConfigError: the model has no such layer.
    """
    linears = {linear.name: linear for linear in shape.linears()}
    targets = config.target_modules
    if targets != ("all-linear",) and (unknown := sorted(set(targets) - set(linears))):
        raise ConfigError(
            f"--target-modules {','.join(unknown)}: no such layer (allowed: all-linear, or some "
            f"of {', '.join(linears)})"
        )
    chosen = linears.values() if targets == ("all-linear",) else [linears[t] for t in targets]
    sides = sum(linear.inputs + linear.outputs for linear in chosen)
    return shape.layers * config.rank * sides


def nf4_bytes(shape: Shape) -> int:
    """Linear layers in NF4 with double quantization (arXiv 2305.14314, section 3).

    Half a byte a weight; a byte of scale for 64 weights; a 32-bit scale of scales for 256 of those,
    with one offset; and two tables of codes, of 16 and of 256 entries, for each layer.
    """
    total = 0
    for linear in shape.linears():
        weights = linear.inputs * linear.outputs
        scales = math.ceil(weights / NF4_BLOCK)
        total += math.ceil(weights / 2) + scales + 4 * math.ceil(scales / NF4_OUTER_BLOCK)
        total += 4 + 4 * 16 + 4 * 256
    return shape.layers * total


def activation_bytes(shape: Shape, config: TrainConfig, row_tokens: int, size: int) -> int:
    """An estimate of what forward and backward keep at once, for the longest batch.

    A layer keeps its input, both norms, queries, keys, values, the attention's output, gate, up
    and their product, and as inputs of the LoRA matrices the same again in 32 bits. With gradient
    checkpointing each layer keeps its input alone, and one layer all of it.
    """
    tokens = config.batch_size * min(config.max_tokens, max(row_tokens, 1) * 2)
    attention = (2 * shape.heads + 2 * shape.key_value_heads) * shape.head
    a_layer = tokens * (4 * shape.hidden + attention + 3 * shape.inner) * size
    if config.method == "lora":
        a_layer = round(a_layer * 1.5)
    inputs = tokens * shape.hidden * size
    if config.gradient_checkpointing:
        # The layer under way has its values and, on the way back, their gradients.
        return shape.layers * inputs + 2 * a_layer
    return shape.layers * a_layer + a_layer


def read_shape(source: str) -> Shape:
    """The shape of a folder's, a file's or a hub model's config.json.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        path = _fetch(source)
    try:
        return Shape.read(json.loads(path.read_text(encoding="utf-8")), source)
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{source}: config.json is not JSON ({error})") from None


def _fetch(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(source, "config.json"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"--base-model {source}: no config.json to be had ({first[:200]})",
            hint="Give a folder, a config.json, or a hub id; a gated model needs HF_TOKEN.",
        ) from None


def run(
    base_model: str, given: Mapping[str, object], rows: int, row_tokens: int, mfu: float
) -> Plan:
    """Print the plan.

    Raises:
        ConfigError: a setting is out of range.
        ModelError: the model's shape is not known.
    """
    values = {"dataset": "-", "output": "-", "base_model": base_model, **given}
    config = TrainConfig.parse(values)
    prices = read_json(Path(__file__).parents[1] / "components" / "prices.json", Prices)
    found = plan(read_shape(base_model), config, rows, row_tokens, mfu, prices)
    print("\n".join(describe(found, config, mfu, prices)))
    return found


def describe(found: Plan, config: TrainConfig, mfu: float, prices: Prices) -> Iterator[str]:
    """The plan in lines."""
    yield f"{config.base_model}, {config.method}, on one {found.gpu}"
    yield f"  trained  {found.trainable:,} of {found.parameters:,} parameters"
    for name, note in (
        ("weights", "exact"),
        ("adapter", "exact"),
        ("gradients", "exact"),
        ("optimizer", "exact"),
        ("activations", "estimate"),
    ):
        yield f"  {name:<12}{getattr(found, name) / GIB:>8.2f} GiB  {note}"
    yield f"  {'in all':<12}{found.total / GIB:>8.2f} GiB  of {found.memory / GIB:.1f} GiB"
    verdict = "fits" if found.fits else "does not fit"
    yield f"  {verdict} (with {CONTEXT_BYTES / GIB:.1f} GiB for CUDA itself)"
    if not found.fits:
        yield "  " + "; ".join(_lower(config))
    cost = money(found.cost, prices.currency)
    yield (
        f"  {found.steps} steps, {found.tokens:,} tokens: {duration(found.seconds)}, {cost}, if "
        f"the GPU reaches {mfu:.0%} of its peak (an assumption)"
    )


def _lower(config: TrainConfig) -> Iterator[str]:
    if not config.gradient_checkpointing:
        yield "--gradient-checkpointing true"
    if config.batch_size > 1:
        yield f"--batch-size {config.batch_size // 2}"
    if config.method == "full":
        yield "--method lora"
    elif not config.load_in_4bit:
        yield "--load-in-4bit true"
    yield "a lower --rank or --max-tokens, or a larger GPU"
