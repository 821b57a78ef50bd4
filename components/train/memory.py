"""How much memory a training takes on one GPU.

Exact are the bytes of weights, adapter, gradients and optimizer: they follow from the shapes.
Activations are an estimate, and so is what splitting leaves on a GPU. No figure has been held
against a GPU yet.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.core.base_model import check_access, is_hub_id
from components.core.errors import CannotTell, ConfigError, ModelError, first_line
from components.core.model_files import check_not_quantized, check_place, for_gated
from components.core.models import quiet
from components.core.weight_sizes import nf4_bytes
from components.train.config import TrainConfig
from components.train.layers import is_linear, linear_layers, widths

GIB = 2**30
CONTEXT_BYTES = 0.8 * GIB  # CUDA, its libraries and the allocator's gaps
ADAM_MOMENTS = 2


class Linear(NamedTuple):
    """A linear layer that an adapter may be added to: its name, and the widths of its sides."""

    name: str
    inputs: int
    outputs: int


class Shape(NamedTuple):
    """What the size of a model depends on.

    linears: of all layers. quantized: weights of each linear layer that 4 bits change, those of an
    image encoder included. embeddings: weights of embedding and head. experts: of all experts
    together, and the share of them that a token is computed with.
    """

    layers: int
    hidden: int
    linears: list[Linear]
    quantized: list[int]
    embeddings: int
    experts: tuple[int, float]
    parameters: int

    @classmethod
    def read(cls, config: Any) -> "Shape":
        """Of a model that its own class builds from its config, without memory for the weights."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        text, head = config.get_text_config(), model.get_output_embeddings()
        ends = {id(layer.weight): layer.weight.numel() for layer in
                (model.get_input_embeddings(), head) if layer is not None}  # fmt: skip
        chosen = getattr(text, "num_experts_per_tok", None) or 1
        number = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            linears=[
                Linear(path.rpartition(".")[2], *widths(layer))
                for path, layer in linear_layers(model).items()
            ],
            quantized=[
                layer.weight.numel()
                for layer in model.modules()
                if is_linear(layer) and layer is not head
            ],
            embeddings=sum(ends.values()),
            experts=(sum(w.numel() for w in model.parameters() if w.dim() == 3), chosen / number),
            parameters=sum(weight.numel() for weight in model.parameters()),
        )

    @property
    def in_layers(self) -> int:
        """All weights but those of embedding and head."""
        return self.parameters - self.embeddings

    @property
    def computed(self) -> int:
        """Weights outside embedding and head that a token is computed with."""
        experts, share = self.experts
        return self.in_layers - round(experts * (1 - share))


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
    with its gradients and moments, is not split.
    """
    full = config.method == "full"
    size = weight_size(config)
    trained = trainable(shape, config)
    # PEFT keeps adapters in 32 bits; Adam's moments have the type of what is trained.
    trained_bytes = trained * (size if full else 4)
    weights = shape.parameters * size
    if config.load_in_4bit:
        weights += sum(nf4_bytes(number) - number * size for number in shape.quantized)
    if gpus > 1:
        gathered = 2 * shape.in_layers // shape.layers + shape.embeddings
        weights = weights // gpus + gathered * size
    return Memory(
        weights=weights,
        adapter=0 if full else trained_bytes,
        gradients=trained_bytes,
        optimizer=ADAM_MOMENTS * trained_bytes,
        activations=activation_bytes(shape, config, longest, size),
    )


def weight_size(config: TrainConfig) -> int:
    """Bytes of a weight that is not in 4 bits, on a GPU that has bfloat16."""
    in_32 = config.dtype == "float32" or (config.method == "full" and config.dtype == "auto")
    return 4 if in_32 else 2


def trainable(shape: Shape, config: TrainConfig) -> int:
    """How many parameters are trained: all, or rank · (inputs + outputs) for every LoRA layer.

    Raises:
        ConfigError: the model has no such layer.
    """
    if config.method == "full":
        return shape.parameters
    targets = config.target_modules
    check_layers(targets, dict.fromkeys(linear.name for linear in shape.linears))
    sides = sum(
        linear.inputs + linear.outputs
        for linear in shape.linears
        if targets == ("all-linear",) or linear.name in targets
    )
    return config.rank * sides


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


def activation_bytes(shape: Shape, config: TrainConfig, longest: int, size: int) -> int:
    """An estimate of what forward and backward keep in memory, for a batch of longest rows.

    A layer keeps what its linear layers read and write, and both norms, and as inputs of the LoRA
    matrices the same again in 32 bits. With gradient checkpointing each layer keeps its input
    alone, and one layer all of it.
    """
    tokens = config.batch_size * min(config.max_tokens, max(longest, 1))
    written = sum(linear.outputs for linear in shape.linears) // shape.layers
    read = sum({linear.inputs for linear in shape.linears})
    a_layer = tokens * (2 * shape.hidden + read + written) * size
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
        ModelError: there is none, or no causal language model is of that kind.
    """
    from transformers import AutoConfig

    quiet()
    if not Path(source).is_file():
        check_place(source)
    unreached = ""
    if is_hub_id(source):
        try:
            check_access(source, "main")
        except CannotTell as error:
            unreached = f"; {error}"  # transformers would try for half a minute
    try:
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=bool(unreached)
        )
        check_not_quantized(source, config)
        return Shape.read(config)
    except ModelError:
        raise
    except Exception as error:  # transformers', the hub's, those of its HTTP library
        raise ModelError(
            f"--base-model {source}: no model can be built from its config.json "
            f"({first_line(error)}{unreached})",
            hint=for_gated(source, error)
            or "Pass the folder, config.json or hub id of a causal "
            "language model that transformers knows.",
        ) from error
