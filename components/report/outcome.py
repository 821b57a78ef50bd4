"""How a run has ended, in sentences: as its server reports, or as far as its results prove it."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from components.core.ledger import LedgerEntry
from components.core.pages import plain
from components.core.records import QuantizationReport
from components.report.results import STAGES, RunResults

GATE = (
    "**The gate is closed:** quantize-check failed and `gate` is `stop`, so eval did not run. The "
    "adapter is finished. To evaluate it anyway, run again with `gate` set to `warn`."
)
NO_WORD = "it left no ledger entry: its process or pod was killed, or its results cannot be read"
NOT_STARTED = "did not start"
NO_DRIVER = "its driver failed; the run's page has the driver's log, and Retry tries again"


class StepState(NamedTuple):
    """What a server reports of a step: running, succeeded, failed, or did not start.

    attempts: how many were made, 0 where that is not known. since: when the last one began.
    """

    step: str
    state: str
    attempts: int = 0
    since: datetime | None = None


class Outcome(NamedTuple):
    """What a server reports of a run: running, succeeded, failed or terminated."""

    run: str
    state: str
    steps: tuple[StepState, ...]
    gate_closed: bool = False

    def among(self, state: str) -> list[StepState]:
        return [step for step in self.steps if step.state == state]

    def problems(self, results: RunResults) -> list[tuple[str, str]]:
        """What has gone wrong, and why."""
        if self.state == "terminated":
            where = " and ".join(step.step for step in self.among("failed"))
            return [(f"terminated{where and f' in {where}'}", "it is not retried")]
        problems = [
            (
                f"{step.step} failed" + f" at attempt {step.attempts}" * bool(step.attempts),
                entry.failed if entry else NO_WORD,
            )
            for step, entry in self.failures(results)
        ]
        problems += [(f"{step.step} did not start", NO_DRIVER) for step in self.among(NOT_STARTED)]
        return problems or [("failed", "the run's page shows where")]

    def failures(self, results: RunResults) -> list[tuple[StepState, LedgerEntry | None]]:
        """The steps that failed, each with the ledger entry of its last attempt, if it left one."""
        failures: list[tuple[StepState, LedgerEntry | None]] = []
        for step in self.among("failed"):
            entries = [entry for entry in results.failures if _is_of(entry, step)]
            failures += [(step, entry) for entry in entries] or [(step, None)]
        return failures


def _is_of(entry: LedgerEntry, step: StepState) -> bool:
    """Whether an entry is of a step's last attempt; an earlier one had another end."""
    if entry.stage != step.step:
        return False
    return not (step.since and entry.started) or entry.started >= step.since


def reported(outcome: Outcome, results: RunResults) -> Iterator[str]:
    """What the server reports, with the reasons that the ledger gives."""
    if outcome.state == "succeeded":
        yield "**Succeeded.**"
    elif outcome.state == "running":
        yield f"**Running:** {', '.join(step.step for step in outcome.among('running'))}"
    else:
        for what, why in outcome.problems(results):
            yield f"**{what[0].upper()}{what[1:]}:** {plain(why)}"
    if outcome.gate_closed:
        yield GATE
    if repeated := [step for step in outcome.steps if step.attempts > 1]:
        attempts = (f"{step.step} {step.attempts}" for step in repeated)
        yield f"Attempts: {', '.join(attempts)}; each resumes what the one before has stored."


def proven(results: RunResults, status: str = "", run: str = "") -> Iterator[str]:
    """What artifacts, ledger entries and Kubeflow's final status prove.

    Args:
        status: what Kubeflow gives an exit handler, as JSON; "" while the run is under way.
        run: the run's id, where a server knows more.
    """
    state, message = _state(status)
    done = Counter(entry.stage for entry in results.entries if not entry.failed)
    closed = any(check.decision == "stop" for check in results.of(QuantizationReport).values())
    missing = [stage for stage in STAGES if not done[stage] and not (closed and stage == "eval")]
    if state or (results.entries and not missing):
        heading = _heading(state, missing, done)
        ended_well = state not in ("", "RUNNING", "FAILED") or not missing
        exact = "" if ended_well or not run else f" `raft summary {run}` asks the server why."
        yield heading + (f" {plain(message)}" if message else "") + exact
    for entry in results.failures:
        yield f"**{entry.stage} failed:** {plain(entry.failed)}"
    if closed and not done["eval"]:
        yield GATE
    if missing and results.entries:
        yield f"Without a result: {', '.join(missing)}."


def _heading(state: str, missing: list[str], done: Counter[str]) -> str:
    """The first words of the summary.

    Kubeflow reports FAILED only where a step's launcher did. Where a driver failed, the gate is
    closed, or the run was terminated, it still reports RUNNING, and before version 2.17 so it does
    for a success: then the results decide.
    """
    if state not in ("", "RUNNING"):
        return f"**{plain(state.capitalize())}.**"
    if missing:
        return f"**Ended early, before {missing[0]} had a result.**"
    if done["eval"] > 1:  # of a study, whose number of trials no artifact has
        return f"**{done['eval']} trials are finished.**"
    return "**Complete.**"


def _state(status: str) -> tuple[str, str]:
    """State and error message of Kubeflow's final status; "" for what is none."""
    try:
        final = json.loads(status or "{}")
        return str(final.get("state", "")), str((final.get("error") or {}).get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        return "", ""
