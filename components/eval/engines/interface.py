"""What every engine takes and gives, and the tokens at which every one of them stops."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from components.core.models import load_config
from components.eval.arms import Arm


class Request(NamedTuple):
    """A prompt to an arm, as text and as token ids."""

    arm: Arm
    prompt: str
    ids: tuple[int, ...]


class Completion(NamedTuple):
    """New token ids of a request, the end-of-sequence token included, and their text."""

    request: Request
    ids: tuple[int, ...]
    text: str
    truncated: bool


class Engine(Protocol):
    """A loaded model or several; `close` gives its memory back.

    weight_bytes: of the weights in memory; None where the engine does not report them.
    """

    weight_bytes: int | None

    def generate(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer all requests; batches come as they are finished, in any order."""

    def close(self) -> None:
        """Free the memory for the next engine."""


def end_tokens(source: str, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's and all that the model names (chat models do)."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a model without generation_config.json
        own = load_config(source).eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})
