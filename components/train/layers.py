"""The linear layers of a model: those that an adapter may be added to."""

from typing import Any


def is_linear(module: Any) -> bool:
    """Whether PEFT and bitsandbytes take a module for a linear layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def widths(linear: Any) -> tuple[int, int]:
    """The number of inputs and outputs of a linear layer."""
    inputs, outputs = linear.weight.shape
    return (outputs, inputs) if hasattr(linear, "in_features") else (inputs, outputs)


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of a model's text decoder by path; those an adapter may be added to.

    Neither the output head nor what reads images or sound, which no row trains.
    """
    head, decoder = model.get_output_embeddings(), {*model.get_decoder().modules()}
    return {
        path: module
        for path, module in model.named_modules()
        if is_linear(module)
        and module in decoder
        and module is not head
        and not any(word in path.lower() for word in ("vision", "visual", "image", "audio"))
    }
