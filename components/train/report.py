"""The page about a training: its warnings in words, then the losses and figures.

The losses are drawn as SVG, so that the page is one file, follows the reader's colours, and the
image of this stage needs no plotting library.
"""

import html
import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from components.core.chart import BOTTOM, HEIGHT, WIDTH, svg
from components.core.describe import counted, duration
from components.core.pages import Link, Table, html_table, navigation, page
from components.core.records import LossPoint, TrainingRecord

LEFT = 58
COLOURS = {"train": "#2a7fc4", "validation": "#c4622a"}
LEAST_LOSS = 1e-4
"""Nats; what is below is drawn there, because a logarithmic axis has no zero."""
NICE = (1.0, 2.0, 5.0, 10.0)
"""What ticks are multiples of, times a power of ten."""
MAX_TICKS = 9

STYLE = """
svg path, svg polyline { fill: none; stroke-width: 1.5 }
.axis { stroke: #8886 }
.grid { stroke: #8883 }
"""


FEW_STEPS = 24
STEEP = 0.8
"""The last losses are below this share of those before them."""


def warnings(curve: Sequence[LossPoint]) -> list[str]:
    """What a person should know about a finished training, in sentences."""
    sentences = []
    train = [point.loss for point in curve if point.split == "train"]
    # Less than 20 % and 0.1 may be chance: the first loss is that of one batch.
    if len(train) >= 10 and fmean(train[-5:]) > 1.2 * train[0] + 0.1:
        sentences.append(
            f"The training loss ended above where it began ({fmean(train[-5:]):.3f} against "
            f"{train[0]:.3f}): lower --learning-rate or raise --warmup-ratio."
        )
    if len(train) < FEW_STEPS:
        sentences.append(
            f"Only {counted(len(train), 'step')} to learn from: raise --epochs, lower "
            "--gradient-accumulation or --batch-size, or generate more rows."
        )
    validation = [point for point in curve if point.split == "validation"]
    quarter = len(train) // 4
    earlier, last = train[-2 * quarter : -quarter], train[-quarter:]
    falls = quarter and fmean(last) < min(STEEP * fmean(earlier), fmean(earlier) - 0.05)
    if falls and len(validation) > 1 and validation[-1].loss < STEEP * validation[-2].loss:
        sentences.append(
            f"The validation loss still fell steeply at the end (from {validation[-2].loss:.4f} to "
            f"{validation[-1].loss:.4f}): raise --epochs or --learning-rate."
        )
    best = min(validation, key=lambda point: point.loss, default=None)
    if best and validation[-1].loss > 1.02 * best.loss:
        sentences.append(
            f"Overfitting: the validation loss was lowest at step {best.step} ({best.loss:.4f}) "
            f"and ended at {validation[-1].loss:.4f}. Lower --epochs, --rank or --learning-rate, "
            "or generate more rows."
        )
    return sentences


def write_page(record: TrainingRecord, links: Iterable[Link] = ()) -> str:
    """The page of a training, self-contained, with links to other pages of the run."""
    parts = [navigation(links)]
    texts = record.warnings + record.about_rows
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in texts]
    parts += [_chart(record.curve), html_table(_figures(record))]
    return page(_title(record), "\n".join(filter(None, parts)), STYLE)


def _title(record: TrainingRecord) -> str:
    """What was trained, and how: `Llama-3.1-8B, rank 64, learning rate 0.0002`."""
    settings = record.settings
    ways = ["all weights"] if settings.get("method") == "full" else []
    ways += [f"rank {settings['rank']}"] if "rank" in settings and not ways else []
    if "learning_rate" in settings:
        ways.append(f"learning rate {settings['learning_rate']:g}")
    return ", ".join([record.base_model.rstrip("/").rpartition("/")[2], *ways])


def _figures(record: TrainingRecord) -> Table:
    loss = record.validation_loss
    rows = [
        ("rows", f"{record.rows_train} and {record.rows_validation} for validation"),
        ("skipped, too long", str(record.rows_too_long)),
        ("skipped, unfit", str(record.rows_unfit)),
        ("steps", str(record.steps)),
        ("validation loss", "no validation rows" if loss is None else f"{loss:.4f}"),
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


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last below `low` to the first above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in NICE[:-1]]
    first = max(tick for tick in ticks if tick <= low)
    last = min([tick for tick in ticks if tick >= high], default=ticks[-1])
    chosen = [tick for tick in ticks if first <= tick <= last]
    return chosen if len(chosen) <= MAX_TICKS else [10.0**power for power in powers]


def step_ticks(last: int) -> list[int]:
    """Three to six whole steps from 0 on, at equal distances."""
    rough = max(1.0, last / 5)
    power = 10.0 ** math.floor(math.log10(rough))
    distance = int(power * next(step for step in NICE if step * power >= rough))
    return list(range(0, last + 1, distance))


def _chart(curve: Sequence[LossPoint]) -> str:
    """The losses over the steps, on a logarithmic axis, as SVG; "" without any."""
    points = [point for point in curve if math.isfinite(point.loss)]
    if not points:
        return ""
    last = max(point.step for point in points) or 1
    losses = [max(point.loss, LEAST_LOSS) for point in points]
    ticks = log_ticks(min(losses), max(losses))
    floor, right = HEIGHT - BOTTOM, WIDTH - 12
    decades = math.log10(ticks[-1] / ticks[0]) or 1.0

    def across(step: int) -> float:
        return LEFT + (right - LEFT) * step / last

    def up(loss: float) -> float:
        return floor - (floor - 28) * math.log10(max(loss, LEAST_LOSS) / ticks[0]) / decades

    title = "loss per answer token (nats, logarithmic)"
    parts = [
        f'<text x="0" y="12">{title}</text>',
        f'<path class="axis" d="M{LEFT} 28V{floor}H{right}"/>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>',
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{right}"/>')
        place = f'x="{LEFT - 6}" y="{up(tick) + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{tick:g}</text>')
    for number in step_ticks(last):
        place = f'x="{across(number):.1f}" y="{floor + 17}"'
        parts.append(f'<text {place} text-anchor="middle">{number:,}</text>')
    for number, (split, colour) in enumerate(COLOURS.items()):
        places = [
            f"{across(point.step):.1f},{up(point.loss):.1f}"
            for point in points
            if point.split == split
        ]
        parts.append(
            f'<text x="{right}" y="{42 + 17 * number}" text-anchor="end">{split} '
            f'<tspan style="fill: {colour}">●</tspan></text>'
        )
        parts.append(f'<polyline points="{" ".join(places)}" style="stroke: {colour}"/>')
        # A validation has few points, and one alone is no line.
        parts += [
            '<circle cx="{}" cy="{}" r="3" style="fill: {}"/>'.format(*place.split(","), colour)
            for place in places
            if split == "validation" or len(places) == 1
        ]
    return svg(HEIGHT, f"{title}, by step", parts)
