"""The quantize-check stage: what 4-bit weights save and cost, before an evaluation is paid for.

The adapter is merged once, in 32 bits; the tuned model is then loaded in 16 bits (bfloat16) and in
NF4 with double quantization. Both read the validation rows with the teacher's answers (teacher
forcing), and are compared token by token on the answers, a row at a time: at a vocabulary of 128k,
the log probabilities of all rows would take gigabytes.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.chat import Rendered, render
from components.core.errors import DataError, OutOfMemory
from components.core.fingerprints import check_base
from components.core.ledger import Ledger, peak_memory, stopwatch
from components.core.model_files import MERGED
from components.core.models import (
    check_head_is_untied,
    free_memory,
    lacks_memory,
    load_4bit,
    load_model,
    load_tokenizer,
    save_merged,
)
from components.core.progress import headline, say, task
from components.core.records import QuantizationReport, RaftRow, read_jsonl
from components.core.storage import begin_artifact, finish_artifact, provenance, verify, write_json
from components.core.weight_sizes import predict_weight_bytes, weight_bytes
from components.quantize_check.comparison import Comparison, answer_log_probabilities
from components.quantize_check.config import QuantizeCheckConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXPORT = "model"


def run(config: QuantizeCheckConfig) -> QuantizationReport:
    """Write `quantization.json` and `ledger.json`, and `model/` with `--export`.

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
        if config.quantize_lm_head:
            check_head_is_untied(config.base_model)
        rows, too_long = _read_rows(config, tokenizer)
        begin_artifact(output, "quantize-check", settings=provenance(config))
        # Next to the output, whose disk has room for a model.
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
                    "merged. Use a larger GPU (k8s/overlays), or lower --max-tokens.",
                ) from error
            if config.export == "merged":
                merged.rename(output / EXPORT)
        ledger.count(tokens_in=2 * sum(len(row.ids) for row in rows))
        write_json(output / QuantizationReport.FILE, report)
    finish_artifact(output)
    say(f"  {report.verdict}")
    return report


def _read_rows(
    config: QuantizeCheckConfig, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Rendered], int]:
    """The first validation rows that fit, and how many before them did not."""
    path = Path(config.dataset) / "validation.jsonl"
    rows: list[Rendered] = []
    too_long = 0
    for row in read_jsonl(path, RaftRow):
        rendered = render(tokenizer, row.instruction, row.cot_answer)
        if len(rendered.ids) > config.max_tokens:
            too_long += 1
            continue
        rows.append(rendered)
        if len(rows) == config.max_rows:
            break
    message = f"{too_long} rows are longer than --max-tokens {config.max_tokens}"
    if not rows:
        raise DataError(
            "no validation row to compare on" + f" ({message})" * bool(too_long),
            path=path,
            hint="Generate with --validation-fraction above 0, or raise --max-tokens.",
        )
    if too_long:
        say(f"  {message} and are skipped")
    return rows, too_long


def _compare(
    config: QuantizeCheckConfig, tokenizer: Any, rows: list[Rendered], too_long: int, merged: Path
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
        # By whether the output head is quantized.
        small = {False: load_4bit(str(merged), None, torch.bfloat16)}
    if config.quantize_lm_head:
        small[True] = load_4bit(str(merged), None, torch.bfloat16, quantize_lm_head=True)
    # Right after loading: on a CPU bitsandbytes repacks weights at their first use.
    bytes_16bit = weight_bytes(full)
    bytes_4bit = {head: weight_bytes(model) for head, model in small.items()}
    judged = small[config.quantize_lm_head]
    kept = _kept_16bit(judged)
    if config.export == "4bit":
        judged.save_pretrained(Path(config.output) / EXPORT)
        tokenizer.save_pretrained(Path(config.output) / EXPORT)
    comparisons = {head: Comparison() for head in small}
    with task("reading answers", len(rows), "rows") as progress:
        for row in rows:
            reference = answer_log_probabilities(full, row)
            for head, model in small.items():
                comparisons[head].add(
                    reference, answer_log_probabilities(model, row), row.ids[row.start :]
                )
            progress.advance()
    predicted = predict_weight_bytes(str(merged), quantize_lm_head=config.quantize_lm_head)
    report = judge(
        config,
        comparisons[config.quantize_lm_head],
        len(rows),
        bytes_16bit,
        bytes_4bit[config.quantize_lm_head],
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
            "quantize_lm_head": config.quantize_lm_head,
            "lm_head_16bit": comparisons[False].with_sizes(bytes_16bit, bytes_4bit[False])
            if config.quantize_lm_head
            else None,
            "exported": config.export,
        }
    )


def judge(
    config: QuantizeCheckConfig,
    comparison: Comparison,
    rows: int,
    bytes_16bit: int,
    bytes_4bit: int,
    bytes_kept: int,
) -> QuantizationReport:
    """The figures, and whether they are within the limits."""
    ratio = bytes_4bit / bytes_16bit
    faults = []
    if comparison.token_agreement < config.min_agreement:
        faults.append(f"agreement is below {config.min_agreement:.1%}")
    if ratio > config.max_memory_ratio:
        faults.append(f"memory is above {config.max_memory_ratio:.1%}")
    measured = (
        f"4-bit weights take {ratio:.1%} of the 16-bit ones "
        f"({bytes_4bit / 1e6:.2f} of {bytes_16bit / 1e6:.2f} MB; {bytes_kept / 1e6:.2f} MB stay in "
        f"16 bits) and agree on {comparison.token_agreement:.1%} of {comparison.tokens} answer "
        "tokens"
    )
    return QuantizationReport(
        weight_bytes_16bit=bytes_16bit,
        weight_bytes_4bit=bytes_4bit,
        memory_ratio=ratio,
        bytes_kept_16bit=bytes_kept,
        rows=rows,
        tokens=comparison.tokens,
        token_agreement=comparison.token_agreement,
        mean_kl=comparison.mean_kl,
        perplexity_16bit=comparison.perplexity_16bit,
        perplexity_4bit=comparison.perplexity_4bit,
        min_agreement=config.min_agreement,
        max_memory_ratio=config.max_memory_ratio,
        passed=not faults,
        decision="stop" if faults and config.gate == "stop" else "go",
        verdict=f"{'PASS' if not faults else 'FAIL'}: {measured}"
        + (f"; {' and '.join(faults)}" if faults else ""),
    )


def _kept_16bit(model: Any) -> dict[str, int]:
    """Bytes of the weights that are not quantized, by name, those of all layers together.

    Embeddings and the head make most of it, the more the smaller the model is.
    """
    kept: Counter[str] = Counter()
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point():
            kept[re.sub(r"\.\d+\.", ".*.", name)] += tensor.numel() * tensor.element_size()
    return dict(kept)
