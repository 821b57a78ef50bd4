"""The summary of a run: each stage's result, what it took, and what did not finish.

A run that failed half-way has a summary too. Where several models were evaluated, a comparison
page is added.

Writes `summary.md`, `ledger.json` (the whole run's `RunLedger`) and, of evaluations,
`comparison.html`; of a run with one adapter also `card.md`, its model card with the figures.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, NamedTuple

from components.core import card
from components.core.config import Settings, TextList, input_option
from components.core.describe import describe, duration, ledger_table
from components.core.errors import DataError, StorageError
from components.core.kubeflow import results_folder
from components.core.ledger import LedgerEntry, RunLedger, total
from components.core.locations import SCHEME
from components.core.pages import REPORT, as_markdown, markdown_table, plain
from components.core.progress import headline, say
from components.core.records import Evaluation, GenerationReport, TrainingRecord
from components.core.storage import LEDGER, begin_artifact, finish_artifact, put, write_json
from components.core.use_it import use_it
from components.report import comparison
from components.report.outcome import Outcome, proven, reported
from components.report.results import RunResults, read, read_runs
from components.report.trial import Trial

SUMMARY, COMPARISON, CARD = "summary.md", "comparison.html", "card.md"


class SummaryConfig(Settings):
    """The folders of a run in, one page out."""

    stage: ClassVar[str] = "summary"

    folders: TextList = (
        input_option(  # not Locations: a step of Kubeflow may have others, with a note
            (),
            help="Folders (local or gs://) to read, at any depth, separated by commas: a run's, or "
            "single artifacts.",
        )
    )
    status: str = input_option(
        "", help="How the run ended, as JSON with a state; Kubeflow gives it."
    )
    state: str = input_option(
        "",
        help="The run's field `state`. Where the run's own folder is not on gs://, its results are "
        "read from the copies that its steps put there.",
    )


def run(config: SummaryConfig) -> RunLedger:
    """Write the summary; a folder that cannot be read is a sentence in it, not an error.

    Raises:
        StorageError: nothing of a run was found, and no `status` says that there was one.
    """
    output = Path(config.output)
    headline("summary", f"{', '.join(config.folders) or 'nothing'} → {output}")
    results = read_runs(config.folders, config.state)
    if not (results.records or results.entries or config.status):
        raise StorageError(
            " ".join(results.notes)
            or f"--folders {','.join(config.folders)}: nothing of a run there",
            hint="Give folders that stages have written, separated by commas: "
            "--folders run/dataset,run/adapter",
        )
    begin_artifact(output, "summary")
    ledger = total(results.entries)
    write_json(output / LEDGER, ledger)
    trials = comparison.find_trials(results)
    if trials:
        put(comparison.render(trials), str(output / COMPARISON))
    # A step's one folder is the whole run's, which its server knows by the last part.
    run_id = config.folders[0].rpartition("/")[2] if config.status and config.folders else ""
    put(render(results, proven(results, config.status, run_id)), str(output / SUMMARY))
    if text := _card(results):
        put(text, str(output / CARD))
    finish_artifact(output)
    say(f"  {len(results.records)} results, {len(results.entries)} ledger entries")
    return ledger


def compare(folders: tuple[str, ...], output: Path) -> list[Trial]:
    """Write `comparison.html`: the evaluations of finished runs side by side.

    Args:
        folders: runs or evaluations, local or `gs://`, read at any depth.
        output: a folder, of which only this file is replaced.

    Raises:
        DataError: a folder holds no finished evaluation, or cannot be read.
    """
    trials = []
    for folder in folders:
        results = read((folder,))
        here = comparison.find_trials(results)
        if not here:
            raise DataError(
                " ".join(["holds no finished evaluation", *results.notes]),
                path=folder,
                hint="Give the folder that raft eval wrote, or one above it.",
            )
        trials += here
        for note in results.notes:
            say(f"  {note}")
    put(comparison.render(trials), str(output / COMPARISON))
    return trials


def as_reported(outcome: Outcome, results: RunResults) -> str:
    """The summary of a run whose server was asked."""
    return render(results, reported(outcome, results))


def so_far(run: str, state: str, uri: str, folder: str) -> str:
    """The summary of a run under way, one artifact of which is still in a folder of its pod."""
    own = {folder: uri} if Path(folder).is_dir() else {}
    results = read({results_folder(run, state): run} | own)
    return render(results, proven(results))


def render(results: RunResults, outcome: Iterable[str]) -> str:
    """The summary in Markdown."""
    ledger = total(results.entries)
    parts = ["# RAFT run", *outcome]
    trials = comparison.find_trials(results)
    if len(trials) > 1:
        parts += ["## comparison", *map(plain, comparison.best(trials))]
        parts.append(markdown_table(comparison.table(trials)))
    else:
        described = (describe(record) for record in results.records.values())
        # Once: an evaluation contains a copy of its adapter's training record.
        parts += dict.fromkeys(as_markdown(result).rstrip() for result in described if result)
    parts += [f"Adapter: `{folder}`" for folder in _adapters(results)]
    parts += [f"Report: `{folder}/{REPORT}`" for folder in results.of(Evaluation)]
    parts += _use_it(results)
    if ledger.stages:
        parts += ["## time and cost", markdown_table(ledger_table(ledger))]
        if seconds := _waiting(ledger.stages):
            what = "drivers, nodes, images, attempts without an entry"
            parts.append(f"Between the steps: {duration(seconds)} ({what}).")
        if ledger.cost is None:
            parts.append("*Not priced*: components/core/gpus.yaml has no price of that hardware.")
    parts += [f"> {plain(note)}" for note in results.notes]
    return "\n\n".join(parts) + "\n"


def _adapters(results: RunResults) -> dict[str, TrainingRecord]:
    """By folder; an evaluation contains a copy of its adapter's record."""
    evaluations = results.of(Evaluation)
    trainings = results.of(TrainingRecord).items()
    return {folder: training for folder, training in trainings if folder not in evaluations}


