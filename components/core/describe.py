"""A stage's result in a few figures, one sentence and one table.

Made from the records alone, so that a step shows its own result and the summary those of all
stages.
"""

from pydantic import BaseModel

from components.core.ledger import RunLedger
from components.core.pages import Description, Table
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    TrainingRecord,
)

Figure = float | int | str | bool

RULES_WROTE = (
    "Rules wrote these questions (--teacher extractive), not a model: they are for trials only, "
    "not for training a model that will be used."
)
RULES_ANSWERED = (
    "Rules wrote the answers to the given questions (--teacher extractive), not a model: they "
    "quote the golden sentences and do not reason."
)
FEW_ROWS = 200


def by_rules(teacher: str, gold_questions: str) -> list[str]:
    """A warning where no model wrote the rows, whose questions may have been given."""
    if teacher != "extractive":
        return []
    return [RULES_ANSWERED if gold_questions else RULES_WROTE]


def few_rows(rows: int) -> list[str]:
    """A warning where rows are too few to train on."""
    if rows >= FEW_ROWS:
        return []
    return [f"Only {counted(rows, 'row')}: a few hundred to a thousand are recommended."]


def figures(record: object) -> dict[str, Figure]:
    """The scalars of a result by name, for a table of metrics, without those that are unknown."""
    fields = dict(record) if isinstance(record, BaseModel) else {}
    if isinstance(record, GenerationReport):
        fields |= {f"rows_{split}": count for split, count in record.rows.items()}
        fields["dropped"] = sum(record.dropped.values())
    if isinstance(record, Evaluation):
        for arm in record.arms:
            name = arm.name.replace("-", "_")
            fields |= {f"{name}_f1": arm.f1, f"{name}_em": arm.em, f"{name}_contains": arm.contains}
    return {name: value for name, value in fields.items() if isinstance(value, Figure)}


def describe(record: object) -> Description | None:
    """A result in words; None for other records."""
    match record:
        case GenerationReport():
            splits = ", ".join(f"{count} {split}" for split, count in record.rows.items())
            sentence = f"{splits} rows from {counted(record.documents, 'document')}."
            dropped = [(reason, str(count)) for reason, count in record.dropped.items()]
            sentence = " ".join([sentence, *record.warnings])
            return Description("generate", sentence, Table(("dropped because", "rows"), dropped))
        case TrainingRecord():
            loss = "no validation rows"
            if record.validation_loss is not None:
                loss = f"validation loss {record.validation_loss:.4f}"
            sentence = f"{record.rows_train} rows, {record.steps} steps, {loss}."
            curve = [
                (str(point.step), f"{point.loss:.4f}")
                for point in record.curve
                if point.split == "validation"
            ]
            return Description(
                "train",
                " ".join([sentence, *record.about_rows, *record.warnings]),
                Table(("step", "validation loss"), curve),
            )
        case QuantizationReport():
            stop = " The gate is closed: eval does not run." * (record.decision == "stop")
            sentence = " ".join([f"{record.verdict}.{stop}", *record.about_rows])
            return Description("quantize-check", sentence, _quantization(record))
        case Evaluation():
            sentence = f"{counted(record.questions, 'question')}."
            if record.retention is not None:
                sentence += f" 4 bits keep {record.retention:.1%} of the tuned model's F1."
            if record.recall is not None:
                share = f"{record.recall:.1%} of the golden documents"
                sentence += f" {record.retrieve} finds {share}."
            return Description("eval", sentence, arms(record))
    return None


def _quantization(record: QuantizationReport) -> Table:
    small = f"{megabytes(record.weight_bytes_4bit)} ({record.memory_ratio:.1%})"
    agreement = f"{record.token_agreement:.1%} of {record.tokens}"
    complete, same, f1_kept = (
        "not known" if bounds is None else with_interval(value, bounds, record.rows, ".1%")
        for value, bounds in (
            (record.complete_4bit, record.complete_4bit_ci),
            (record.same_answer, record.same_answer_ci),
            (record.f1_kept or 0, record.f1_kept_ci),
        )
    )
    rows = [
        ("weights", megabytes(record.weight_bytes_16bit), small),
        ("largest memory allowed", "", f"{record.max_memory_ratio:.1%}"),
        ("answers", "", f"{record.rows} ({record.rows_training} to training rows)"),
        ("complete answers", f"{record.complete_16bit:.1%}", complete),
        ("same answer", "", same),
        ("F1", f"{record.f1_16bit:.3f}", f"{record.f1_4bit:.3f}"),
        ("F1 kept", "", f1_kept),
        ("perplexity", f"{record.perplexity_16bit:.3f}", f"{record.perplexity_4bit:.3f}"),
        ("equal answer tokens", "", agreement),
        ("mean divergence (KL)", "", f"{record.mean_kl:.5f} nats a token"),
        ("rows skipped, too long", "", str(record.rows_too_long)),
    ]
    return Table(("", "16-bit", "4-bit"), rows)


def arms(record: Evaluation) -> Table:
    """The scores of every arm."""
    return Table(
        ("arm", record.metric, "95 % interval", "EM", "contains", "cut off", "no answer"),
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
            f"{entry.gpu_count} × {entry.gpu}" if entry.gpu else "CPU",
            f"{entry.tokens_in:,} / {entry.tokens_out:,}",
            megabytes(entry.bytes_fetched) if entry.bytes_fetched else "",
            money(entry.cost),
        )
        for entry in run.stages
    ]
    fetched = megabytes(run.bytes_fetched)
    total = ("all", "", duration(run.seconds), "", "", fetched, money(run.cost))
    columns = ("step", "outcome", "time", "hardware", "tokens in / out", "fetched", "cost")
    return Table(columns, [*rows, total])


def money(cost: float | None) -> str:
    """An amount, or "not priced" where it is unknown, which is not the same as free."""
    return "not priced" if cost is None else f"{cost:.2f} USD"


def megabytes(size: int) -> str:
    """`16,060.5 MB`."""
    return f"{size / 1e6:,.1f} MB"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 question`, `1,200 questions`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def interval(bounds: tuple[float, float], n: int, form: str = ".3f") -> str:
    """A 95 % interval over n questions; "" for one question, of which a bootstrap knows nothing."""
    return f"{bounds[0]:{form}} – {bounds[1]:{form}}" if n > 1 else ""


def with_interval(value: float, bounds: tuple[float, float], n: int, form: str = ".3f") -> str:
    """A score, and its interval in brackets where there is one."""
    between = interval(bounds, n, form)
    return f"{value:{form}}" + f" ({between})" * bool(between)


def duration(seconds: float) -> str:
    """Seconds in words: `5.0 s`, `1 min 5 s`, `2 h 1 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
