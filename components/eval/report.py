"""The report: one self-contained HTML page, for people.

It asks for nothing over the network, runs no script (filters are radio buttons and CSS, so they
work in a sandboxed frame), and takes every text from models and documents as hostile: jinja
escapes all of it, and characters that could hide or turn text round are made visible.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.describe import duration
from components.eval import figure, findings, quotes
from components.ledger import LedgerEntry
from components.records import (
    ArmResult,
    Evaluation,
    QuantizationReport,
    Sample,
)

FOLDER = Path(__file__).parent
MAX_SAMPLES = 60
MAX_CHARACTERS = 1500
RIGHT_FROM = 0.5

# Control characters but tab and line feed; marks that reverse or embed text; lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
Outcome = Literal["won", "lost", "both right", "both wrong", "asked"]
Piece = tuple[str, Literal["", "quote", "invented"]]
"""A stretch of text: plain, quoted from a document, or quoted from no document shown."""


class ShownDocument(NamedTuple):
    """One paragraph, cut into plain and quoted stretches."""

    pieces: list[Piece]
    oracle: bool


class ShownAnswer(NamedTuple):
    """What one arm said to a question."""

    arm: str
    answer: str
    pieces: list[Piece]
    clipped: int
    f1: float
    contains: bool
    truncated: bool
    answered: bool


class ShownSample(NamedTuple):
    """One question with every arm's answer."""

    outcome: Outcome
    question: str
    gold: str
    documents: list[ShownDocument]
    answers: list[ShownAnswer]


def render(
    evaluation: Evaluation,
    samples: Sequence[Sample],
    quantization: QuantizationReport | None,
    ledger: LedgerEntry,
) -> str:
    """The page as text.

    Args:
        evaluation: figures; its warnings are shown.
        samples: of all arms; a selection is shown.
        quantization: measured weight bytes, where quantize-check ran.
        ledger: time, tokens and cost of this stage so far.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {
        "signed": findings.signed,
        "bytes": _bytes,
        "duration": duration,
        "label": partial(findings.label, evaluation=evaluation),
    }
    questions = _by_question(samples)
    counts = {outcome: len(members) for outcome, members in questions.items()}
    return environment.get_template("report.html.jinja").render(
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        evaluation=evaluation,
        verdict=findings.verdict(evaluation),
        form=findings.form_or_substance(evaluation),
        f1_gain=findings.tuning_effect(evaluation, "f1"),
        contains_gain=findings.tuning_effect(evaluation, "contains"),
        groups=figure.groups(evaluation),
        top=figure.top_of_scale(evaluation),
        words=_median_words(samples),
        memory=_memory(evaluation, quantization),
        ledger=ledger,
        quantization=quantization,
        counts=counts,
        samples=[_shown(members) for members in _spread(questions, MAX_SAMPLES)],
        max_characters=MAX_CHARACTERS,
        right_from=RIGHT_FROM,
    )


# ---- samples -----------------------------------------------------------------------------------


def _by_question(samples: Iterable[Sample]) -> dict[Outcome, list[list[Sample]]]:
    """The arms' samples question by question, sorted by how tuned and base compare."""
    together: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        together[sample.question_id].append(sample)
    sorted_out: defaultdict[Outcome, list[list[Sample]]] = defaultdict(list)
    for members in together.values():
        sorted_out[_outcome(members)].append(members)
    return dict(sorted_out)


def _outcome(members: Sequence[Sample]) -> Outcome:
    right = {sample.arm: sample.f1 >= RIGHT_FROM for sample in members}
    for arm, baseline in findings.PAIRS[:2]:
        if arm in right and baseline in right:
            outcomes: dict[tuple[bool, bool], Outcome] = {
                (True, False): "won",
                (False, True): "lost",
                (True, True): "both right",
                (False, False): "both wrong",
            }
            return outcomes[right[arm], right[baseline]]
    return "asked"


