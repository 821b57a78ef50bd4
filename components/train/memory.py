"""How much memory a training takes on one GPU.

Exact are the bytes of weights, adapter, gradients and optimizer: they follow from the shapes.
Activations are an estimate, and so is what splitting leaves on a GPU. No figure has been held
against a GPU yet.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.core.errors import ConfigError, ModelError, first_line
from components.core.model_files import check_place
from components.core.weight_sizes import nf4_bytes
from components.train.config import TrainConfig

GIB = 2**30
CONTEXT_BYTES = 0.8 * GIB  # CUDA, its libraries and the allocator's gaps
ADAM_MOMENTS = 2
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
            raise ModelError(f"{source}: no {missing} in its config.json") from missing

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
        """Weights of embedding, head, norms and biases: never in 4 bits."""
        biases = sum(linear.outputs for linear in self.linears() if linear.bias)
        norms = 2 * self.hidden
        return self.layers * (norms + biases) + self.hidden + self.embeddings

    @property
    def embeddings(self) -> int:
        """Embedding and head."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.in_layers + self.elsewhere


class Memory(NamedTuple):
    """Bytes on one GPU, by what they hold."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return round(sum(self) + CONTEXT_BYTES)


def memory(shape: Shape, config: TrainConfig, longest: int, gpus: int = 1) -> Memory:
    """What each GPU holds, with rows of up to `longest` tokens.

    With more than one of them the model is split (FSDP2, arXiv 2304.11277): each holds its share,
    and gathers whole what it computes with: one layer, the next, embedding and head. An adapter,
    with its gradients and moments, is not split; with `--method full` gradients and moments are.
    """
    full = config.method == "full"
    size = weight_size(config)
    trained = trainable(shape, config)
    # PEFT keeps adapters in 32 bits; Adam's moments have the type of what is trained.
    trained_bytes = trained * (size if full else 4)
    share = gpus if full else 1
    linear_bytes = shape.in_layers * size
    if config.load_in_4bit:
        layer = (nf4_bytes(linear.inputs * linear.outputs) for linear in shape.linears())
        linear_bytes = shape.layers * sum(layer)
    weights = linear_bytes + shape.elsewhere * size
    if gpus > 1:
        gathered = 2 * shape.in_layers // shape.layers + shape.embeddings
        weights = weights // gpus + gathered * size
    return Memory(
        weights=weights,
        adapter=0 if full else trained_bytes,
        gradients=trained_bytes // share,
        optimizer=ADAM_MOMENTS * trained_bytes // share,
        activations=activation_bytes(shape, config, longest, size),
    )


def is_split(config: TrainConfig, shape: Shape, longest: int, available: int, gpus: int) -> bool:
    """Whether the GPUs share one copy of the model: as set, else where a whole one does not fit.

    Args:
        config: its `--sharding`.
        shape: of the model.
        longest: tokens of the longest row.
        available: bytes of one GPU.
        gpus: how many there are.
    """
    if gpus == 1 or config.load_in_4bit or config.sharding != "auto":
        return gpus > 1 and config.sharding == "full"
    return memory(shape, config, longest).total > available


def weight_size(config: TrainConfig) -> int:
    """Bytes of a weight that is not in 4 bits, on a GPU that has bfloat16."""
    in_32 = config.dtype == "float32" or (config.method == "full" and config.dtype == "auto")
    return 4 if in_32 else 2


def trainable(shape: Shape, config: TrainConfig) -> int:
    """How many parameters are trained.

    Raises:
        ConfigError: the model has no such layer.
    """
    return shape.parameters if config.method == "full" else adapter_parameters(shape, config)


def check_layers(targets: Sequence[str], linears: Iterable[str]) -> None:
    """Refuse target modules that are not among the linear layers of a model.

    Raises:
        ConfigError: names the layers there are.
    """
    linears = list(linears)
    if tuple(targets) != ("all-linear",) and (unknown := sorted(set(targets) - set(linears))):
        raise ConfigError(
            f"--target-modules {','.join(unknown)}: no such layer (allowed: all-linear, or some "
            f"of {', '.join(linears)})"
        )


def adapter_parameters(shape: Shape, config: TrainConfig) -> int:
    """Parameters of the LoRA matrices: rank · (inputs + outputs) for every layer that has them.

    Raises:
        ConfigError: the model has no such layer.
    """
    linears = {linear.name: linear for linear in shape.linears()}
    targets = config.target_modules
    check_layers(targets, linears)
    chosen = linears.values() if targets == ("all-linear",) else [linears[t] for t in targets]
    sides = sum(linear.inputs + linear.outputs for linear in chosen)
    return shape.layers * config.rank * sides


def activation_bytes(shape: Shape, config: TrainConfig, longest: int, size: int) -> int:
    """An estimate of what forward and backward keep in memory, for a batch of longest rows.

    A layer keeps its input, both norms, queries, keys, values, the attention's output, gate, up
    and their product, and as inputs of the LoRA matrices the same again in 32 bits. With gradient
    checkpointing each layer keeps its input alone, and one layer all of it.
    """
    tokens = config.batch_size * min(config.max_tokens, max(longest, 1))
    attention = (2 * shape.heads + 2 * shape.key_value_heads) * shape.head
    a_layer = tokens * (4 * shape.hidden + attention + 3 * shape.inner) * size
    if config.method == "lora":
        a_layer = round(a_layer * 1.5)
    inputs = tokens * shape.hidden * size
    if config.gradient_checkpointing:
        # The layer under way has its values and, on the way back, their gradients.
        return shape.layers * inputs + 2 * a_layer
    return shape.layers * a_layer + a_layer


def flops_per_token(
    trained: int, frozen: int, layers: int, hidden: int, row_tokens: float
) -> float:
    """FLOPs of a training for each token, as in PaLM (arXiv 2204.02311, appendix B).

    6 for every trained parameter and 4 for every frozen one, whose weights need no gradient, and
    12 · layers · width · tokens of the row for attention. Embedding and output head are not counted
    where they are frozen (the head is computed for a few tokens only), nor is what gradient
    checkpointing computes twice.
    """
    return 6 * trained + 4 * frozen + 12 * layers * hidden * row_tokens


def read_shape(source: str) -> Shape:
    """The shape of a folder's, a file's or a hub model's config.json.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    path = Path(source)
    if not path.is_file():
        check_place(source)
        path = path / "config.json" if path.is_dir() else _fetch(source)
    try:
        return Shape.read(json.loads(path.read_text(encoding="utf-8")), source)
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{source}: config.json is not JSON ({error})") from error


def _fetch(source: str) -> Path:
    from huggingface_hub import (
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    name = "config.json"
    try:
        if isinstance(cached := try_to_load_from_cache(source, name), str):
            return Path(cached)
        get_hf_file_metadata(hf_hub_url(source, name))  # one request, where a download retries
        return Path(hf_hub_download(source, name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"--base-model {source}: config.json cannot be read ({first_line(error)})",
            hint="Pass a folder, a config.json, or a hub id; a gated model needs HF_TOKEN.",
        ) from error
    except Exception as error:  # what the hub's client raises has the types of its HTTP library
        raise ModelError(
            f"--base-model {source}: cannot reach {constants.ENDPOINT} ({first_line(error)})",
            hint="Pass a folder or a config.json, or try again with a connection.",
        ) from error
