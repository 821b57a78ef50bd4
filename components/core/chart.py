"""The chart: F1 of arms as bars with 95 % intervals, in SVG that takes the reader's text colour.

Eval's page and picture show the arms of one evaluation, a comparison those of several.
"""

import html
import math
from collections.abc import Sequence

from components.core.records import ArmResult

COLORS = {
    (False, 16): "#7b8794",
    (False, 4): "#bcc4cd",
    (True, 16): "#2a7fc4",
    (True, 4): "#7db3de",
}
"""By tuned and bits. Grey and blue differ in lightness too: also in print, to every kind of eye."""

WIDTH, LEFT, RIGHT, ROW = 440, 100, 46, 34
LONGEST_NAME = 13


def f1_chart(groups: Sequence[tuple[str, Sequence[ArmResult]]]) -> str:
    """The arms of each titled group below each other; 440 units wide, readable on a phone."""
    arms = [arm for _, members in groups for arm in members]
    top = round_up(max((max(arm.f1, arm.f1_ci[1]) for arm in arms), default=1.0))
    scale = (WIDTH - LEFT - RIGHT) / top
    parts = []
    y = 0
    for title, members in groups:
        y += ROW
        parts.append(f'<text y="{y - 10}" font-weight="bold">{html.escape(title)}</text>')
        for arm in members:
            parts.append(_row(arm, y, scale))
            y += ROW
        start = y - ROW * len(members)
        parts.append(f'<path class="axis" d="M{LEFT} {start}V{y}" stroke="currentColor"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {y}" role="img" font-size="14" fill="currentColor" '
        'font-family="system-ui, sans-serif" aria-label="Bar chart of F1 with 95% intervals">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


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
