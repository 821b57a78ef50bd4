"""The quantize-check stage: what 4-bit weights save and cost, before an evaluation is paid for.

The adapter is merged once, in 32 bits; the tuned model is then loaded in 16 bits (bfloat16) and in
NF4 with double quantization. Without a GPU both compute in 32 bits. Both answer the prompts of
validation rows, and of training rows where those are too few; `gate` judges the answers. Both also
read the rows with the teacher's answers (teacher forcing), and are compared token by token, a row
at a time: at a vocabulary of 128k, the log probabilities of all rows would take gigabytes.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.describe import describe
from components.core.errors import DataError
from components.core.fingerprints import check_base, read_training
from components.core.ledger import Ledger
from components.core.memory import free_memory, memory_explained
from components.core.model_files import MERGED
from components.core.models import (
    check_head_is_untied,
    choose_dtype,
    context_length,
    expand_4bit,
    load_4bit,
    load_model,
    load_tokenizer,
    save_merged,
)
from components.core.pages import REPORT, as_page, links_to
from components.core.progress import headline, say, task
from components.core.records import (
    AnswerPair,
    GenerationReport,
    QuantizationReport,
    RaftRow,
    read_jsonl,
)
from components.core.storage import (
    begin_artifact,
    finish_artifact,
    provenance,
    put,
    verify,
    write_json,
    write_jsonl,
)
from components.core.weight_sizes import weight_bytes
from components.quantize_check import gate
from components.quantize_check.answers import SPLITS, CheckedRow, complete_rows, pair, read_as_model
from components.quantize_check.comparison import Comparison, answer_log_probabilities
from components.quantize_check.config import QuantizeCheckConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = "answers.jsonl"


def run(config: QuantizeCheckConfig) -> QuantizationReport:
    """Write `quantization.json`, `answers.jsonl`, `report.html` and `ledger.json`.

    Raises:
        OutOfMemory: the memory cannot hold both models.
        DataError: the dataset or adapter is missing or damaged, or there is no row.
        ModelError: the base model or the adapter cannot be used.
    """
    output = Path(config.output)
    headline("quantize-check", f"{config.base_model} + {config.adapter} → {output}")
    verify(Path(config.dataset), "--dataset")
    verify(Path(config.adapter), "--adapter")
    with Ledger("quantize-check", output) as ledger:
        tokenizer = load_tokenizer(config.base_model, config.adapter)
        if config.quantize_lm_head:
            check_head_is_untied(config.base_model)
        rows, too_long = _read_rows(config, tokenizer)
        begin_artifact(output, "quantize-check", settings=provenance(config))
        # Next to the output, whose disk has room for a model.
        with tempfile.TemporaryDirectory(prefix=MERGED, dir=output) as scratch:
            merged = Path(scratch) / f"{MERGED}model"
            with memory_explained(
                "the memory cannot hold the model in 16 and in 4 bits at once",
                hint="An 8B model needs about 24 GB for both, and 32 GB while the adapter is "
                "merged. Use a larger GPU (k8s/overlays), or lower --batch-size, --max-new-tokens "
                "or --max-tokens.",
            ):
                report, pairs = _compare(config, tokenizer, rows, too_long, merged, ledger)
        training = read_training(config.adapter)
        if training and training.template_mismatch:
            verdict = f"{report.verdict}. {training.template_mismatch}"
            report = report.model_copy(update={"verdict": verdict})
        write_jsonl(output / ANSWERS, pairs)
        write_json(output / QuantizationReport.FILE, report)
        links = links_to(output, [("generate", config.dataset), ("train", config.adapter)])
        if description := describe(report):
            put(as_page(description, links), output / REPORT)
    finish_artifact(output)
    say(f"  {report.verdict}")
    return report


def _read_rows(
    config: QuantizeCheckConfig, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[CheckedRow], int]:
    """The first rows that fit, those of the validation before the others, and how many do not."""
    room = context_length(config.base_model, tokenizer) - config.max_new_tokens
    dataset = Path(config.dataset)
    files = {split: dataset / f"{split}.jsonl" for split in SPLITS}
    if dataset.is_file():
        files = {"train": dataset}  # one file has all that is trained on
    candidates = (
        read_as_model(tokenizer, row, split)
        for split, file in files.items()
        if file.is_file() or split == "train"
        for row in read_jsonl(file, RaftRow)
    )
    rows: list[CheckedRow] = []
    too_long = 0
    for row in candidates:
        if len(row.taught.ids) > config.max_tokens or len(row.prompt) > room:
            too_long += 1
            continue
        rows.append(row)
        if len(rows) == config.max_rows:
            break
    message = (
        f"{too_long} rows are longer than --max-tokens {config.max_tokens}, or leave no room for "
        f"--max-new-tokens {config.max_new_tokens}"
    )
    if not rows:
        raise DataError(
            "no row to compare on" + f" ({message})" * bool(too_long),
            path=config.dataset,
            hint="Generate rows first, raise --max-tokens, or lower --max-new-tokens.",
        )
    if too_long:
        say(f"  {message}, and are skipped")
    return rows, too_long


def _compare(
    config: QuantizeCheckConfig,
    tokenizer: Any,
    rows: list[CheckedRow],
    too_long: int,
    merged: Path,
    ledger: Ledger,
) -> tuple[QuantizationReport, list[AnswerPair]]:
    import torch

    check_base(config.adapter, config.base_model)
    say("  merging the adapter")
    save_merged(config.base_model, config.adapter, torch.bfloat16, merged)
    tokenizer.save_pretrained(merged)
    free_memory()
    say("  loading the model in 16 and in 4 bits")
    full = load_model(str(merged), torch.bfloat16)
    head = config.quantize_lm_head
    small = load_4bit(str(merged), None, torch.bfloat16, quantize_lm_head=head)
    # Right after loading: on a CPU bitsandbytes repacks weights at their first use.
    sizes = weight_bytes(full), weight_bytes(small), _bytes_kept(small)
    if (dtype := choose_dtype("auto")) != torch.bfloat16:
        # The same weights, computed with as eval does: many CPUs are slow in bfloat16.
        full = full.to(dtype)
        del small
        small = expand_4bit(load_4bit(str(merged), None, dtype, quantize_lm_head=head))
    comparison = Comparison()
    with task("reading answers", len(rows), "rows") as progress:
        for row in rows:
            comparison.add(
                answer_log_probabilities(full, row.taught),
                answer_log_probabilities(small, row.taught),
                row.taught.ids[row.taught.start :],
            )
            progress.advance()
    completions = [
        complete_rows(full, tokenizer, rows, config, 16),
        complete_rows(small, tokenizer, rows, config, 4),
    ]
    ledger.count(
        tokens_in=2 * sum(len(row.taught.ids) + len(row.prompt) for row in rows),
        tokens_out=sum(len(one.ids) for answers in completions for one in answers),
    )
    pairs = [pair(*each) for each in zip(rows, *completions, strict=True)]
    return report_on(config, comparison, pairs, too_long, *sizes), pairs


def report_on(
    config: QuantizeCheckConfig,
    comparison: Comparison,
    pairs: Sequence[AnswerPair],
    too_long: int,
    bytes_16bit: int,
    bytes_4bit: int,
    bytes_kept: int,
) -> QuantizationReport:
    """The figures, and the verdict on answers and memory."""
    ratio = bytes_4bit / bytes_16bit
    outcome, reasons, figures = gate.judge(
        pairs,
        config.max_new_tokens,
        memory_ratio=ratio,
        max_memory_ratio=config.max_memory_ratio,
    )
    measured = (
        f"{gate.measured(figures)}; 4-bit weights take {ratio:.1%} of the 16-bit ones "
        f"({bytes_4bit / 1e6:.2f} of {bytes_16bit / 1e6:.2f} MB; {bytes_kept / 1e6:.2f} MB stay in "
        "16 bits)"
    )
    return QuantizationReport(
        weight_bytes_16bit=bytes_16bit,
        weight_bytes_4bit=bytes_4bit,
        memory_ratio=ratio,
        bytes_kept_16bit=bytes_kept,
        rows_too_long=too_long,
        max_new_tokens=config.max_new_tokens,
        about_rows=GenerationReport.warnings_of(Path(config.dataset)),
        **figures,
        **comparison.figures(),
        max_memory_ratio=config.max_memory_ratio,
        outcome=outcome,
        decision="stop" if outcome == "fail" and config.gate == "stop" else "go",
        verdict=f"{outcome.upper()}: {'; '.join([*reasons, measured])}",
    )


def _bytes_kept(model: Any) -> int:
    """Of the weights that are not quantized: mostly embeddings and head."""
    weights = [tensor for tensor in model.parameters() if tensor.is_floating_point()]
    return sum(tensor.numel() * tensor.element_size() for tensor in weights)
