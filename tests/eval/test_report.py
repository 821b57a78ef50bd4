"""The page: self-contained, and whatever models and documents say stays text."""

import re
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from components.core import describe, pages, quotes
from components.core.records import Abstention, CurvePoint, Evaluation, Sample
from components.eval import breakdown, report
from components.report import comparison
from tests.core.test_kubeflow import REPORT
from tests.eval.conftest import make_sample
from tests.eval.test_findings import arm, evaluation

HOSTILE = (
    "<script>alert(1)</script> </script></style>--><img src=x onerror=alert(1)> "
    "\"'><svg/onload=x> {{ 7*7 }} ##begin_quote##never closed \x00\x1b[31m\u202egnp.exe &amp;"
    "\u200b\u200d\u2060\ufeff\xad\u061c\u2066\U000e0041"
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


LINKS = [pages.Link("dataset", "../dataset/report.html")]


def render(samples: list[Sample], figures: Evaluation | None = None) -> str:
    figures = figures or evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1))
    return report.render(figures, samples, None)


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
    assert not pages.UNSEEN.search(page.text)
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
    linked = Page(report.render(evaluation((0.4, 0.3, 0.5), (0, 0, 0)), pair(1, 0), None, LINKS))
    addresses = [tags["href"] for tag, tags in linked.tags if "href" in tags]
    assert addresses == ["../dataset/report.html"]
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href"}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", render(pair(1, 0)))
    policy = next(tags for tag, tags in page.tags if "http-equiv" in tags)["content"]
    assert str(policy).startswith("default-src 'none'")


def test_questions_are_sorted_by_what_the_tables_count_losses_first() -> None:
    """Not by F1: the last question has more of it from the base, whose text lacks the answer."""
    samples = [
        sample
        for number, (tuned, base, f1) in enumerate(
            [
                (True, False, 1),
                (True, True, 1),
                (False, True, 1),
                (False, False, 0),
                (True, False, 0),
            ]
        )
        for sample in (
            make_sample("base", question_id=f"q{number}", contains=bool(base), em=0, f1=1 - f1),
            make_sample("raft", question_id=f"q{number}", contains=bool(tuned), em=f1, f1=f1),
        )
    ]
    page = Page(render(samples))
    outcomes = [str(tags["class"]).split()[0] for tag, tags in page.tags if tag == "article"]
    assert outcomes == ["lost", "both-wrong", "both-right", "won", "won"]
    assert [tags["id"] for tag, tags in page.tags if tag == "input"] == [
        f"outcome-{number}" for number in range(5)
    ]
    assert re.search(r"lost 1\s*both wrong 1\s*both right 1\s*won 2", page.text)


def test_every_answer_has_the_correct_one_beside_it_and_their_common_words_are_marked() -> None:
    changes = {"gold": ["the Kelden Valley", "Mossby"], "answer": "in Kelden", "em": 0.0}
    page = render(pair(0.5, 0, **changes, generation="It is Kelden valley. <ANSWER>: in Kelden"))
    assert page.count('in <mark class="shared">Kelden</mark></p>') == 2
    assert page.count('the <mark class="shared">Kelden</mark> Valley</p>') == 2, "the nearer one"
    assert "contained:" not in Page(page).text, "an article may differ, which the excerpt may miss"
    page = render(
        pair(0.5, 0, **changes | {"gold": ["Kelden Valley"]}, generation="In Kelden valley")
    )
    assert page.count('…In <mark class="shared">Kelden valley</mark>…') == 2


def test_types_and_documents_of_questions_have_tables_and_types_are_filters() -> None:
    samples = [
        sample
        for number, (kind, tuned) in enumerate([("bridge", 1), ("bridge", 0), ("<b>", 1)])
        for sample in pair(
            1, 0, question_id=f"q{number}", kind=kind, sources=["ada.md", f"{number}.md"],
            contains=bool(tuned),
        )
    ]  # fmt: skip
    page = render(samples)
    text = Page(page).text
    assert re.search(r"By type of question.*bridge\s*2\s*0.50\s*0.50\s*<b>\s*1\s*1.00", text, re.S)
    assert re.search(r"By document, losses first.*ada.md\s*3\s*0.67\s*0.67", text, re.S)
    assert "0.md" not in text, "a document of one question is no group"
    kinds = [tags["id"] for tag, tags in Page(page).tags if tags.get("name") == "kind"]
    assert kinds == ["kind-0", "kind-1", "kind-2"]
    assert page.count(' kind-1">') == 2 and "#kind-2:checked) article:not(.kind-2)" in page


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("In what year was Ada born?", "what"),
        ("Were Ada and Bram born in Kelden?", "yes or no"),
        ("Ada was born where?", "where"),
        ("Name Ada's brother.", "other"),
        ("¿Dónde nació Ada?", "other"),
    ],
)
def test_a_question_without_a_type_has_its_question_word(question: str, kind: str) -> None:
    assert breakdown.kind_of(make_sample(question=question)) == kind


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


