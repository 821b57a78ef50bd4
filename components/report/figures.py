"""The post's and the paper's tables and figures, drawn of the trials that were evaluated.

What a trial is comes from the settings of its training and the registry's labels of its arms. A
table or figure for which the trials have too few settings is left out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from components.core.chart import Line, line_chart
from components.core.pages import Table
from components.core.records import ArmResult
from components.report.trial import Trial, score_of


def methods(trials: Sequence[Trial]) -> Table | None:
    """The paper's table 1 with the rows of table 2: a row for each way to answer, a column for
    each data set and model.

    Of several trials with an arm, the one that asked the most arms counts: that which has the
    baselines, not one of a sweep.
    """
    chosen: dict[tuple[str, str], dict[str, ArmResult]] = defaultdict(dict)
    for trial in sorted(trials, key=lambda trial: len(trial.evaluation.arms)):
        column = trial.evaluation.task, trial.evaluation.base_model
        for arm in trial.evaluation.arms:
            if arm.bits == 16:
                chosen[column][arm.label] = arm
    labels = dict.fromkeys(label for arms in chosen.values() for label in arms)
    if len(labels) < 3:
        return None
    names = {trial.evaluation.task: trial.evaluation.metric for trial in trials}
    headings = ("method", *(f"{task}, {model} ({names[task]})" for task, model in chosen))
    rows = [
        (label, *(score_of(arms.get(label)) for arms in chosen.values()))
        for label in sorted(labels)
    ]
    return Table(headings, rows)


def ranks_and_layers(trials: Sequence[Trial]) -> list[Table]:
    """The post's table for every model: F1 by LoRA rank and by the layers that get an adapter."""
    tables = []
    for model, members in _grouped(_of_raft(trials), lambda trial: trial.evaluation.base_model):
        ranks = sorted({trial.number("rank") for trial in members})
        layers = sorted({trial.setting("target_modules") for trial in members})
        if len(ranks) > 1 and len(layers) > 1:
            scores = {
                (trial.number("rank"), trial.setting("target_modules")): trial.tuned
                for trial in members
            }
            rows = [
                (f"rank {rank:g}", *(score_of(scores.get((rank, layer))) for layer in layers))
                for rank in ranks
            ]
            tables.append(Table((f"F1, {model}", *layers), rows))
    return tables


def by_oracle_share(trials: Sequence[Trial]) -> str:
    """The paper's figure 5: F1 by the share P of training rows that showed their oracle."""
    lines = []
    for (task, model, _), members in _grouped(
        _of_raft(trials),
        lambda trial: (
            trial.evaluation.task,
            trial.evaluation.base_model,
            trial.setting("max_distractors"),
        ),
    ):
        arms = {trial.number("keep_oracle"): trial.tuned for trial in members}
        points = [(share, arm.f1, arm.f1_ci) for share, arm in sorted(arms.items()) if arm]
        if len(points) > 2:
            lines.append(Line(f"{task}, {model}", points))
    return line_chart(lines, "share of training rows with their oracle (P)", "F1")


def by_distractors(trials: Sequence[Trial]) -> str:
    """The paper's figure 6: F1 by the distractors shown in the test, a line for each training."""
    lines = []
    for trial in sorted(_of_raft(trials), key=lambda trial: trial.number("max_distractors")):
        points = sorted(
            (float(point.distractors), point.f1, point.f1_ci)
            for point in trial.evaluation.curve
            if point.oracle == "present" and point.distractors >= 0
            and trial.tuned and point.arm == trial.tuned.name
        )  # fmt: skip
        if len(points) > 1:
            count = trial.number("max_distractors")
            trained = "all" if count < 0 else f"{count:g}"
            lines.append(Line(f"trained with {trained} distractors", points))
    return line_chart(lines, "distractors shown in the test", "F1") if len(lines) > 1 else ""


def _of_raft(trials: Iterable[Trial]) -> list[Trial]:
    """Those whose adapter learned reasoning, in 16 bits or else in 4."""
    return [trial for trial in trials if trial.training and trial.training.kind == "raft"]


def _grouped(trials: Iterable[Trial], key: Callable[[Trial], Any]) -> list[tuple[Any, list[Trial]]]:
    groups: dict[Any, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[key(trial)].append(trial)
    return list(groups.items())
