"""The quantize-check stage: what 4-bit weights save and cost, before anyone pays for eval.

The tuned model is held in 16 bits (bfloat16) and in NF4 with double quantization; both read the
validation rows with the teacher's answers given (teacher forcing), and are compared token by
token on the answers.
"""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ModelError
from components.ledger import Ledger
from components.models import load_4bit, load_tokenizer, load_tuned, weight_bytes
from components.progress import headline, say, task
from components.quantize_check.config import QuantizeCheckConfig
from components.records import QuantizationReport, RaftRow, read_jsonl
from components.storage import seal, unseal, verify, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def run(config: QuantizeCheckConfig) -> QuantizationReport:
    """Write `quantization.json` and `ledger.json`.

    Raises:
        DataError: the dataset or adapter is missing or damaged, or there is no validation row.
        ModelError: the base model or the adapter cannot be used.
    """
    import torch

    output = Path(config.output)
    headline("quantize-check", f"{config.base_model} + {config.adapter} → {output}")
    verify(Path(config.dataset), "--dataset")
    verify(Path(config.adapter), "--adapter")
    with Ledger("quantize-check", output, config.prices) as ledger:
        tokenizer = load_tokenizer(config.base_model)
        rows = list(_conversations(config, tokenizer))
        unseal(output)
        say("  loading the model in 16 bits")
        full = load_tuned(config.base_model, config.adapter, torch.bfloat16).merge_and_unload()
        bytes_16bit = weight_bytes(full)
        with task("reading answers in 16 bits", len(rows), "rows") as progress:
            expected = []
            for ids, start in rows:
                expected.append(_answer_log_probabilities(full, ids, start).cpu())
                progress.advance()
        del full
        _free()

        say("  loading the model in 4 bits")
        small = load_4bit(config.base_model, config.adapter, torch.bfloat16)
        bytes_4bit = weight_bytes(small)
        comparison = _Comparison()
        with task("reading answers in 4 bits", len(rows), "rows") as progress:
            for (ids, start), reference in zip(rows, expected, strict=True):
                comparison.add(
                    reference, _answer_log_probabilities(small, ids, start).cpu(), ids[start:]
                )
                progress.advance()
        ledger.count(tokens_in=2 * sum(len(ids) for ids, _ in rows))
        report = _judge(config, comparison, len(rows), bytes_16bit, bytes_4bit, _bytes_kept(small))
        write_json(output / "quantization.json", report)
    seal(output)
    say(f"  {report.verdict}")
    return report


def _conversations(
    config: QuantizeCheckConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[list[int], int]]:
    """Token ids of each validation row's conversation, and where its answer starts."""
    path = Path(config.dataset) / "validation.jsonl"
    found = 0
    for row in read_jsonl(path, RaftRow):
        if found == config.max_rows:
            return
        ids, start = _encode(row, tokenizer)
        if len(ids) <= config.max_tokens:
            found += 1
            yield ids, start
    if not found:
        raise DataError(
            "no validation row to compare on",
            path=path,
            hint="Generate with --validation-fraction above 0, or raise --max-tokens.",
        )


def _encode(row: RaftRow, tokenizer: Any) -> tuple[list[int], int]:
    prompt = [{"role": "user", "content": row.instruction}]
    answer = [{"role": "assistant", "content": row.cot_answer}]
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template(prompt + answer, return_dict=True)
    return list(whole["input_ids"]), len(asked["input_ids"])


def _answer_log_probabilities(model: Any, ids: list[int], start: int) -> "torch.Tensor":
    """Log probabilities over the vocabulary at each answer token: (answer tokens, vocabulary).

    Raises:
        ModelError: they are not numbers; two broken models would agree everywhere.
    """
    import torch

    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids], device=model.device),
            # The prompt's logits would be gigabytes at a 128k vocabulary, and nobody reads them.
            logits_to_keep=len(ids) - start + 1,
        ).logits[0, :-1]
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the tuned model's output is not finite",
            hint="Its weights are damaged, or training diverged: train again.",
        )
    return torch.log_softmax(logits.float(), dim=-1)


class _Comparison:
    """Sums over answer tokens of what 16 and 4 bits think of them."""

    def __init__(self) -> None:
        self.tokens = self.agreed = 0
        self.divergence = self.loss_16bit = self.loss_4bit = 0.0

    def add(self, full: "torch.Tensor", small: "torch.Tensor", answer: list[int]) -> None:
        """Add one row: two (tokens, vocabulary) tables of log probabilities and the tokens."""
        import torch

        gold = torch.tensor(answer).unsqueeze(1)
        self.tokens += len(answer)
        self.agreed += int((full.argmax(-1) == small.argmax(-1)).sum())
        self.divergence += float((full.exp() * (full - small)).sum())
        self.loss_16bit -= float(full.gather(1, gold).sum())
        self.loss_4bit -= float(small.gather(1, gold).sum())


def _judge(
    config: QuantizeCheckConfig,
    comparison: _Comparison,
    rows: int,
    bytes_16bit: int,
    bytes_4bit: int,
    bytes_kept: int,
) -> QuantizationReport:
    agreement = comparison.agreed / comparison.tokens
    ratio = bytes_4bit / bytes_16bit
    faults = []
    if agreement < config.min_agreement:
        faults.append(f"agreement is below {config.min_agreement:.1%}")
    if ratio > config.max_memory_ratio:
        faults.append(f"memory is above {config.max_memory_ratio:.1%}")
    measured = (
        f"4-bit weights take {ratio:.1%} of the 16-bit ones "
        f"({bytes_4bit / 1e6:.2f} of {bytes_16bit / 1e6:.2f} MB; {bytes_kept / 1e6:.2f} MB stay in "
        f"16 bits) and agree on {agreement:.1%} of {comparison.tokens} answer tokens"
    )
    return QuantizationReport(
        weight_bytes_16bit=bytes_16bit,
        weight_bytes_4bit=bytes_4bit,
        memory_ratio=ratio,
        bytes_kept_16bit=bytes_kept,
        rows=rows,
        tokens=comparison.tokens,
        token_agreement=agreement,
        mean_kl=comparison.divergence / comparison.tokens,
        perplexity_16bit=math.exp(comparison.loss_16bit / comparison.tokens),
        perplexity_4bit=math.exp(comparison.loss_4bit / comparison.tokens),
        min_agreement=config.min_agreement,
        max_memory_ratio=config.max_memory_ratio,
        passed=not faults,
        decision="stop" if faults and config.gate == "stop" else "go",
        verdict=f"{'PASS' if not faults else 'FAIL'}: {measured}"
        + (f"; {' and '.join(faults)}" if faults else ""),
    )


def _bytes_kept(model: Any) -> int:
    """Bytes of the weights that quantization leaves alone: embeddings, norms and the head."""
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in model.parameters()
        if tensor.is_floating_point()
    )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