class _Tuned(NamedTuple):
    """The one adapter of a run, where it is, and its evaluation where there is one."""

    adapter: str
    training: TrainingRecord
    evaluated: str
    evaluation: Evaluation | None


def _tuned(results: RunResults) -> _Tuned | None:
    """None where a run has several adapters, of which its reader chooses one, or none."""
    evaluations, adapters = results.of(Evaluation), _adapters(results)
    if len(adapters) != 1 or len(evaluations) > 1:
        return None
    evaluated, evaluation = next(iter(evaluations.items()), ("", None))
    return _Tuned(*next(iter(adapters.items())), evaluated, evaluation)


def _use_it(results: RunResults) -> list[str]:
    """Commands that use the run's adapter, where they can read it."""
    tuned = _tuned(results)
    if tuned is None or ("://" in tuned.adapter and not tuned.adapter.startswith(SCHEME)):
        return []
    commands = use_it(tuned.adapter, evaluation=tuned.evaluated)
    return ["## use it", "\n".join(["```sh", *commands, "```"])]


def _card(results: RunResults) -> str:
    """The card of the run's adapter with its figures; "" where there is no such one."""
    if (tuned := _tuned(results)) is None:
        return ""
    reports = [*results.of(GenerationReport).values()]
    text = card.write_card(tuned.training, reports[0] if len(reports) == 1 else None)
    return card.with_figures(text, tuned.evaluation) if tuned.evaluation else text


def _waiting(entries: list[LedgerEntry]) -> float:
    """Seconds between the first attempt's start and the last one's end in which none worked."""
    starts = sorted((entry.started, entry.seconds) for entry in entries if entry.started)
    waited, until = timedelta(), starts[0][0] if starts else None
    for start, seconds in starts:
        waited += max(start - (until or start), timedelta())
        until = max(start + timedelta(seconds=seconds), until or start)
    return waited.total_seconds()
