"""Several evaluations side by side: one table of settings and scores, one figure.

An evaluation's folder also has the `training.json` of its adapter, so a score is never shown
without the settings behind it.
"""

import html
from collections.abc import Sequence

from components.core.chart import f1_chart
from components.core.describe import counted, with_interval
from components.core.pages import Table, html_table, page
from components.core.records import ArmResult, Evaluation, TrainingRecord
from components.report import figures
from components.report.results import RunResults
from components.report.trial import Trial, score_of

CONDITIONS = ("questions", "task", "retrieve", "distractors", "oracle", "max_new_tokens", "seed")
"""What must be equal in evaluations whose scores are compared."""

SETTINGS = (
    "rank", "alpha", "learning_rate", "target_modules", "epochs", "target", "keep_oracle",
    "max_distractors",
)  # fmt: skip
"""Settings in the table."""

NAMING = ("rank", "target_modules", "learning_rate", "target", "keep_oracle", "max_distractors")
"""Settings that are part of a trial's name where the trials differ in them."""

# On a phone the wide table scrolls by itself.
STYLE = (
    "div { overflow-x: auto } td { min-width: 4.5rem } table { font-size: .9rem } "
    "svg { display: block; max-width: 36rem }"
)


def find_trials(results: RunResults) -> list[Trial]:
    """The evaluations of a run, each with the training record in its folder."""
    trainings = results.of(TrainingRecord)
    evaluations = results.of(Evaluation).items()
    return [Trial(one, trainings.get(folder), folder) for folder, one in evaluations]


def difference(trials: Sequence[Trial]) -> str:
    """What makes scores incomparable, in a sentence; "" where the conditions were equal."""
    apart = []
    for name in CONDITIONS:
        values = sorted({str(getattr(trial.evaluation, name)) for trial in trials})
        if len(values) > 1:
            apart.append(f"{name} ({', '.join(values)})")
    if not apart:
        return ""
    return f"The runs differ in {', '.join(apart)}: compare their gains, not their scores."


def best(trials: Sequence[Trial]) -> list[str]:
    """Which trial is best by F1 of the tuned model, and by validation loss, in sentences.

    F1 is compared between runs that were asked the same; losses between adapters of one base model
    that learned the same rows, because others are of other tokens.
    """
    sentences = []
    scored = [(trial, arm) for trial in trials if (arm := trial.tuned)]
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
    for tokens in dict.fromkeys(_learned_tokens(trial) for trial in trials):
        losses = [
            (trial.validation_loss, trial)
            for trial in trials
            if _learned_tokens(trial) == tokens and trial.validation_loss is not None
        ]
        if len(losses) > 1:
            loss, trial = min(losses, key=lambda pair: pair[0])
            sentences.append(f"Best by validation loss: {named(trial, trials)}, {loss:.4f}.")
    for trial in trials:
        if trial.training and trial.training.template_mismatch:
            sentences.append(f"{named(trial, trials)}: {trial.training.template_mismatch}")
    return sentences


def _learned_tokens(trial: Trial) -> tuple[object, ...]:
    """What decides which tokens a validation loss is of."""
    settings = trial.training.settings if trial.training else {}
    rows = (settings.get(name) for name in ("target", "keep_oracle", "max_distractors"))
    return trial.evaluation.base_model, *rows


def table(trials: Sequence[Trial]) -> Table:
    """Settings and scores, one row a trial."""
    everything = [arm for trial in trials for arm in trial.evaluation.arms]
    arms = list(dict.fromkeys(arm.name for arm in everything))
    tuned = list(dict.fromkeys(arm.name for arm in everything if arm.tuned))
    headings = (
        "model",
        *(f"F1 {name}" for name in arms),
        *(f"{what} {name}" for name in tuned for what in ("contains answer,", "cut off,")),
        "F1 gained by RAFT",
        "F1 kept in 4 bits",
        "memory in 4 bits",
        "validation loss",
        *(name.replace("_", " ") for name in SETTINGS),
    )
    rows = [
        (
            named(trial, trials),
            *(score_of(trial.arms.get(name)) for name in arms),
            *(cell for name in tuned for cell in _answers(trial.arms.get(name))),
            _gain(trial.evaluation),
            _figure(trial.evaluation.retention, ".1%"),
            _figure(trial.evaluation.memory_ratio, ".1%"),
            _figure(trial.validation_loss, ".4f"),
            *(trial.setting(name) for name in SETTINGS),
        )
        for trial in trials
    ]
    return Table(headings, rows)


def named(trial: Trial, trials: Sequence[Trial]) -> str:
    """A trial's model, the settings that tell it from the others, or else its folder."""
    telling = [name for name in NAMING if len({other.setting(name) for other in trials}) > 1]
    titles = [
        ", ".join(
            [
                one.evaluation.base_model,
                *(f"{name.replace('_', ' ')} {one.setting(name)}" for name in telling),
            ]
        )
        for one in (trial, *trials)
    ]
    return titles[0] + f" ({trial.place})" * (titles[1:].count(titles[0]) > 1)


def render(trials: Sequence[Trial]) -> str:
    """The comparison as a page."""
    questions = sorted({trial.evaluation.questions for trial in trials})
    sets = " and ".join(counted(count, "question") for count in questions)
    note = html.escape(difference(trials))
    chart = f1_chart([(named(trial, trials), trial.evaluation.arms) for trial in trials])
    tables = [*filter(None, [figures.methods(trials)]), *figures.ranks_and_layers(trials)]
    curves = [figures.by_oracle_share(trials), figures.by_distractors(trials)]
    body = (
        f"<p>F1 with 95 % intervals, on {sets}.</p>\n"
        + f"<p><b>{note}</b></p>\n" * bool(note)
        + "".join(f"<p>{html.escape(sentence)}</p>\n" for sentence in best(trials))
        + "".join(f"<div>{html_table(one)}</div>\n" for one in tables)
        + "".join(f"{curve}\n" for curve in curves if curve)
        + f"{chart}\n<div>{html_table(table(trials))}</div>"
    )
    return page("Models and settings compared", body, STYLE)


def _gain(evaluation: Evaluation) -> str:
    gain = evaluation.tuning_effect("f1")
    if gain is None:
        return "–"
    return with_interval(gain.difference, gain.ci, evaluation.questions, "+.3f")


def _answers(arm: ArmResult | None) -> tuple[str, str]:
    """Containment and truncation: whether a low F1 means wrong answers, long ones, or cut ones."""
    return ("–", "–") if arm is None else (f"{arm.contains:.3f}", f"{arm.truncated:.1%}")


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
