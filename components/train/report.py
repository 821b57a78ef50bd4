"""The page about a training: its result and warnings in words, then curves and figures.

The curves are drawn as SVG, so that the page is one file, follows the reader's colours, and the
image of this stage needs no plotting library.
"""

import html
import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from components.core.describe import describe, duration
from components.core.pages import Table, html_table, page
from components.core.records import LossPoint, TrainingRecord

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 300, 56, 36

STYLE = """
svg { width: 100%; max-width: 720px; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
svg path, svg polyline { fill: none; stroke-width: 1.5 }
.axis { stroke: #8886 }
.warning { border-left: 4px solid #c4622a; padding-left: .8rem }
"""
BLUE, ORANGE = "#2a7fc4", "#c4622a"


class Line(NamedTuple):
    """A line of a chart: values by step, with dots where they are few."""

    name: str
    points: Sequence[tuple[int, float]]
    colour: str
    width: float = 1.5
    dots: bool = False


def warnings(curve: Sequence[LossPoint]) -> list[str]:
    """What a person should know about a finished training, in sentences."""
    sentences = []
    train = [point.loss for point in curve if point.split == "train"]
    if above_start(train):
        sentences.append(
            f"The training loss ended above where it began ({fmean(train[-5:]):.3f} against "
            f"{train[0]:.3f}): lower --learning-rate or raise --warmup-ratio."
        )
    validation = [point for point in curve if point.split == "validation"]
    if validation:
        best = min(validation, key=lambda point: point.loss)
        last = validation[-1]
        if overfits([point.loss for point in validation]):
            sentences.append(
                f"Overfitting: the validation loss was lowest at step {best.step} "
                f"({best.loss:.4f}) and ended at {last.loss:.4f}. Lower --epochs, --rank or "
                "--learning-rate, or generate more rows."
            )
    return sentences


def overfits(validation: Sequence[float]) -> bool:
    """Whether the last validation loss is 2 % above the lowest."""
    return len(validation) > 1 and validation[-1] > 1.02 * min(validation)


def above_start(losses: Sequence[float]) -> bool:
    """Whether the last five of at least ten losses are clearly above the first: by 20 % and 0.1.

    Less may be chance: the first loss is that of one batch.
    """
    return len(losses) >= 10 and fmean(losses[-5:]) > 1.2 * losses[0] + 0.1


def write_page(record: TrainingRecord) -> str:
    """The page of a training, self-contained."""
    description = describe(record)
    parts = [f"<p>{html.escape(description.sentence)}</p>" if description else ""]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in record.warnings]
    train, validation = (_losses(record.curve, split) for split in ("train", "validation"))
    lines = [Line("training", train, BLUE), Line("validation", validation, ORANGE, 2, dots=True)]
    parts.append(_chart("loss per answer token (nats), by step", lines))
    parts.append(html_table(_figures(record)))
    rates = [
        (point.step, point.learning_rate)
        for point in record.curve
        if point.learning_rate is not None
    ]
    parts.append(_chart("learning rate, by step", [Line("", rates, BLUE)], height=160))
    return page("train", "\n".join(filter(None, parts)), STYLE)


def _losses(curve: Sequence[LossPoint], split: str) -> list[tuple[int, float]]:
    return [(point.step, point.loss) for point in curve if point.split == split]


def _figures(record: TrainingRecord) -> Table:
    rows = [
        ("rows", f"{record.rows_train} and {record.rows_validation} for validation"),
        ("skipped, too long", str(record.rows_too_long)),
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


def _chart(title: str, lines: Sequence[Line], height: int = HEIGHT) -> str:
    """Lines over steps, as SVG; "" where there is nothing to draw."""
    finite = [
        line._replace(points=[(step, value) for step, value in line.points if math.isfinite(value)])
        for line in lines
    ]
    lines = [line for line in finite if line.points]
    if not lines:
        return ""
    last = max(1, *(step for line in lines for step, _ in line.points))
    top = max(value for line in lines for _, value in line.points) or 1.0
    floor, right = height - BOTTOM, WIDTH - 10

    def place(point: tuple[int, float]) -> tuple[float, float]:
        step, value = point
        return LEFT + (right - LEFT) * step / last, floor - (floor - 14) * max(value, 0) / top

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">',
        f'<path class="axis" d="M{LEFT} 10V{floor}H{right}"/>',
        f'<text x="{LEFT - 6}" y="18" text-anchor="end">{top:.2g}</text>',
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{right}" y="{floor + 18}" text-anchor="end">{last}</text>',
        f'<text x="{LEFT}" y="{floor + 18}">{html.escape(title)}</text>',
    ]
    named = [line for line in lines if line.name]
    for number, line in enumerate(named if len(lines) > 1 else []):
        parts.append(
            f'<text x="{right}" y="{18 + 15 * number}" text-anchor="end">{html.escape(line.name)} '
            f'<tspan style="fill: {line.colour}">●</tspan></text>'
        )
    for line in lines:
        places = [place(point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{path}" style="stroke: {line.colour}; stroke-width: {line.width}"/>'
        )
        if line.dots or len(places) == 1:
            dot = f'r="{line.width + 2}" style="fill: {line.colour}"'
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {dot}/>' for x, y in places]
    return "\n".join([*parts, "</svg>"])
