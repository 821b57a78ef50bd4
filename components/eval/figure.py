"""The chart as a picture for slides and chats: F1 before and after fine-tuning, in full and 4 bits.

The report draws the same figure itself, in HTML, where it follows the reader's colours.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from components.core.describe import counted
from components.core.records import ArmResult, Evaluation, Oracle
from components.eval.findings import BITS

BASE_COLOR, RAFT_COLOR, INK, GRID = "#bcc4cd", "#2a7fc4", "#1d2733", "#e3e7ec"
"""Grey and blue differ in lightness too: they stay apart in print and to every kind of eye."""


class Line(NamedTuple):
    """One arm's F1 along the numbers of distractors; a point is place, F1, low, high."""

    arm: str
    points: list[tuple[int, float, float, float]]


class Panel(NamedTuple):
    """The lines for one place of the oracle; `ticks` names the places on the axis."""

    title: str
    ticks: list[str]
    lines: list[Line]


PLACES: dict[Oracle, str] = {
    "present": "Oracle among the distractors",
    "absent": "Oracle left out",
    "first": "Oracle first",
    "last": "Oracle last",
}


def panels(evaluation: Evaluation) -> list[Panel]:
    """The robustness curves, one panel for each place of the oracle; none where none were asked."""
    counts = {point.distractors for point in evaluation.curve}
    ordered = sorted(counts, key=lambda count: (count < 0, count))
    ticks = ["all" if count < 0 else str(count) for count in ordered]
    shown = []
    for place, title in PLACES.items():
        lines = []
        for arm in evaluation.arms:
            points = [
                (ordered.index(point.distractors), point.f1, *point.f1_ci)
                for point in evaluation.curve
                if (point.arm, point.oracle) == (arm.name, place)
            ]
            if points:
                lines.append(Line(arm.name, sorted(points)))
        if lines:
            shown.append(Panel(title, ticks, lines))
    return shown


def top_of_curves(evaluation: Evaluation) -> float:
    """The end of the curves' F1 axis: the next tenth above the highest interval."""
    highest = max(point.f1_ci[1] for point in evaluation.curve)
    return min(1.0, max(0.1, math.ceil(highest * 10) / 10))


class Group(NamedTuple):
    """The two bars that stand together; None where an arm did not run."""

    title: str
    base: ArmResult | None
    raft: ArmResult | None


def groups(evaluation: Evaluation) -> list[Group]:
    """The figure's groups: full precision, then 4-bit; those without any bar are left out."""
    arms = {arm.name: arm for arm in evaluation.arms}
    both = [
        Group(BITS[evaluation.dtype], arms.get("base"), arms.get("raft")),
        Group("4-bit", arms.get("base-4bit"), arms.get("raft-4bit")),
    ]
    return [group for group in both if group.base or group.raft]


def top_of_scale(evaluation: Evaluation) -> float:
    """The end of the F1 axis: the next tenth above the highest whisker and its number."""
    highest = max(max(arm.f1_ci[1], arm.f1) for arm in evaluation.arms)
    return min(1.0, math.ceil(highest * 10 + 0.3) / 10)


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the chart as PNG, 1200 x 900 pixels, readable when shown 400 wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=200, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.2, h_pad=0.1)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = groups(evaluation)
    for place, group in enumerate(shown):
        for side, arm, color in ((-1, group.base, BASE_COLOR), (1, group.raft, RAFT_COLOR)):
            if arm is not None:
                _bar(axes, place + side * 0.2, arm, color)
    axes.set_xticks(range(len(shown)), [group.title for group in shown], fontsize=17, color=INK)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(0, top_of_scale(evaluation) * 1.06)
    axes.tick_params(axis="y", labelsize=14, labelcolor=INK, length=0)
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set_title(
        f"F1 on {counted(evaluation.questions, 'question')}",
        fontsize=18,
        color=INK,
        loc="left",
        pad=14,
    )
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(INK)
    _legend(figure, evaluation)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the library's version and the date, the same figures give the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _bar(axes: Any, x: float, arm: ArmResult, color: str) -> None:
    low, high = arm.f1_ci
    axes.bar(x, arm.f1, width=0.36, color=color)
    if arm.n > 1:  # the interval of one question would be a line that looks certain
        axes.errorbar(
            x,
            arm.f1,
            yerr=[[max(0.0, arm.f1 - low)], [max(0.0, high - arm.f1)]],
            color=INK,
            capsize=6,
            linewidth=1.8,
            capthick=1.8,
        )
    axes.annotate(
        f"{arm.f1:.2f}",
        (x, high),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=17,
        fontweight="bold",
        color=INK,
    )


def _legend(figure: Any, evaluation: Evaluation) -> None:
    from matplotlib.patches import Patch

    tuned = {arm.name.startswith("raft") for arm in evaluation.arms}
    handles = [
        Patch(color=color, label=text)
        for is_raft, color, text in ((False, BASE_COLOR, "base"), (True, RAFT_COLOR, "RAFT"))
        if is_raft in tuned
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=15,
        frameon=False,
        labelcolor=INK,
        handlelength=1.1,
    )
