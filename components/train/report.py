"""The page about a training: what went well and what did not in words, then curves and figures.

The curves are drawn as SVG, so that the page is one file, follows the reader's colours, and the
image of this stage needs no plotting library.
"""

import html
import math
from collections.abc import Sequence
from statistics import fmean

from components.describe import Table, describe, duration, html_table, page
from components.records import LossPoint, TrainingRecord

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 300, 56, 36

STYLE = """
svg { width: 100%; max-width: 720px; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
.train { fill: none; stroke: #2a7fc4; stroke-width: 1.5 }
.validation { fill: none; stroke: #c4622a; stroke-width: 2 }
circle { fill: #c4622a }
.axis { stroke: #8886; stroke-width: 1 }
.warning { border-left: 4px solid #c4622a; padding-left: .8rem }
"""


def warnings(curve: Sequence[LossPoint]) -> list[str]:
    """What a person should know about a training that came to its end, in sentences."""
    said = []
    train = [point.loss for point in curve if point.split == "train"]
    if above_start(train):
        said.append(
            f"The training loss ended above where it began ({fmean(train[-5:]):.3f} against "
            f"{train[0]:.3f}): lower --learning-rate or raise --warmup-ratio."
        )
    validation = [point for point in curve if point.split == "validation"]
    if validation:
        best = min(validation, key=lambda point: point.loss)
        last = validation[-1]
        if overfits([point.loss for point in validation]):
            said.append(
                f"Overfitting: the validation loss was least at step {best.step} "
                f"({best.loss:.4f}) and ended at {last.loss:.4f}. Lower --epochs, --rank or "
                "--learning-rate, or generate more rows."
            )
    return said


def overfits(validation: Sequence[float]) -> bool:
    """Whether the last validation loss lies 2 % above the least."""
    return len(validation) > 1 and validation[-1] > 1.02 * min(validation)


def above_start(losses: Sequence[float]) -> bool:
    """Whether the last five losses lie above the first, with five more steps to get over it."""
    return len(losses) >= 10 and fmean(losses[-5:]) > losses[0]


def write_page(record: TrainingRecord) -> str:
    """The page of a training, self-contained."""
    description = describe(record)
    parts = [f"<p>{html.escape(description.sentence)}</p>" if description else ""]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in record.warnings]
    parts.append(_chart("loss per answer token (nats), by step", record.curve))
    rates = [
        LossPoint(step=point.step, loss=point.learning_rate, split="train")
        for point in record.curve
        if point.learning_rate is not None
    ]
    parts.append(html_table(_figures(record)))
    if record.sweep and description:
        parts += ["<h2>Settings tried</h2>", html_table(description.table)]
    parts.append(_chart("learning rate, by step", rates, height=160))
    return page("train", "\n".join(filter(None, parts)), STYLE)


def _figures(record: TrainingRecord) -> Table:
    rows = [
        ("rows", f"{record.rows_train} and {record.rows_validation} for validation"),
        ("left out, too long", str(record.rows_too_long)),
        ("steps", str(record.steps)),
        ("time", duration(record.seconds)),
        ("tokens", f"{record.tokens:,} ({record.tokens_per_second:,.0f} a second)"),
        ("model FLOPs utilisation", "not known" if record.mfu is None else f"{record.mfu:.1%}"),
        ("peak memory", f"{record.peak_memory_bytes / 2**30:.1f} GiB"),
        ("batching", record.batching),
        *([("processes", record.sharing)] if record.sharing else []),
        (
            "parameters trained",
            f"{record.trainable_parameters:,} of {record.total_parameters:,}",
        ),
    ]
    return Table(("", ""), rows)


def _chart(title: str, points: Sequence[LossPoint], height: int = HEIGHT) -> str:
    """Lines over steps, as SVG; nothing where there is nothing to draw."""
    points = [point for point in points if math.isfinite(point.loss)]
    if not points:
        return ""
    last = max(*(point.step for point in points), 1)
    top = max(point.loss for point in points) or 1.0

    def place(point: LossPoint) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 10) * point.step / last
        return x, (height - BOTTOM) - (height - BOTTOM - 14) * max(point.loss, 0) / top

    floor = height - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">',
        f'<path class="axis" d="M{LEFT} 10V{floor}H{WIDTH - 10}"/>',
        f'<text x="{LEFT - 6}" y="18" text-anchor="end">{top:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{WIDTH - 10}" y="{floor + 18}" text-anchor="end">{last}</text>',
        f'<text x="{LEFT}" y="{floor + 18}">{html.escape(title)}</text>',
    ]
    for split in ("train", "validation"):
        places = [place(point) for point in points if point.split == split]
        if places:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{split}" points="{path}"/>')
        if split == "validation" and places:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
            x, y = places[-1]
            parts.append(
                f'<text x="{x - 8:.1f}" y="{y - 8:.1f}" text-anchor="end">validation</text>'
            )
    return "\n".join([*parts, "</svg>"])
