"""Several evaluations side by side: one table of settings and scores, one figure.

An evaluation's folder also has the `training.json` of its adapter, so a score is never shown
without the settings behind it.
"""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from components.core.chart import f1_chart
from components.core.describe import with_interval
from components.core.pages import Table, html_table, markdown_table, page, plain
from components.core.records import ArmResult, Evaluation, TrainingRecord

SETTINGS = ("rank", "alpha", "learning_rate", "target_modules", "epochs")
"""Settings in the table."""

# On a phone wide tables scroll by themselves.
STYLE = (
    "div { overflow-x: auto } td { min-width: 4.5rem } table { font-size: .9rem } "
    "svg { display: block; max-width: 36rem }"
)


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


def find_trials(records: Mapping[str, BaseModel]) -> list[Trial]:
    """The evaluations among records by path, each with the training record in its folder."""
    trials = []
    for path, record in records.items():
        if isinstance(record, Evaluation):
            folder = path.rpartition("/")[0]
            training = records.get(f"{folder}/{TrainingRecord.FILE}")
            known = training if isinstance(training, TrainingRecord) else None
            trials.append(Trial(record, known, folder))
    return trials


def difference(trials: Sequence[Trial]) -> str:
    """What makes scores incomparable, in a sentence; "" where the conditions were equal."""
    conditions: dict[str, set[str]] = {
        "questions": {str(trial.evaluation.questions) for trial in trials},
        "data set": {trial.evaluation.task for trial in trials},
        "distractors": {str(trial.evaluation.distractors) for trial in trials},
        "place of the oracle": {str(trial.evaluation.oracle) for trial in trials},
        "max_new_tokens": {str(trial.evaluation.max_new_tokens) for trial in trials},
        "seed of the questions": {str(trial.evaluation.seed) for trial in trials},
    }
    apart = [
        f"{name} ({', '.join(sorted(values))})"
        for name, values in conditions.items()
        if len(values) > 1
    ]
    if not apart:
        return ""
    return f"The runs differ in {', '.join(apart)}: compare their gains, not their scores."


def best(trials: Sequence[Trial]) -> list[str]:
    """Which trial is best by F1 of the tuned model, and by validation loss, in sentences.

    F1 is compared between runs that were asked the same; losses between adapters of one base model,
    because another tokenizer counts other tokens.
    """
    sentences = []
    scored = [(trial, arm) for trial in trials if (arm := _tuned(trial))]
    if len(scored) > 1 and not difference(trials):
        first, arm = max(scored, key=lambda pair: pair[1].f1)
        others = [
            named(trial, trials)
            for trial, other in scored
            if trial is not first and other.f1_ci[1] >= arm.f1_ci[0]
        ]
        sentences.append(
            f"Best by F1: {named(first, trials)}, {with_interval(arm.f1, arm.f1_ci, arm.n)}."
            + (f" Not distinguishable from it: {', '.join(others)}." if others else "")
        )
    for base in dict.fromkeys(trial.evaluation.base_model for trial in trials):
        losses = [
            (trial.training.validation_loss, trial)
            for trial in trials
            if trial.evaluation.base_model == base
            and trial.training is not None
            and trial.training.validation_loss is not None
        ]
        if len(losses) > 1:
            loss, trial = min(losses, key=lambda pair: pair[0])
            sentences.append(f"Best by validation loss: {named(trial, trials)}, {loss:.4f}.")
    return sentences


def table(trials: Sequence[Trial]) -> Table:
    """Settings and scores, one row a trial."""
    made, scored = settings(trials), scores(trials)
    rows = [(*one, *other[1:]) for one, other in zip(made.rows, scored.rows, strict=True)]
    return Table((*made.headings, *scored.headings[1:]), rows)


def settings(trials: Sequence[Trial]) -> Table:
    """What made each adapter."""
    rows = [
        (
            named(trial, trials),
            *(trial.setting(name) for name in SETTINGS),
            _loss(trial.training),
        )
        for trial in trials
    ]
    headings = ("base model", *(name.replace("_", " ") for name in SETTINGS), "validation loss")
    return Table(headings, rows)


def scores(trials: Sequence[Trial]) -> Table:
    """What each adapter reached."""
    arms = list(dict.fromkeys(name for trial in trials for name in trial.arms))
    rows = [
        (
            named(trial, trials),
            *(_score(trial.arms.get(name)) for name in arms),
            _gain(trial.evaluation),
            _share(trial.evaluation.retention),
            _share(trial.evaluation.memory_ratio),
        )
        for trial in trials
    ]
    headings = (
        "base model",
        *(f"F1 {name}" for name in arms),
        "F1 gained by RAFT",
        "F1 kept in 4 bits",
        "memory in 4 bits",
    )
    return Table(headings, rows)


def named(trial: Trial, trials: Sequence[Trial]) -> str:
    """The model of a row, and the folder where others have the same."""
    name = trial.evaluation.base_model
    same = [other for other in trials if other.evaluation.base_model == name]
    return name + f" ({trial.place})" * (len(same) > 1 and bool(trial.place))


def render(trials: Sequence[Trial]) -> str:
    """The comparison as a page."""
    questions = sorted({trial.evaluation.questions for trial in trials})
    counts = " and ".join(f"{count:,}" for count in questions)
    note = html.escape(difference(trials))
    chart = f1_chart([(_title(trial, trials), trial.evaluation.arms) for trial in trials])
    body = (
        f"<p>F1 with 95 % intervals, on {counts} question{'s' * (questions != [1])}.</p>\n"
        + f"<p><b>{note}</b></p>\n" * bool(note)
        + "".join(f"<p>{html.escape(sentence)}</p>\n" for sentence in best(trials))
        + f"{chart}\n<h2>Scores</h2>\n<div>{html_table(scores(trials))}</div>\n"
        f"<h2>Settings</h2>\n<div>{html_table(settings(trials))}</div>"
    )
    return page("Models and settings compared", body, STYLE)


def render_markdown(trials: Sequence[Trial]) -> str:
    """The comparison as text."""
    note = difference(trials)
    parts = ["# Models and settings compared", *([f"> {plain(note)}"] if note else [])]
    parts += [plain(sentence) for sentence in best(trials)]
    parts += [markdown_table(scores(trials)), markdown_table(settings(trials))]
    return "\n\n".join(parts) + "\n"


def _gain(evaluation: Evaluation) -> str:
    """Tuned against base, question by question."""
    gain = evaluation.tuning_effect("f1")
    if gain is None:
        return "–"
    if evaluation.questions < 2:
        return f"{gain.difference:+.3f}"
    low, high = gain.ci
    p_value = "p < 0.001" if gain.p_value < 0.001 else f"p = {gain.p_value:.3f}"
    return f"{gain.difference:+.3f} ({low:+.3f} – {high:+.3f}), {p_value}"


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


def _title(trial: Trial, trials: Sequence[Trial]) -> str:
    same = [other for other in trials if other.title == trial.title]
    return trial.title + f" ({trial.place})" * (len(same) > 1)
