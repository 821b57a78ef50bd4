"""A stage's result in a few figures, one sentence and one table.

Made from the records alone, so that a step shows its own result and the summary those of all
stages.
"""

from components.core.ledger import LedgerEntry, RunLedger
from components.core.pages import Description, Table
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    TrainingRecord,
)

Figure = float | int | str | bool
MEGABYTE = 1e6


FIGURES: dict[type, tuple[str, ...]] = {
    GenerationReport: ("documents", "chunks_used"),
    TrainingRecord: (
        "validation_loss", "rows_train", "steps", "tokens_per_second", "trainable_parameters",
        "peak_memory_bytes", "mfu",
    ),
    QuantizationReport: (
        "passed", "decision", "memory_ratio", "token_agreement", "mean_kl", "perplexity_16bit",
        "perplexity_4bit", "weight_bytes_16bit", "weight_bytes_4bit", "verdict",
    ),
    Evaluation: ("questions", "retention"),
}  # fmt: skip
"""The fields of a record that its step shows as metrics."""


def figures(record: object) -> dict[str, Figure]:
    """The scalars of a result by name, for a table of metrics, without those that are unknown."""
    values: dict[str, Figure | None] = {
        name: getattr(record, name) for name in FIGURES.get(type(record), ())
    }
    match record:
        case GenerationReport():
            values |= {f"rows_{split}": count for split, count in record.rows.items()}
            values["dropped"] = sum(record.dropped.values())
        case Evaluation():
            for arm in record.arms:
                name = arm.name.replace("-", "_")
                for metric in ("f1", "em", "contains"):
                    values[f"{name}_{metric}"] = getattr(arm, metric)
    return {name: value for name, value in values.items() if value is not None}


def describe(record: object) -> Description | None:
    """A result in words; None for other records."""
    match record:
        case GenerationReport():
            kept = ", ".join(f"{count} {split}" for split, count in record.rows.items())
            return Description(
                "generate",
                f"{kept} rows from {counted(record.documents, 'document')}.",
                Table(
                    ("dropped because", "rows"),
                    [(reason, str(count)) for reason, count in record.dropped.items()],
                ),
            )
        case TrainingRecord():
            return _training(record)
        case QuantizationReport():
            stop = " The gate is closed: eval does not run." * (record.decision == "stop")
            sentence = f"{record.verdict}.{stop}"
            return Description("quantize-check", sentence, _quantization(record))
        case Evaluation():
            return Description("eval", _retention(record), arms(record))
    return None


def _training(record: TrainingRecord) -> Description:
    loss = (
        "no validation rows"
        if record.validation_loss is None
        else (f"validation loss {record.validation_loss:.4f}")
    )
    sentence = f"{record.rows_train} rows, {record.steps} steps, {loss}."
    sentence = " ".join([sentence, *record.warnings])
    curve = [
        (str(point.step), f"{point.loss:.4f}")
        for point in record.curve
        if point.split == "validation"
    ]
    return Description("train", sentence, Table(("step", "validation loss"), curve))


def _quantization(record: QuantizationReport) -> Table:
    rows = [
        (
            "weights",
            _megabytes(record.weight_bytes_16bit),
            f"{_megabytes(record.weight_bytes_4bit)} ({record.memory_ratio:.1%})",
        ),
        ("perplexity", f"{record.perplexity_16bit:.3f}", f"{record.perplexity_4bit:.3f}"),
        (
            "equal answer tokens",
            "",
            f"{record.token_agreement:.1%} of {record.tokens} "
            f"(at least {record.min_agreement:.1%})",
        ),
        ("mean divergence (KL)", "", f"{record.mean_kl:.5f} nats a token"),
        ("largest memory allowed", "", f"{record.max_memory_ratio:.1%}"),
    ]
    if record.predicted_bytes_4bit:
        rows += [
            (
                "weights predicted",
                _megabytes(record.predicted_bytes_16bit),
                _megabytes(record.predicted_bytes_4bit),
            ),
            (
                "time to load",
                duration(record.load_seconds_16bit),
                duration(record.load_seconds_4bit),
            ),
            ("peak memory, both loaded", "", _megabytes(record.peak_memory_bytes)),
        ]
    rows += [
        (f"stays in 16 bits: {name}", "", f"{size / MEGABYTE:,.2f} MB")
        for name, size in sorted(record.kept.items(), key=lambda item: -item[1])
    ]
    if record.rows_too_long:
        rows.append(("rows skipped, too long", "", str(record.rows_too_long)))
    if record.lm_head_16bit is not None:
        full = record.lm_head_16bit
        rows.append(
            (
                "with the head in 16 bits",
                "",
                f"{_megabytes(full.weight_bytes_4bit)} ({full.memory_ratio:.1%}), "
                f"{full.token_agreement:.1%} equal tokens, perplexity {full.perplexity_4bit:.3f}",
            )
        )
    return Table(("", "16-bit", "4-bit"), rows)


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.1f} MB"


def _retention(record: Evaluation) -> str:
    questions = f"{counted(record.questions, 'question')}."
    if record.retention is None:
        return questions
    return f"{questions} 4 bits keep {record.retention:.1%} of the tuned model's F1."


def arms(record: Evaluation) -> Table:
    """The scores of every arm."""
    return Table(
        ("arm", "F1", "95 % interval", "EM", "contains", "cut off", "no answer"),
        [
            (
                arm.name,
                f"{arm.f1:.3f}",
                interval(arm.f1_ci, arm.n) or "–",
                f"{arm.em:.3f}",
                f"{arm.contains:.3f}",
                f"{arm.truncated:.1%}",
                f"{arm.unanswered:.1%}",
            )
            for arm in record.arms
        ],
    )


def ledger_table(run: RunLedger) -> Table:
    """The ledger of a run, with the reason of each failed attempt."""
    rows = [
        (
            entry.stage,
            entry.failed or "done",
            duration(entry.seconds),
            hardware(entry),
            f"{entry.tokens_in:,} / {entry.tokens_out:,}",
            money(entry.cost, entry.currency),
        )
        for entry in run.stages
    ]
    total = ("all", "", duration(run.seconds), "", "", money(run.cost, run.currency))
    return Table(("step", "outcome", "time", "hardware", "tokens in / out", "cost"), [*rows, total])


def hardware(entry: LedgerEntry) -> str:
    """The GPUs of a stage by count and name; `CPU` if it had none."""
    return f"{entry.gpu_count} × {entry.gpu}" if entry.gpu else "CPU"


def money(cost: float | None, currency: str) -> str:
    """An amount, or "not priced" where it is unknown, which is not the same as free."""
    return "not priced" if cost is None else f"{cost:.2f} {currency}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 question`, `1,200 questions`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def interval(bounds: tuple[float, float], n: int) -> str:
    """A 95 % interval over n questions; "" for one question, of which a bootstrap knows nothing."""
    return f"{bounds[0]:.3f} – {bounds[1]:.3f}" if n > 1 else ""


def with_interval(value: float, bounds: tuple[float, float], n: int) -> str:
    """A score, and its interval in brackets where there is one."""
    between = interval(bounds, n)
    return f"{value:.3f}" + f" ({between})" * bool(between)


def duration(seconds: float) -> str:
    """Seconds in words: `5.0 s`, `1 min 5 s`, `2 h 1 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
