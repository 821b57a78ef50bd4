"""The report: one self-contained HTML page, for people.

It asks for nothing over the network, runs no script (filters are radio buttons and CSS, so they
work in a sandboxed frame), and takes every text from models and documents as hostile: jinja
escapes all of it, and characters that could hide or turn text round are made visible.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import Any, Literal, NamedTuple

from components.core.describe import (
    counted,
    duration,
    hardware,
    interval,
    money,
    with_interval,
)
from components.core.ledger import LedgerEntry
from components.core.pages import Table, markdown_table, plain
from components.core.records import (
    Comparison,
    Evaluation,
    QuantizationReport,
    Sample,
)
from components.eval import figure, findings, quotes

FOLDER = Path(__file__).parent
MAX_SAMPLES = 60
MAX_CHARACTERS = 1500
MAX_DOCUMENT, MAX_DOCUMENTS, MAX_LINE = 3000, 20, 400
RIGHT_FROM = 0.5

# Control characters but tab and line feed; soft hyphen, zero-width and invisible characters; marks
# that reverse or embed text; tags and other variation of nothing; lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
Outcome = Literal["won", "lost", "both right", "both wrong", "asked"]
Piece = tuple[str, Literal["", "quote", "invented"]]
"""A stretch of text: plain, quoted from a document, or quoted from no document shown."""


class ShownDocument(NamedTuple):
    """One paragraph, cut into plain and quoted stretches."""

    pieces: list[Piece]
    oracle: bool
    clipped: int


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
    more_documents: int
    answers: list[ShownAnswer]


def render(
    evaluation: Evaluation,
    samples: Sequence[Sample],
    quantization: QuantizationReport | None,
    accounts: Sequence[LedgerEntry],
) -> str:
    """The page as text.

    Args:
        evaluation: figures; its warnings are shown.
        samples: of all arms; a selection is shown.
        quantization: measured weight bytes, where quantize-check ran.
        accounts: time, tokens and cost of earlier stages where they are known, then of this one.
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
        "counted": counted,
        "duration": duration,
        "interval": interval,
        "p_value": partial(_p_value, evaluation=evaluation),
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
        layout=findings.layout(evaluation),
        reasoning=findings.reasoning(evaluation),
        panels=figure.panels(evaluation),
        curve_top=figure.top_of_curves(evaluation) if evaluation.curve else 1,
        robustness=findings.robustness(evaluation),
        groups=figure.groups(evaluation),
        top=figure.top_of_scale(evaluation),
        words=_median_words(samples),
        memory=_memory(evaluation, quantization),
        ledger=accounts[-1],
        costs=cost_table(accounts),
        post=read_post(),
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
        for quote in quotes.find(sample.generation.strip()[:MAX_CHARACTERS])
        if len(quote) >= quotes.SHORTEST
    }
    return ShownSample(
        outcome=_outcome(members),
        question=_clip(first.question, MAX_LINE),
        gold=_clip(first.gold, MAX_LINE),
        documents=[
            ShownDocument(
                _highlight(text[:MAX_DOCUMENT], quoted),
                index in first.oracle_indices,
                max(0, len(text) - MAX_DOCUMENT),
            )
            for index, text in enumerate(first.documents[:MAX_DOCUMENTS])
        ],
        more_documents=max(0, len(first.documents) - MAX_DOCUMENTS),
        answers=[
            ShownAnswer(
                arm=sample.arm,
                answer=_clip(sample.answer, MAX_LINE),
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


def _clip(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[:room]} … ({len(text) - room:,} more characters)"


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


# ---- Markdown ----------------------------------------------------------------------------------


def render_markdown(
    evaluation: Evaluation,
    quantization: QuantizationReport | None,
    accounts: Sequence[LedgerEntry],
) -> str:
    """The same figures as text for a pull request or a chat; samples stay in samples.jsonl."""
    parts = ["# RAFT evaluation", plain(findings.verdict(evaluation))]
    parts += [f"> {plain(warning)}" for warning in evaluation.warnings]
    asked = (
        f"{evaluation.base_model} · {counted(evaluation.questions, 'question')} · "
        f"up to {evaluation.max_new_tokens} new tokens · greedy · seed {evaluation.seed}"
    )
    parts += [plain(asked), markdown_table(_scores(evaluation))]
    parts += [plain(sentence) for sentence in findings.reasoning(evaluation)]
    parts += ["## Form or substance", plain(" ".join(findings.form_or_substance(evaluation)))]
    if evaluation.comparisons:
        parts.append(markdown_table(_differences(evaluation)))
    if evaluation.curve:
        parts.append("## Distractors and the oracle")
        parts.append("\n".join(f"- {plain(said)}" for said in findings.robustness(evaluation)))
        parts.append(markdown_table(_curve(evaluation)))
    if quantization is not None:
        parts += ["## Four bits", plain(quantization.verdict)]
    parts += ["## Time and cost", markdown_table(cost_table(accounts))]
    return show_unseen("\n\n".join(parts)) + "\n"


def _scores(evaluation: Evaluation) -> Table:
    rows = [
        (
            findings.label(arm.name, evaluation),
            with_interval(arm.f1, arm.f1_ci, arm.n),
            with_interval(arm.em, arm.em_ci, arm.n),
            f"{arm.contains:.3f}",
            f"{arm.truncated:.1%}",
            f"{arm.unanswered:.1%}",
            f"{arm.empty:.1%}",
            f"{arm.quoted_oracle:.1%}",
            "–" if arm.weight_bytes is None else _bytes(arm.weight_bytes),
        )
        for arm in evaluation.arms
    ]
    return Table(
        ("arm", "F1", "EM", "contains", "cut off", "no answer", "empty", "quotes an oracle",
         "weights"),
        rows,
    )  # fmt: skip


def _differences(evaluation: Evaluation) -> Table:
    rows = [
        (
            f"{findings.label(item.arm, evaluation)} − {findings.label(item.baseline, evaluation)}",
            item.metric,
            findings.with_interval(item, evaluation),
            _p_value(item, evaluation),
        )
        for item in evaluation.comparisons
    ]
    return Table(("difference, question by question", "metric", "mean", "p"), rows)


def _p_value(comparison: Comparison, evaluation: Evaluation) -> str:
    if evaluation.questions < 2:
        return "–"
    return "< 0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}"


def _curve(evaluation: Evaluation) -> Table:
    rows = [
        (
            findings.label(point.arm, evaluation),
            point.oracle,
            "all" if point.distractors < 0 else str(point.distractors),
            with_interval(point.f1, point.f1_ci, point.n),
            f"{point.contains:.3f}",
        )
        for point in evaluation.curve
    ]
    return Table(("arm", "oracle", "distractors", "F1", "contains"), rows)


# ---- time and cost -----------------------------------------------------------------------------


def read_post() -> dict[str, Any]:
    """The published experiment's figures, to stand beside ours."""
    found: dict[str, Any] = json.loads((FOLDER / "post.json").read_text(encoding="utf-8"))
    return found


def cost_table(accounts: Sequence[LedgerEntry]) -> Table:
    """What the stages took, beside what the post reports of its own."""
    theirs = read_post()["stages"]
    rows = []
    for entry in accounts:
        post = theirs.get(entry.stage)
        said = (
            f"{duration(post['seconds'])}, {post['cost']:.2f} USD ({post['what']})"
            if post
            else "not reported"
        )
        cost = money(entry.cost, entry.currency)
        rows.append((entry.stage, duration(entry.seconds), hardware(entry), cost, said))
    return Table(("stage", "time", "hardware", "cost", "in the post"), rows)


# ---- figures in words --------------------------------------------------------------------------


def _median_words(samples: Iterable[Sample]) -> dict[str, int]:
    """How long an arm's generations are."""
    counts: defaultdict[str, list[int]] = defaultdict(list)
    for sample in samples:
        counts[sample.arm].append(len(sample.generation.split()))
    return {arm: median_high(lengths) for arm, lengths in counts.items()}


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
    sizes = findings.weight_sizes({arm.name: arm for arm in evaluation.arms})
    if sizes is None:
        return None
    return Memory(*sizes, findings.BITS[evaluation.dtype], "in the arms of this evaluation")


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
    return show_unseen(value) if type(value) is str else value


def show_unseen(text: str) -> str:
    """A text in which characters that hide, or turn text round, stand as their code points."""
    return UNSEEN.sub(lambda found: f"\u27e8U+{ord(found.group()):04X}\u27e9", text)
