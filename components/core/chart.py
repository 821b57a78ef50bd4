"""Charts with 95 % intervals: F1 of arms as bars, scores by a setting as lines.

In SVG that takes the reader's text colour. Eval's page and picture show the arms of one evaluation,
a comparison those of several.
"""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from components.core.records import ArmResult

COLORS = {
    (False, 16): "#7b8794",
    (False, 4): "#bcc4cd",
    (True, 16): "#2a7fc4",
    (True, 4): "#7db3de",
}
"""By tuned and bits. Grey and blue differ in lightness too: also in print, to every kind of eye."""

WIDTH, LEFT, RIGHT, ROW, LINE = 440, 112, 46, 34, 18
LONGEST_NAME, LONGEST_LINE = 13, 50


def f1_chart(groups: Sequence[tuple[str, Sequence[ArmResult]]]) -> str:
    """The arms of each titled group below each other; 440 units wide, readable on a phone."""
    arms = [arm for _, members in groups for arm in members]
    top = round_up(max((max(arm.f1, arm.f1_ci[1]) for arm in arms), default=1.0))
    scale = (WIDTH - LEFT - RIGHT) / top
    parts = []
    y = 0
    for title, members in groups:
        y += ROW - LINE
        for line in textwrap.wrap(title, LONGEST_LINE) or [""]:
            y += LINE
            parts.append(f'<text y="{y - 10}" font-weight="bold">{html.escape(line)}</text>')
        for arm in members:
            parts.append(_row(arm, y, scale))
            y += ROW
        start = y - ROW * len(members)
        parts.append(f'<path class="axis" d="M{LEFT} {start}V{y}" stroke="currentColor"/>')
    return svg(y, "Bar chart of F1 with 95% intervals", parts)


def svg(height: int, label: str, parts: Sequence[str]) -> str:
    """A picture of these parts, `WIDTH` units wide; the label is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" font-size="14" fill="currentColor" '
        f'font-family="system-ui, sans-serif" aria-label="{label}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


class Line(NamedTuple):
    """A named line: x, y and the interval of y, in the order of x."""

    name: str
    points: Sequence[tuple[float, float, tuple[float, float]]]


STROKES = ("#2a7fc4", "#c4572a", "#3f9142", "#8a4fbf", "#7b8794", "#b58900")
HEIGHT, BOTTOM = 260, 40


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Lines over a common axis, with a legend below; "" where there are none."""
    if not lines:
        return ""
    ticks = sorted({x for line in lines for x, _, _ in line.points})
    top = round_up(max(ci[1] for line in lines for _, _, ci in line.points))
    left, width = 44, WIDTH - 44 - RIGHT
    span = ticks[-1] - ticks[0] or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - ticks[0]) / span, HEIGHT - BOTTOM - (HEIGHT - 60) * y / top

    parts = [
        f'<path d="M{left} 20V{HEIGHT - BOTTOM}H{left + width}" stroke="currentColor" fill="none"/>'
    ]
    for share in (0.0, top / 2, top):
        y = place(ticks[0], share)[1]
        parts.append(f'<text x="{left - 6}" y="{y + 5:.1f}" text-anchor="end">{share:.2f}</text>')
    for tick in ticks:
        x = place(tick, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{tick:g}</text>')
    labels = (
        f'<text x="{left + width}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(x_label)}</text>'
    )
    parts += [labels, f'<text x="0" y="12">{html.escape(y_label)}</text>']
    for number, line in enumerate(lines):
        color = STROKES[number % len(STROKES)]
        spots = [(*place(x, y), place(x, ci[0])[1], place(x, ci[1])[1]) for x, y, ci in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in spots)
        parts.append(
            f'<path class="line" d="M{path}" stroke="{color}" stroke-width="2" fill="none"/>'
        )
        parts += [
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'
            for x, y, low, high in spots
        ]
        y = HEIGHT + 20 * (number + 1)
        parts.append(f'<path d="M{left} {y - 5}h24" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{left + 32}" y="{y}">{html.escape(line.name)}</text>')
    label = html.escape(f"{y_label} by {x_label}, with 95% intervals", quote=True)
    return svg(HEIGHT + 20 * len(lines) + 10, label, parts)


def round_up(score: float) -> float:
    """The end of an axis: the next tenth above a score."""
    return min(1.0, max(0.1, math.ceil(score * 10) / 10))


def _row(arm: ArmResult, y: int, scale: float) -> str:
    name = arm.name if len(arm.name) <= LONGEST_NAME else f"{arm.name[: LONGEST_NAME - 1]}…"
    middle = y + ROW / 2
    low, high = (LEFT + bound * scale for bound in arm.f1_ci)
    end = LEFT + arm.f1 * scale
    whisker = (
        f'<path class="whisker" d="M{low:.1f} {middle - 5}v10m0 -5H{high:.1f}m0 -5v10" '
        'stroke="currentColor" stroke-width="1.5" fill="none"/>'
        if arm.n > 1  # the interval of one question would be a line that looks certain
        else ""
    )
    return (
        f'<text x="{LEFT - 8}" y="{middle + 5}" text-anchor="end">{html.escape(name)}</text>'
        f'<rect x="{LEFT}" y="{y + 5}" width="{end - LEFT:.1f}" height="{ROW - 10}" '
        f'fill="{COLORS[arm.tuned, arm.bits]}"/>{whisker}'
        f'<text x="{max(end, high) + 6:.1f}" y="{middle + 5}" font-weight="bold">'
        f"{arm.f1:.2f}</text>"
    )
