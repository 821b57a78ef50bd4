"""Several evaluations side by side: one table of settings and scores, one figure.

An evaluation's folder also holds the `training.json` of the adapter that it asked, so a score is
never shown without the settings that made it.
"""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from components.core.describe import Table, html_table, markdown_table, page, plain, with_interval
from components.core.records import ArmResult, Evaluation, TrainingRecord

SHOWN = ("rank", "alpha", "learning_rate", "target_modules", "epochs")
"""Settings that stand in the table."""

COLORS = {"base": "#8b95a1", "raft": "#2a7fc4", "base-4bit": "#b9c0c8", "raft-4bit": "#7db3de"}
WIDTH, LEFT, BAR = 720, 110, 20

# On a phone wide tables scroll by themselves.
STYLE = "div { overflow-x: auto } td { min-width: 4.5rem } table { font-size: .9rem }"


class Trial(NamedTuple):
    """One adapter's scores and the settings that made it."""

    evaluation: Evaluation
    training: TrainingRecord | None
    place: str = ""
    """Folder of the evaluation."""

    @property
    def arms(self) -> dict[str, ArmResult]:
        return {arm.name: arm for arm in self.evaluation.arms}

    def setting(self, name: str) -> str:
        value = self.training.settings.get(name, "–") if self.training else "–"
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    @property
    def title(self) -> str:
        return f"{self.evaluation.base_model}, rank {self.setting('rank')}"


def trials(records: Mapping[str, BaseModel]) -> list[Trial]:
    """The evaluations among records by path, each with the training record beside it."""
    found = []
    for path, record in records.items():
        if isinstance(record, Evaluation):
            beside = records.get(f"{path.rpartition('/')[0]}/{TrainingRecord.FILE}")
            training = beside if isinstance(beside, TrainingRecord) else None
            found.append(Trial(record, training, path.rpartition("/")[0]))
    return found


def difference(shown: Sequence[Trial]) -> str:
    """What makes scores incomparable, in a sentence; "" where all were asked the same."""
    asked: dict[str, set[str]] = {
        "questions": {str(trial.evaluation.questions) for trial in shown},
        "task": {trial.evaluation.task for trial in shown},
        "distractors": {str(trial.evaluation.distractors) for trial in shown},
        "place of the oracle": {str(trial.evaluation.oracle) for trial in shown},
        "max_new_tokens": {str(trial.evaluation.max_new_tokens) for trial in shown},
        "seed of the questions": {str(trial.evaluation.seed) for trial in shown},
    }
    apart = [
        f"{name} ({', '.join(sorted(values))})" for name, values in asked.items() if len(values) > 1
    ]
    if not apart:
        return ""
    return f"The runs differ in {', '.join(apart)}: compare their gains, not their scores."


def best(shown: Sequence[Trial]) -> list[str]:
    """Which trial is best by F1 of the tuned model, and by validation loss, in sentences.

    F1 is compared between runs that were asked the same; losses between adapters of one base model,
    because another tokenizer counts other tokens.
    """
    sentences = []
    scored = [(trial, arm) for trial in shown if (arm := _tuned(trial))]
    if len(scored) > 1 and not difference(shown):
        first, arm = max(scored, key=lambda pair: pair[1].f1)
        others = [
            named(trial, shown)
            for trial, other in scored
            if trial is not first and other.f1_ci[1] >= arm.f1_ci[0]
        ]
        sentences.append(
            f"Best by F1: {named(first, shown)}, {with_interval(arm.f1, arm.f1_ci, arm.n)}."
            + (f" Not distinguishable from it: {', '.join(others)}." if others else "")
        )
    for base in dict.fromkeys(trial.evaluation.base_model for trial in shown):
        losses = [
            (trial.training.validation_loss, trial)
            for trial in shown
            if trial.evaluation.base_model == base
            and trial.training is not None
            and trial.training.validation_loss is not None
        ]
        if len(losses) > 1:
            loss, trial = min(losses, key=lambda pair: pair[0])
            sentences.append(f"Best by validation loss: {named(trial, shown)}, {loss:.4f}.")
    return sentences


def table(shown: Sequence[Trial]) -> Table:
    """Settings and scores, one row a trial."""
    made, scored = settings(shown), scores(shown)
    rows = [(*one, *other[1:]) for one, other in zip(made.rows, scored.rows, strict=True)]
    return Table((*made.headings, *scored.headings[1:]), rows)


def settings(shown: Sequence[Trial]) -> Table:
    """What made each adapter."""
    rows = [
        (
            named(trial, shown),
            *(trial.setting(name) for name in SHOWN),
            _loss(trial.training),
        )
        for trial in shown
    ]
    headings = ("base model", *(name.replace("_", " ") for name in SHOWN), "validation loss")
    return Table(headings, rows)


