"""The report: one self-contained HTML page, for people.

It needs no network and runs no script (filters are radio buttons and CSS; a dashboard may show the
page with scripts allowed), and takes every text from models and documents as hostile: jinja
escapes all of it, and characters that could hide or reverse text are made visible.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.core.chart import f1_chart
from components.core.describe import counted, interval, megabytes
from components.core.pages import Link, render_template, show_unseen
from components.core.quotes import marked
from components.core.records import Evaluation, QuantizationReport, Sample
from components.eval import findings
from components.eval.breakdown import (
    ANSWER_CHARACTERS,
    OUTCOMES,
    best_gold,
    by_document,
    by_kind,
    by_question,
    excerpt,
    shared_words,
)

FOLDER = Path(__file__).parent


def render(
    evaluation: Evaluation,
    samples: Sequence[Sample],
    quantization: QuantizationReport | None,
    links: Sequence[Link] = (),
) -> str:
    """The page as text.

    Args:
        evaluation: figures; its warnings are shown.
        samples: of all arms; the first 3,000 questions are shown.
        quantization: the verdict on 4-bit weights, where quantize-check ran.
        links: to other pages of the run.
    """
    filters: tuple[Callable[..., object], ...] = (
        findings.signed, counted, interval, megabytes, clip, marked, best_gold, excerpt,
        shared_words,
    )  # fmt: skip
    questions = by_question(samples, evaluation)
    kinds = by_kind(questions)
    outcomes = Counter(question.outcome for question in questions)
    return render_template(
        FOLDER / "report.html.jinja",
        {function.__name__: function for function in filters}
        | {"label": partial(findings.label, evaluation=evaluation)},
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        evaluation=evaluation,
        verdict=findings.verdict(evaluation),
        form=findings.form_or_substance(evaluation),
        f1_gain=evaluation.tuning_effect("f1"),
        contains_gain=evaluation.tuning_effect("contains"),
        chart=_chart(evaluation),
        quantization=findings.about_quantization(evaluation, quantization)[0],
        links=links,
        shown=ANSWER_CHARACTERS,
        questions=questions,
        outcomes={name: outcomes[name] for name in OUTCOMES.values()} if "" not in outcomes else {},
        kinds=kinds,
        kind_numbers={kind.name: number for number, kind in enumerate(kinds, start=1)},
        documents=by_document(questions, evaluation),
    )


def chart_file(evaluation: Evaluation) -> str:
    """The page's chart as a file of its own, for slides."""
    svg = _chart(evaluation)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def clip(text: str, room: int) -> str:
    """The beginning of a text, and how much is missing."""
    return text if len(text) <= room else f"{text[:room]} … ({len(text) - room:,} more characters)"


def _chart(evaluation: Evaluation) -> str:
    title = f"{evaluation.metric} on {counted(evaluation.questions, 'question')}"
    return show_unseen(f1_chart([(title, evaluation.arms)]))
