"""What a stage found, in the few figures and words that a run's page has room for.

Made from the records alone, so that a step can show its own result and the summary can show
everyone's. Texts from models and data (a model's name, an error) are escaped.
"""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from components.core.ledger import LedgerEntry, RunLedger
from components.core.records import (
    Evaluation,
    GenerationReport,
    QuantizationReport,
    TrainingRecord,
)

Figure = float | int | str | bool


class Table(NamedTuple):
    """Rows of text under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Description(NamedTuple):
    """A result: a title, one sentence, and a table."""

    title: str
    sentence: str
    table: Table


def figures(record: object) -> dict[str, Figure]:
    """The scalars of a result by name, for a table of metrics; what is unknown is left out."""
    found: dict[str, Figure | None] = {}
    match record:
        case GenerationReport():
            found = {f"rows_{split}": count for split, count in record.rows.items()}
            found |= {"documents": record.documents, "chunks_used": record.chunks_used}
            found["dropped"] = sum(record.dropped.values())
        case TrainingRecord():
            found = {
                "validation_loss": record.validation_loss,
                "rows_train": record.rows_train,
                "steps": record.steps,
                "tokens_per_second": record.tokens_per_second,
                "trainable_parameters": record.trainable_parameters,
                "peak_memory_bytes": record.peak_memory_bytes,
                "mfu": record.mfu,
            }
        case QuantizationReport():
            found = {
                "passed": record.passed,
                "decision": record.decision,
                "memory_ratio": record.memory_ratio,
                "token_agreement": record.token_agreement,
                "mean_kl": record.mean_kl,
                "perplexity_16bit": record.perplexity_16bit,
                "perplexity_4bit": record.perplexity_4bit,
                "weight_bytes_16bit": record.weight_bytes_16bit,
                "weight_bytes_4bit": record.weight_bytes_4bit,
                "verdict": record.verdict,
            }
        case Evaluation():
            found = {"questions": record.questions, "retention": record.retention}
            for arm in record.arms:
                name = arm.name.replace("-", "_")
                found |= {
                    f"{name}_f1": arm.f1,
                    f"{name}_em": arm.em,
                    f"{name}_contains": arm.contains,
                }
    return {name: value for name, value in found.items() if value is not None}


def describe(record: object) -> Description | None:
    """A result in words; None for a record that has nothing to say."""
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
    megabytes = 1e6
    more: list[tuple[str, str, str]] = []
    if record.predicted_bytes_4bit:
        more = [
            (
                "weights predicted",
                f"{record.predicted_bytes_16bit / megabytes:,.1f} MB",
                f"{record.predicted_bytes_4bit / megabytes:,.1f} MB",
            ),
            (
                "time to load",
                duration(record.load_seconds_16bit),
                duration(record.load_seconds_4bit),
            ),
            ("peak memory, both loaded", "", f"{record.peak_memory_bytes / megabytes:,.1f} MB"),
        ]
    more += [
        (f"stays in 16 bits: {name}", "", f"{size / megabytes:,.2f} MB")
        for name, size in sorted(record.kept.items(), key=lambda item: -item[1])
    ]
    if record.rows_too_long:
        more.append(("rows skipped, too long", "", str(record.rows_too_long)))
    if record.lm_head_16bit is not None:
        full = record.lm_head_16bit
        more += [
            (
                "with the head in 16 bits",
                "",
                f"{full.weight_bytes_4bit / megabytes:,.1f} MB ({full.memory_ratio:.1%}), "
                f"{full.token_agreement:.1%} equal tokens, perplexity {full.perplexity_4bit:.3f}",
            )
        ]
    return Table(
        ("", "16-bit", "4-bit"),
        [
            (
                "weights",
                f"{record.weight_bytes_16bit / megabytes:,.1f} MB",
                f"{record.weight_bytes_4bit / megabytes:,.1f} MB ({record.memory_ratio:.1%})",
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
            *more,
        ],
    )


def _retention(record: Evaluation) -> str:
    asked = f"{counted(record.questions, 'question')}."
    if record.retention is None:
        return asked
    return f"{asked} 4 bits keep {record.retention:.1%} of the tuned model's F1."


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


def costs(run: RunLedger) -> Table:
    """The account of a run; an attempt that failed says why."""
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
    """How many GPUs of which kind a stage ran on, or that it had none."""
    return f"{entry.gpu_count} × {entry.gpu}" if entry.gpu else "CPU"


def money(cost: float | None, currency: str) -> str:
    """An amount, or "not priced": what the price table does not know is never free."""
    return "not priced" if cost is None else f"{cost:.2f} {currency}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 question`, `1,200 questions`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def interval(bounds: tuple[float, float], n: int) -> str:
    """A 95 % interval over n questions; "" for one question, whose bootstrap only repeats it."""
    return f"{bounds[0]:.3f} – {bounds[1]:.3f}" if n > 1 else ""


def with_interval(value: float, bounds: tuple[float, float], n: int) -> str:
    """A score, and its interval in brackets where there is one."""
    between = interval(bounds, n)
    return f"{value:.3f}" + f" ({between})" * bool(between)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# ---- Markdown and HTML -------------------------------------------------------------------------


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(plain(cell) for cell in cells) + " |"

    rule = "|" + "---|" * len(table.headings)
    return "\n".join([line(table.headings), rule, *map(line, table.rows)])


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{char}" if char in "\\|`*_[]#" else char for char in escaped)


def as_markdown(description: Description) -> str:
    """A section."""
    parts = [f"## {description.title}", plain(description.sentence)]
    if description.table.rows:
        parts.append(markdown_table(description.table))
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
"""


def html_table(table: Table) -> str:
    """A table in HTML."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>\n<thead>{row(table.headings, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table>"


def page(title: str, body: str, style: str = "") -> str:
    """A self-contained HTML page around a body that is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )


def as_page(description: Description) -> str:
    """A page of its own."""
    body = f"<p>{html.escape(description.sentence)}</p>"
    if description.table.rows:
        body += "\n" + html_table(description.table)
    return page(description.title, body)