def scores(shown: Sequence[Trial]) -> Table:
    """What each adapter reached."""
    arms = [name for name in COLORS if any(name in trial.arms for trial in shown)]
    rows = [
        (
            named(trial, shown),
            *(_score(trial.arms.get(name)) for name in arms),
            _gain(trial.evaluation),
            _share(trial.evaluation.retention),
            _share(trial.evaluation.memory_ratio),
        )
        for trial in shown
    ]
    headings = (
        "base model",
        *(f"F1 {name}" for name in arms),
        "F1 gained by RAFT",
        "F1 kept in 4 bits",
        "memory in 4 bits",
    )
    return Table(headings, rows)


def named(trial: Trial, shown: Sequence[Trial]) -> str:
    """The model of a row, and the folder where others have the same."""
    name = trial.evaluation.base_model
    same = [other for other in shown if other.evaluation.base_model == name]
    return name + f" ({trial.place})" * (len(same) > 1 and bool(trial.place))


def render(shown: Sequence[Trial]) -> str:
    """The comparison as a page."""
    asked = sorted({trial.evaluation.questions for trial in shown})
    counts = " and ".join(f"{count:,}" for count in asked)
    note = html.escape(difference(shown))
    body = (
        f"<p>F1 with 95 % intervals, on {counts} question{'s' * (asked != [1])}.</p>\n"
        + f"<p><b>{note}</b></p>\n" * bool(note)
        + "".join(f"<p>{html.escape(sentence)}</p>\n" for sentence in best(shown))
        + f"{_figure(shown)}\n<h2>Scores</h2>\n<div>{html_table(scores(shown))}</div>\n"
        f"<h2>Settings</h2>\n<div>{html_table(settings(shown))}</div>"
    )
    return page("Models and settings compared", body, STYLE)


def render_markdown(shown: Sequence[Trial]) -> str:
    """The comparison as text."""
    note = difference(shown)
    parts = ["# Models and settings compared", *([f"> {plain(note)}"] if note else [])]
    parts += [plain(sentence) for sentence in best(shown)]
    parts += [markdown_table(scores(shown)), markdown_table(settings(shown))]
    return "\n\n".join(parts) + "\n"


def _gain(evaluation: Evaluation) -> str:
    """Tuned against base, question by question, in full precision, else in 4 bits."""
    for arm, baseline in (("raft", "base"), ("raft-4bit", "base-4bit")):
        for item in evaluation.comparisons:
            if (item.arm, item.baseline, item.metric) == (arm, baseline, "f1"):
                if evaluation.questions < 2:
                    return f"{item.difference:+.3f}"
                low, high = item.ci
                p_value = "p < 0.001" if item.p_value < 0.001 else f"p = {item.p_value:.3f}"
                return f"{item.difference:+.3f} ({low:+.3f} – {high:+.3f}), {p_value}"
    return "–"


def _loss(training: TrainingRecord | None) -> str:
    if training is None or training.validation_loss is None:
        return "–"
    return f"{training.validation_loss:.4f}"


def _tuned(trial: Trial) -> ArmResult | None:
    return trial.arms.get("raft") or trial.arms.get("raft-4bit")


def _score(arm: ArmResult | None) -> str:
    return "–" if arm is None else with_interval(arm.f1, arm.f1_ci, arm.n)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _figure(shown: Sequence[Trial]) -> str:
    """Bars with whiskers, a group for each trial, as SVG in the reader's text colour."""
    room = WIDTH - LEFT - 60
    drawn: list[str] = []
    y = 0
    for trial in shown:
        y += 34
        same = [other for other in shown if other.title == trial.title]
        title = html.escape(trial.title + f" ({trial.place})" * (len(same) > 1))
        drawn.append(f'<text x="0" y="{y - 10}" font-weight="bold">{title}</text>')
        for name, color in COLORS.items():
            arm = trial.arms.get(name)
            if arm is None:
                continue
            low, high = (LEFT + room * bound for bound in arm.f1_ci)
            middle = y + BAR / 2
            drawn.append(
                f'<text x="{LEFT - 8}" y="{middle + 5}" text-anchor="end">{name}</text>'
                f'<rect x="{LEFT}" y="{y + 2}" width="{room * arm.f1:.1f}" height="{BAR - 4}" '
                f'fill="{color}"/>'
                f'<path d="M{low:.1f} {middle} H{high:.1f}" stroke="currentColor"/>'
                f'<text x="{max(high, LEFT + room * arm.f1) + 6:.1f}" y="{middle + 5}">'
                f"{arm.f1:.3f}</text>"
            )
            y += BAR
    label = "F1 of each arm, trial by trial"
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 10}" role="img" aria-label="{label}" '
        f'font-size="14" fill="currentColor" style="max-width:100%">\n'
        + "\n".join(drawn)
        + "\n</svg>"
    )
