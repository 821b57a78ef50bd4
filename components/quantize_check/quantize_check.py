"""The quantize-check stage: what 4-bit weights save and cost, before anyone pays for eval.

The adapter is merged once, in 32 bits; the tuned model is then held in 16 bits (bfloat16) and in
NF4 with double quantization. Both read the validation rows with the teacher's answers given
(teacher forcing), and are compared token by token on the answers, a row at a time: at a vocabulary
of 128k, the log probabilities of all rows would take gigabytes.
"""

import math
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.errors import DataError, ModelError, OutOfMemory
from components.core.ledger import Ledger, peak_memory, stopwatch
from components.core.model_files import MERGED
from components.core.models import (
    check_base,
    check_head_is_untied,
    free_memory,
    lacks_memory,
    load_4bit,
    load_model,
    load_tokenizer,
    predict_weight_bytes,
    save_merged,
    weight_bytes,
)
from components.core.progress import headline, say, task
from components.core.records import HeadComparison, QuantizationReport, RaftRow, read_jsonl
from components.core.storage import begin_artifact, finish_artifact, provenance, verify, write_json
from components.quantize_check.config import QuantizeCheckConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

EXPORT = "model"


class Row(NamedTuple):
    """Token ids of a conversation, and the place of its answer's first token."""

    ids: list[int]
    start: int


def run(config: QuantizeCheckConfig) -> QuantizationReport:
    """Write `quantization.json` and `ledger.json`, and `model/` where an export is asked for.

    Raises:
        OutOfMemory: the memory cannot hold both models.
        DataError: the dataset or adapter is missing or damaged, or there is no validation row.
        ModelError: the base model or the adapter cannot be used.
    """
    output = Path(config.output)
    headline("quantize-check", f"{config.base_model} + {config.adapter} → {output}")
    verify(Path(config.dataset), "--dataset")
    verify(Path(config.adapter), "--adapter")
    with Ledger("quantize-check", output, config.prices) as ledger:
        tokenizer = load_tokenizer(config.base_model)
        if config.head == "4bit":
            check_head_is_untied(config.base_model)
        rows, too_long = _conversations(config, tokenizer)
        begin_artifact(output, "quantize-check", settings=provenance(config))
        # Beside the output, whose disk has room for a model.
        with tempfile.TemporaryDirectory(prefix=MERGED, dir=output) as scratch:
            merged = Path(scratch) / f"{MERGED}model"
            try:
                report = _compare(config, tokenizer, rows, too_long, merged)
            except (MemoryError, RuntimeError) as error:
                if not lacks_memory(error):
                    raise
                raise OutOfMemory(
                    "the memory cannot hold the model in 16 and in 4 bits at once",
                    hint="An 8B model needs about 24 GB for both, and 32 GB while the adapter is "
                    "merged. Take a larger GPU (k8s/overlays), or lower --max-tokens.",
                ) from None
            if config.export == "merged":
                merged.rename(output / EXPORT)
        ledger.count(tokens_in=2 * sum(len(row.ids) for row in rows))
        write_json(output / QuantizationReport.FILE, report)
    finish_artifact(output)
    say(f"  {report.verdict}")
    return report


def _compare(
    config: QuantizeCheckConfig, tokenizer: Any, rows: list[Row], too_long: int, merged: Path
) -> QuantizationReport:
    import torch

    check_base(config.adapter, config.base_model)
    say("  merging the adapter")
    save_merged(config.base_model, config.adapter, torch.bfloat16, merged)
    tokenizer.save_pretrained(merged)
    free_memory()
    say("  loading the model in 16 and in 4 bits")
    with stopwatch() as seconds_16bit:
        full = load_model(str(merged), torch.bfloat16)
    with stopwatch() as seconds_4bit:
        small = {"full": load_4bit(str(merged), None, torch.bfloat16)}
    if config.head == "4bit":
        small["4bit"] = load_4bit(str(merged), None, torch.bfloat16, head=True)
    # Right after loading: on a CPU bitsandbytes repacks weights at their first use.
    bytes_16bit = weight_bytes(full)
    bytes_4bit = {head: weight_bytes(model) for head, model in small.items()}
    kept = _kept(small[config.head])
    if config.export == "4bit":
        small[config.head].save_pretrained(Path(config.output) / EXPORT)
        tokenizer.save_pretrained(Path(config.output) / EXPORT)
    comparisons = {head: _Comparison() for head in small}
    with task("reading answers", len(rows), "rows") as progress:
        for row in rows:
            reference = _answer_log_probabilities(full, row)
            for head, model in small.items():
                comparisons[head].add(
                    reference, _answer_log_probabilities(model, row), row.ids[row.start :]
                )
            progress.advance()
    predicted = predict_weight_bytes(str(merged), head=config.head == "4bit")
    report = _judge(
        config,
        comparisons[config.head],
        len(rows),
        bytes_16bit,
        bytes_4bit[config.head],
        sum(kept.values()),
    )
    return report.model_copy(
        update={
            "rows_too_long": too_long,
            "predicted_bytes_16bit": predicted[0],
            "predicted_bytes_4bit": predicted[1],
            "kept": kept,
            "load_seconds_16bit": round(seconds_16bit[0], 3),
            "load_seconds_4bit": round(seconds_4bit[0], 3),
            "peak_memory_bytes": peak_memory(),
            "head": config.head,
            "head_kept": (
                _head_comparison(comparisons["full"], bytes_4bit["full"], bytes_16bit)
                if config.head == "4bit"
                else None
            ),
            "exported": config.export,
        }
    )