def _spread(questions: dict[Outcome, list[list[Sample]]], room: int) -> list[list[Sample]]:
    """Up to `room` questions: an equal share for each outcome, evenly spaced within it.

    The rarest outcome comes first; what it leaves free goes to the others.
    """
    chosen: list[list[Sample]] = []
    kinds = sorted(questions.values(), key=len)
    for place, members in enumerate(kinds):
        count = min(len(members), room // (len(kinds) - place))
        room -= count
        chosen += [members[index * len(members) // count] for index in range(count)]
    return chosen


def _shown(members: Sequence[Sample]) -> ShownSample:
    first = members[0]
    quoted = {
        quote
        for sample in members
        for quote in quotes.find(sample.generation)
        if len(quote) >= quotes.SHORTEST
    }
    return ShownSample(
        outcome=_outcome(members),
        question=first.question,
        gold=first.gold,
        documents=[
            ShownDocument(_highlight(text, quoted), index in first.oracle_indices)
            for index, text in enumerate(first.documents)
        ],
        answers=[
            ShownAnswer(
                arm=sample.arm,
                answer=sample.answer[:MAX_CHARACTERS],
                pieces=_split_quotes(sample.generation.strip()[:MAX_CHARACTERS], first.documents),
                clipped=max(0, len(sample.generation.strip()) - MAX_CHARACTERS),
                f1=sample.f1,
                contains=sample.contains,
                truncated=sample.truncated,
                answered=sample.answered,
            )
            for sample in members
        ],
    )


def _split_quotes(text: str, documents: Sequence[str]) -> list[Piece]:
    """A generation in stretches; an unclosed quote marker stays what it is: text."""
    pieces: list[Piece] = []
    for index, piece in enumerate(quotes.split(text)):
        if index % 2 == 0:
            pieces.append((piece, ""))
        elif any(piece.strip() in document for document in documents):
            pieces.append((piece.strip(), "quote"))
        else:
            pieces.append((piece.strip(), "invented"))
    return pieces


def _highlight(text: str, quoted: set[str]) -> list[Piece]:
    """A document in stretches; what a generation quotes verbatim is highlighted, longest first."""
    if not quoted:
        return [(text, "")]
    longest_first = sorted(quoted, key=lambda quote: (-len(quote), quote))
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    return [
        (piece, "quote" if index % 2 else "") for index, piece in enumerate(pattern.split(text))
    ]


# ---- figures in words --------------------------------------------------------------------------


def _median_words(samples: Iterable[Sample]) -> dict[str, int]:
    """How long an arm's generations are."""
    counts: defaultdict[str, list[int]] = defaultdict(list)
    for sample in samples:
        counts[sample.arm].append(len(sample.generation.split()))
    return {arm: sorted(lengths)[len(lengths) // 2] for arm, lengths in counts.items()}


class Memory(NamedTuple):
    """Weight bytes of one model in full and in 4 bits, and who measured them."""

    full: int
    small: int
    full_label: str
    source: str


def _memory(evaluation: Evaluation, quantization: QuantizationReport | None) -> Memory | None:
    if quantization is not None:
        return Memory(
            quantization.weight_bytes_16bit,
            quantization.weight_bytes_4bit,
            "16-bit",
            "by quantize-check",
        )
    arms: dict[str, ArmResult] = {arm.name: arm for arm in evaluation.arms}
    for full, small in (("base", "base-4bit"), ("raft", "raft-4bit")):
        if full in arms and small in arms:
            sizes = arms[full].weight_bytes, arms[small].weight_bytes
            if sizes[0] and sizes[1]:
                bits = findings.BITS[evaluation.dtype]
                return Memory(sizes[0], sizes[1], bits, "in the arms of this evaluation")
    return None


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return (
                f"{count / size:.3g} {unit}"
                if count < 1000 * size
                else f"{count / size:.0f} {unit}"
            )
    return f"{count} B"


def _visible(value: Any) -> Any:
    """What jinja prints passes here first; only text that it still has to escape is changed."""
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value
