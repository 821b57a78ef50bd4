"""The report: one self-contained HTML page, for people.

It asks for nothing over the network, runs no script (filters are radio buttons and CSS, so they
work in a sandboxed frame), and takes every text from models and documents as hostile: jinja
escapes all of it, and characters that could hide or reverse text are made visible.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import Any, Literal

from components.core.chart import COLORS, f1_chart, round_up
from components.core.describe import costs, counted, duration, interval
from components.core.ledger import LedgerEntry, total
from components.core.records import Comparison, Evaluation, Oracle, QuantizationReport, Sample
from components.eval import findings, quotes, scores

FOLDER = Path(__file__).parent
MAX_SAMPLES = 60
MAX_CHARACTERS = 1500
RIGHT_FROM = 0.5

# Control characters but tab and line feed; soft hyphen, zero-width and invisible characters; marks
# that reverse or embed text; tags and other variation of nothing; lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
PLACES: dict[Oracle, str] = {
    "present": "Oracle among the distractors",
    "absent": "No oracle",
    "first": "Oracle first",
    "last": "Oracle last",
}
Outcome = Literal["won", "lost", "both right", "both wrong", ""]
Piece = tuple[str, Literal["", "quote", "invented"]]
"""A part of a text: plain, quoted from a document, or quoted from no document shown."""


def render(
    evaluation: Evaluation,
    samples: Sequence[Sample],
    quantization: QuantizationReport | None,
    ledgers: Sequence[LedgerEntry],
) -> str:
    """The page as text.

    Args:
        evaluation: figures; its warnings are shown.
        samples: of all arms; a selection is shown.
        quantization: measured weight bytes, where quantize-check ran.
        ledgers: time, tokens and cost of earlier stages where they are known, then of this one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Only text that jinja still has to escape is changed.
        finalize=lambda value: show_unseen(value) if type(value) is str else value,
    )
    filters: tuple[Callable[..., object], ...] = (
        findings.signed, counted, duration, interval, p_value, bytes_in_words, clip, quoted,
        split_quotes, highlight,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters["label"] = partial(findings.label, evaluation=evaluation)
    environment.filters["outcome"] = partial(_outcome, evaluation=evaluation)
    by_outcome = _by_outcome(samples, evaluation)
    return environment.get_template("report.html.jinja").render(
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        evaluation=evaluation,
        verdict=findings.verdict(evaluation),
        form=findings.form_or_substance(evaluation),
        f1_gain=evaluation.tuning_effect("f1"),
        contains_gain=evaluation.tuning_effect("contains"),
        layout=findings.layout(evaluation),
        reasoning=findings.reasoning(evaluation),
        chart=_chart(evaluation),
        colors=COLORS,
        panels=_panels(evaluation),
        curve_top=round_up(max((point.f1_ci[1] for point in evaluation.curve), default=1.0)),
        robustness=findings.robustness(evaluation),
        words=_median_words(samples),
        sizes=scores.weight_sizes(evaluation.arms),
        full_bits=findings.FULL_BITS[evaluation.dtype],
        ledger=ledgers[-1],
        costs=costs(total(list(ledgers))),
        quantization=quantization,
        counts={outcome: len(questions) for outcome, questions in by_outcome.items()},
        questions=_spread(by_outcome, MAX_SAMPLES),
        max_characters=MAX_CHARACTERS,
        right_from=RIGHT_FROM,
    )


def chart_file(evaluation: Evaluation) -> str:
    """The page's chart as a file of its own, for slides."""
    svg = _chart(evaluation)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def show_unseen(text: str) -> str:
    """A text in which characters that hide or reverse text are replaced by their code points."""
    return UNSEEN.sub(lambda match: f"\u27e8U+{ord(match.group()):04X}\u27e9", text)


# ---- samples -----------------------------------------------------------------------------------


def _by_outcome(
    samples: Iterable[Sample], evaluation: Evaluation
) -> dict[Outcome, list[list[Sample]]]:
    """The arms' samples question by question, grouped by how tuned and base compare."""
    questions: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        questions[sample.question_id].append(sample)
    grouped: defaultdict[Outcome, list[list[Sample]]] = defaultdict(list)
    for members in questions.values():
        grouped[_outcome(members, evaluation)].append(members)
    return dict(grouped)


def _outcome(members: Sequence[Sample], evaluation: Evaluation) -> Outcome:
    gain = evaluation.tuning_effect("f1")
    right = {sample.arm: sample.f1 >= RIGHT_FROM for sample in members}
    if gain is None or gain.arm not in right or gain.baseline not in right:
        return ""
    outcomes: dict[tuple[bool, bool], Outcome] = {
        (True, False): "won",
        (False, True): "lost",
        (True, True): "both right",
        (False, False): "both wrong",
    }
    return outcomes[right[gain.arm], right[gain.baseline]]


def _spread(by_outcome: dict[Outcome, list[list[Sample]]], room: int) -> list[list[Sample]]:
    """Up to `room` questions: an equal share for each outcome, evenly spaced within it.

    The rarest outcome comes first; the places it does not need go to the others.
    """
    chosen: list[list[Sample]] = []
    groups = sorted(by_outcome.values(), key=len)
    for place, members in enumerate(groups):
        count = min(len(members), room // (len(groups) - place))
        room -= count
        chosen += [members[index * len(members) // count] for index in range(count)]
    return chosen


def clip(text: str, room: int) -> str:
    """The beginning of a text, and how much is missing."""
    return text if len(text) <= room else f"{text[:room]} … ({len(text) - room:,} more characters)"


def split_quotes(text: str, documents: Sequence[str]) -> list[Piece]:
    """A generation in parts; an unclosed quote marker stays what it is: text."""
    pieces: list[Piece] = []
    for index, piece in enumerate(quotes.split(text)):
        if index % 2 == 0:
            pieces.append((piece, ""))
        elif any(piece.strip() in document for document in documents):
            pieces.append((piece.strip(), "quote"))
        else:
            pieces.append((piece.strip(), "invented"))
    return pieces


def quoted(members: Sequence[Sample]) -> set[str]:
    """What the generations shown quote."""
    return {
        quote
        for sample in members
        for quote in quotes.find(sample.generation.strip()[:MAX_CHARACTERS])
        if len(quote) >= quotes.SHORTEST
    }


def highlight(text: str, quotations: set[str]) -> list[Piece]:
    """A document in parts; what a generation quotes verbatim is highlighted, longest first."""
    if not quotations:
        return [(text, "")]
    longest_first = sorted(quotations, key=lambda quote: (-len(quote), quote))
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    return [
        (piece, "quote" if index % 2 else "") for index, piece in enumerate(pattern.split(text))
    ]


# ---- figures -----------------------------------------------------------------------------------


def _chart(evaluation: Evaluation) -> str:
    title = f"F1 on {counted(evaluation.questions, 'question')}"
    return show_unseen(f1_chart([(title, evaluation.arms)]))


def _panels(evaluation: Evaluation) -> list[tuple[str, list[str], list[tuple[str, list[Any]]]]]:
    """The robustness curves, a panel for each place of the oracle: title, ticks, and lines.

    A line is an arm's name and its points: index of the tick, F1, low, high.
    """
    counts = {point.distractors for point in evaluation.curve}
    ordered = sorted(counts, key=lambda count: (count < 0, count))
    ticks = ["all" if count < 0 else str(count) for count in ordered]
    panels = []
    for place, title in PLACES.items():
        lines: defaultdict[str, list[Any]] = defaultdict(list)
        for point in evaluation.curve:
            if point.oracle == place:
                index = ordered.index(point.distractors)
                lines[point.arm].append((index, point.f1, *point.f1_ci))
        if lines:
            panels.append((title, ticks, [(arm, sorted(line)) for arm, line in lines.items()]))
    return panels


def p_value(comparison: Comparison, questions: int) -> str:
    """A p-value; one question has none."""
    if questions < 2:
        return "–"
    return "< 0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}"


def _median_words(samples: Iterable[Sample]) -> dict[str, int]:
    """How long an arm's generations are."""
    counts: defaultdict[str, list[int]] = defaultdict(list)
    for sample in samples:
        counts[sample.arm].append(len(sample.generation.split()))
    return {arm: median_high(lengths) for arm, lengths in counts.items()}


def bytes_in_words(count: int) -> str:
    """`16.1 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            digits = f"{count / size:.3g}" if count < 1000 * size else f"{count / size:.0f}"
            return f"{digits} {unit}"
    return f"{count} B"
