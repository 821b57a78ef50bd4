"""The page: self-contained, and whatever models and documents say stays text."""

import re
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from components.core import describe
from components.core.chart import COLORS
from components.core.ledger import LedgerEntry
from components.core.records import CurvePoint, Evaluation, QuantizationReport, Sample
from components.eval import quotes, report
from components.report import comparison
from tests.eval.conftest import make_sample
from tests.eval.test_findings import arm, evaluation

HOSTILE = (
    "<script>alert(1)</script> </script></style>--><img src=x onerror=alert(1)> "
    "\"'><svg/onload=x> {{ 7*7 }} ##begin_quote##never closed \x00\x1b[31m\u202egnp.exe &amp;"
    "\u200b\u200d\u2060\ufeff\xad\u061c\u2066\U000e0041"
)
LEDGER = LedgerEntry(
    stage="eval",
    seconds=75.0,
    tokens_in=1234,
    tokens_out=56,
    requests=0,
    gpu="",
    gpu_count=0,
    peak_memory_bytes=2_500_000_000,
    peak_gpu_memory_bytes=0,
    cost=None,
    currency="USD",
    prices_date="2024-10-01",
)


class Page(HTMLParser):
    """Collects what a browser would: tags with attributes, and the text outside the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open != "style":
            self.text += data


def render(samples: list[Sample], figures: Evaluation | None = None) -> str:
    figures = figures or evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1))
    return report.render(figures, samples, None, [LEDGER])


def pair(tuned: float, base: float, **changes: object) -> list[Sample]:
    return [make_sample("base", f1=base, **changes), make_sample("raft", f1=tuned, **changes)]


def test_hostile_text_stays_text() -> None:
    fields = {**dict.fromkeys(("question", "generation", "answer"), HOSTILE), "gold": [HOSTILE]}
    hostile = evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), base_model=HOSTILE, warnings=[HOSTILE])
    calm = Page(render(pair(1, 0)))
    page = Page(
        render(
            [
                make_sample(name, documents=[HOSTILE], oracle_indices=[0], **fields)
                for name in ("base", "raft")
            ],
            hostile,
        )
    )
    assert {tag for tag, _ in page.tags} - {tag for tag, _ in calm.tags} <= {"ul"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 2 * 2 + 4
    assert "{{ 7*7 }}" in page.text
    assert "##begin_quote##never closed" in page.text
    assert not report.UNSEEN.search(page.text)
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩gnp.exe" in page.text
    assert "⟨U+200B⟩⟨U+200D⟩⟨U+2060⟩⟨U+FEFF⟩⟨U+00AD⟩⟨U+061C⟩⟨U+2066⟩⟨U+E0041⟩" in page.text


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "\x00\u202e" * 500_000,
        "##begin_quote##" * 70_000,
        "##begin_quote##abcdefgh" * 20_000 + "##end_quote##" * 20_000,
        "<ANSWER>:" * 100_000,
        "<b>" * 300_000,
    ],
)
def test_a_megabyte_of_anything_leaves_the_page_small_and_quick(text: str) -> None:
    fields = {**dict.fromkeys(("question", "generation", "answer"), text), "gold": [text]}
    samples = [
        make_sample(name, question_id=f"q{number}", documents=[text] * 50, **fields)
        for name in ("base", "raft")
        for number in range(3)
    ]
    started = time.process_time()
    page = render(samples)
    quotes.check(text, [text] * 3, [0])
    assert time.process_time() - started < 10
    assert len(page) < 3_500_000
    assert "more characters" in page


def test_nothing_is_asked_of_the_network_and_no_script_runs() -> None:
    page = Page(render(pair(1, 0)))
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "form", "base", "a"})
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href"}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", render(pair(1, 0)))
    policy = next(tags for tag, tags in page.tags if "http-equiv" in tags)["content"]
    assert str(policy).startswith("default-src 'none'")


def test_outcomes_are_filters_with_counts() -> None:
    samples = [
        sample
        for number, (tuned, base) in enumerate([(1, 0), (1, 0.2), (0, 1), (1, 0.5), (0.4, 0.1)])
        for sample in pair(tuned, base, question_id=f"q{number}")
    ]
    page = Page(render(samples))
    outcomes = [tags["class"] for tag, tags in page.tags if tag == "article"]
    assert sorted(map(str, outcomes)) == ["both-right", "both-wrong", "lost", "won", "won"]
    assert [tags["id"] for tag, tags in page.tags if tag == "input"] == [
        "f-all",
        "f-won",
        "f-lost",
        "f-both-right",
        "f-both-wrong",
    ]
    assert re.search(r"Won by RAFT\s*2", page.text)


def curved() -> Evaluation:
    points = [
        CurvePoint(
            arm=name, distractors=count, oracle=place, n=200, f1=f1, f1_ci=(f1 - 0.05, f1 + 0.05),
            em=f1, contains=f1, truncated=0, unanswered=0.25,
        )
        for name, level in (("base", 0.2), ("raft", 0.6))
        for place, loss in (("present", 0.0), ("absent", 0.15))
        for count, f1 in ((0, level - loss), (4, level - loss - 0.02), (-1, level - loss - 0.15))
    ]  # fmt: skip
    return evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), curve=points)


def test_curves_are_drawn_and_said_where_they_were_asked() -> None:
    page = render(pair(1, 0), curved())
    for tuned in (False, True):
        assert page.count(f'<g class="curve" color="{COLORS[tuned, 16]}">') == 2
    assert page.count("<circle") == 12
    text = Page(page).text
    assert "No oracle" in text and "Oracle first" not in text
    assert "RAFT, 16-bit, oracle present: F1 0.600 with no distractor, 0.450 with all" in text
    assert re.search(r"RAFT, 16-bit\s*present\s*all\s*0.4500.400 – 0.500", text)
    assert "Without the oracle RAFT, 16-bit reaches F1 0.450; it answers 75% of the" in text
    assert 'class="panels"' not in render(pair(1, 0))


def test_time_and_cost_of_the_stages_before_are_on_the_page() -> None:
    train = LEDGER.model_copy(update={"stage": "train", "seconds": 60.0})
    page = Page(report.render(curved(), pair(1, 0), None, [train, LEDGER]))
    for row in (("train", "done", "1 min 0 s", "CPU"), ("eval", "done", "1 min 15 s", "CPU")):
        assert re.search(r"\s*".join(row), page.text)
    assert "Prices of 2024-10-01" in page.text and "not priced" in page.text


def test_the_chart_is_a_file_too() -> None:
    arms = [arm("base", 0.2), arm("raft", 0.6)]
    svg = report.chart_file(evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), arms=arms))
    root = ElementTree.fromstring(svg)
    assert len(root.findall("{http://www.w3.org/2000/svg}rect")) == 2
    assert "".join(root.itertext()).split("\n")[1:-1] == [
        "F1 on 200 questions",
        "base0.20",
        "raft0.60",
        "",
    ]


def test_quotes_are_highlighted_where_a_document_has_them() -> None:
    quote = '<mark class="quote">Ada was born in Kelden.</mark>'
    page = render(pair(1, 0, documents=["Bram bakes.", "Ada was born in Kelden. She <b>paints."]))
    assert page.count(quote) == 1 + 2
    assert f"{quote} She &lt;b&gt;paints." in page
    assert page.count('class="oracle"') == 1


def test_quotes_of_nothing_are_struck() -> None:
    page = render(pair(1, 0, generation="##begin_quote##Ada flew.##end_quote## <ANSWER>: Kelden"))
    assert page.count('<mark class="invented">Ada flew.</mark>') == 2


def test_the_page_stays_small() -> None:
    samples = [
        sample
        for number in range(500)
        for sample in pair(
            1, 0 if number % 10 else 1, question_id=f"q{number}", generation="word " * 5000
        )
    ]
    page = render(samples)
    assert page.count("<article") == report.MAX_SAMPLES
    assert page.count('<article class="both-right"') == report.MAX_SAMPLES // 2
    assert len(page) < 400_000
    assert "(23,499 more characters)" in page


def test_one_arm_has_no_filters() -> None:
    alone = evaluation((0, 0, 0), (0, 0, 0), arms=[arm("raft", 0.6)], comparisons=[])
    page = Page(render([make_sample("raft")], alone))
    assert "input" not in {tag for tag, _ in page.tags}
    assert "RAFT, 16\u2011bit reaches F1 0.600" in page.text


def test_quantize_checks_own_figures_are_preferred() -> None:
    measured = QuantizationReport(
        weight_bytes_16bit=16_060_000_000,
        weight_bytes_4bit=5_700_000_000,
        memory_ratio=0.355,
        bytes_kept_16bit=1,
        rows=1,
        tokens=1,
        token_agreement=0.97,
        mean_kl=0.01,
        perplexity_16bit=2.0,
        perplexity_4bit=2.1,
        min_agreement=0.9,
        max_memory_ratio=0.5,
        passed=True,
        verdict="Four bits will do.",
    )
    figures = evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), memory_ratio=0.355)
    page = Page(report.render(figures, pair(1, 0), measured, [LEDGER]))
    assert "4-bit weights take 5.7 GB instead of 16.1 GB in 16-bit: 35.5%" in page.text
    assert "Four bits will do." in page.text
    kept = {"model.embed_tokens.weight": 1_050_000_000}
    more = measured.model_copy(update={"kept": kept, "quantize_lm_head": True})
    page = Page(report.render(figures, pair(1, 0), more, [LEDGER]))
    assert "Stays in 16 bits" in page.text
    assert "model.embed_tokens.weight" in page.text and "1.05 GB" in page.text
    assert "embeddings stay in full precision" in page.text


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (12, "12 B"),
        (1500, "1.5 kB"),
        (2_500_000, "2.5 MB"),
        (16_060_000_000, "16.1 GB"),
        (2_000_000_000_000, "2000 GB"),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert report.bytes_in_words(count) == words


def test_durations_in_words() -> None:
    assert [describe.duration(seconds) for seconds in (5.04, 65, 7300)] == [
        "5.0 s",
        "1 min 5 s",
        "2 h 1 min",
    ]


def test_one_question_has_no_interval() -> None:
    arms = [arm("base", 0.0, n=1, f1_ci=(0, 0)), arm("raft", 1.0, n=1, f1_ci=(1, 1))]
    one = evaluation((1, 1, 1), (1, 1, 1), questions=1, arms=arms)
    table = describe.arms(one)
    assert [row[2] for row in table.rows] == ["–", "–"]
    page = render(pair(1, 0), one)
    body = page[page.index("<body>") :]
    assert "whisker" not in body and "Whiskers" not in body
    assert not re.search(r"\d to \+", body) and "&lt; 0.001" not in body
    assert "1 questions" not in body and not re.search(r"\d – \d", body)
    assert re.search(r"RAFT, 16-bit − Base, 16-bit\s*\+1.000\s*–", Page(page).text), "no p-value"
    assert "on 1 question, too few" in body and "· 1 question ·" in body

    trial = comparison.Trial(one, None, "runs/a")
    assert comparison.scores([trial]).rows[0][1:4] == ("0.000", "1.000", "+1.000")


def test_two_questions_have_intervals() -> None:
    two = evaluation((1, 1, 1), (1, 1, 1), questions=2, arms=[arm("base", n=2), arm("raft", n=2)])
    page = render(pair(1, 0), two)
    assert 'class="whisker"' in page and " – " in page