def test_further_layouts_are_a_table() -> None:
    page = render(pair(1, 0), curved())
    row = r"RAFT, 16-bit\s*present\s*all\s*0.4500.400 – 0.500\s*0.450\s*25.0%\s*0.0%"
    assert re.search(row, Page(page).text)
    assert page.count("<svg") == 1, "one page, one chart"
    assert "Distractors and the oracle" not in render(pair(1, 0))


def test_refusals_have_their_intervals() -> None:
    abstention = Abstention(
        arm="raft", absent=200, refused=190, recall=0.9, recall_ci=(0.85, 0.95),
        precision=0.95, precision_ci=(0.92, 0.98), f1=0.8, f1_ci=(0.75, 0.85),
    )  # fmt: skip
    checked = abstention.model_copy(update={"quotes_checked": True, "f1": 0.7, "f1_ci": (0.6, 0.8)})
    figures = evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), abstention=[abstention, checked])
    text = Page(render(pair(1, 0), figures)).text
    assert re.search(r"190\s*0.9000.850 – 0.950\s*0.9500.920 – 0.980\s*0.8000.750 – 0.850", text)
    assert re.search(r"RAFT, 16-bit, quotes checked\s*190.*0.7000.600 – 0.800", text, re.DOTALL)
    assert "Without the oracle" not in render(pair(1, 0))


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


def test_quotes_are_marked_and_those_of_nothing_struck() -> None:
    page = render(pair(1, 0, documents=["Bram bakes.", "Ada was born in Kelden. She <b>paints."]))
    assert page.count('<mark class="found">Ada was born in Kelden.</mark>') == 2
    assert "Ada was born in Kelden. She &lt;b&gt;paints." in page
    assert page.count('class="oracle"') == 1
    page = render(pair(1, 0, generation="##begin_quote##Ada flew.##end_quote## <ANSWER>: Kelden"))
    assert page.count('<mark class="lost">Ada flew.</mark>') == 2


def test_the_page_holds_a_thousand_questions_and_stays_small() -> None:
    samples = [
        sample
        for number in range(1000)
        for sample in pair(
            1, 0 if number % 10 else 1, question_id=f"q{number}", generation="word " * 5000
        )
    ]
    page = render(samples)
    assert page.count("<article") == 1000
    assert page.count("<details") == 50, "all are right in both"
    assert len(page) < 1_500_000
    assert "(23,499 more characters)" in page


def test_one_arm_has_no_filters() -> None:
    alone = evaluation((0, 0, 0), (0, 0, 0), arms=[arm("raft", 0.6)], comparisons=[])
    page = Page(render([make_sample("raft")], alone))
    assert "input" not in {tag for tag, _ in page.tags}
    assert "RAFT, 16\u2011bit reaches F1 0.600" in page.text


def test_quantize_checks_own_figures_are_preferred() -> None:
    measured = REPORT.model_copy(update={"verdict": "Four bits will do"})
    figures = evaluation((0.4, 0.3, 0.5), (0.0, -0.1, 0.1), memory_ratio=0.355)
    text = Page(report.render(figures, pair(1, 0), measured)).text
    assert "4-bit weights take 35.5% of the full ones, measured by quantize-check" in text
    assert "Four bits will do." in text
    assert "35.5% of the full ones, measured in the arms" in Page(render(pair(1, 0), figures)).text


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
    table = comparison.table([trial])
    cells = dict(zip(table.headings, table.rows[0], strict=True))
    assert "+1.000" in cells.values() and not any(" to " in cell for cell in cells.values())


def test_two_questions_have_intervals() -> None:
    two = evaluation((1, 1, 1), (1, 1, 1), questions=2, arms=[arm("base", n=2), arm("raft", n=2)])
    page = render(pair(1, 0), two)
    assert 'class="whisker"' in page and " – " in page
