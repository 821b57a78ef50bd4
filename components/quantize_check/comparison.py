"""How far two models agree on the answers of a dataset, token by token."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.core.chat import Rendered
from components.core.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass
class Comparison:
    """Sums over answer tokens of what the models in 16 and 4 bits predict."""

    tokens: int = 0
    agreed: int = 0
    divergence: float = 0.0
    loss_16bit: float = 0.0
    loss_4bit: float = 0.0

    def add(self, full: "torch.Tensor", small: "torch.Tensor", answer: list[int]) -> None:
        """Add one row: two (tokens, vocabulary) tables of log probabilities and the tokens."""
        import torch

        small = small.to(full.device)
        gold = torch.tensor(answer, device=full.device).unsqueeze(1)
        self.tokens += len(answer)
        self.agreed += int((full.argmax(-1) == small.argmax(-1)).sum())
        self.divergence += float((full.exp() * (full - small)).sum())
        self.loss_16bit -= float(full.gather(1, gold).sum())
        self.loss_4bit -= float(small.gather(1, gold).sum())

    def figures(self) -> dict[str, Any]:
        """Its fields of a `QuantizationReport`."""
        return {
            "tokens": self.tokens,
            "token_agreement": self.agreed / self.tokens,
            "mean_kl": self.divergence / self.tokens,
            "perplexity_16bit": math.exp(self.loss_16bit / self.tokens),
            "perplexity_4bit": math.exp(self.loss_4bit / self.tokens),
        }


def answer_log_probabilities(model: Any, row: Rendered) -> "torch.Tensor":
    """Log probabilities over the vocabulary at each answer token: (answer tokens, vocabulary).

    Raises:
        ModelError: they are not numbers; two broken models would agree everywhere.
    """
    import torch

    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([row.ids], device=model.device),
            # The prompt's logits would be gigabytes at a 128k vocabulary, and are not used.
            logits_to_keep=len(row.ids) - row.start + 1,
        ).logits[0, :-1]
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the tuned model's output is not finite",
            hint="Its weights are damaged, or training diverged: train again.",
        )
    return torch.log_softmax(logits.float(), dim=-1)