def _head_comparison(found: "_Comparison", small: int, full: int) -> HeadComparison:
    return HeadComparison(
        weight_bytes_4bit=small,
        memory_ratio=small / full,
        token_agreement=found.agreed / found.tokens,
        mean_kl=found.divergence / found.tokens,
        perplexity_4bit=math.exp(found.loss_4bit / found.tokens),
    )


def _conversations(
    config: QuantizeCheckConfig, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Row], int]:
    """The conversations of the first validation rows that fit, and how many before did not."""
    path = Path(config.dataset) / "validation.jsonl"
    found: list[Row] = []
    too_long = 0
    for row in read_jsonl(path, RaftRow):
        encoded = _encode(row, tokenizer)
        if len(encoded.ids) > config.max_tokens:
            too_long += 1
            continue
        found.append(encoded)
        if len(found) == config.max_rows:
            break
    longer = f"{too_long} rows are longer than --max-tokens {config.max_tokens}"
    if not found:
        raise DataError(
            "no validation row to compare on" + f" ({longer})" * bool(too_long),
            path=path,
            hint="Generate with --validation-fraction above 0, or raise --max-tokens.",
        )
    if too_long:
        say(f"  {longer} and are left out")
    return found, too_long


def _encode(row: RaftRow, tokenizer: Any) -> Row:
    """The conversation as the chat template writes it, and its answer's first token.

    The generation prompt need not be how the conversation begins (a template may add an empty
    thought, or today's date twice), so the answer's text is looked for, from the end.
    """
    prompt = [{"role": "user", "content": row.instruction}]
    answer = [{"role": "assistant", "content": row.cot_answer}]
    text = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    place = text.rfind(row.cot_answer.strip())
    if place >= 0 and tokenizer.is_fast:
        # The template has written all special tokens itself.
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = (end for _, end in encoded["offset_mapping"])
        start = next(index for index, end in enumerate(ends) if end > place)
        return Row(list(encoded["input_ids"]), max(start, 1))
    # A template that rewrites answers: what the prompt and the conversation have in common.
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template(prompt + answer, return_dict=True)["input_ids"]
    pairs = zip(asked["input_ids"], whole[:-1], strict=False)
    common = next(
        (index for index, (one, other) in enumerate(pairs) if one != other),
        min(len(asked["input_ids"]), len(whole) - 1),
    )
    return Row(list(whole), max(common, 1))


def _answer_log_probabilities(model: Any, row: Row) -> "torch.Tensor":
    """Log probabilities over the vocabulary at each answer token: (answer tokens, vocabulary).

    Raises:
        ModelError: they are not numbers; two broken models would agree everywhere.
    """
    import torch

    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([row.ids], device=model.device),
            # The prompt's logits would be gigabytes at a 128k vocabulary, and nobody reads them.
            logits_to_keep=len(row.ids) - row.start + 1,
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

        small = small.to(full.device)
        gold = torch.tensor(answer, device=full.device).unsqueeze(1)
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


def _kept(model: Any) -> dict[str, int]:
    """Bytes of the weights that quantization leaves alone, by name, those of all layers together.

    Embeddings and the head make most of it, the more the smaller the model is.
    """
    found: Counter[str] = Counter()
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point():
            found[re.sub(r"\.\d+\.", ".*.", name)] += tensor.numel() * tensor.element_size()
    return dict(found)
