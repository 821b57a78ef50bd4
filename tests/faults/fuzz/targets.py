"""What is fuzzed: for each parser a strategy that draws inputs, and the properties that must hold.

A property is an assertion in `check`; any exception but the errors that the parser declares is a
finding too. Inputs are plain JSON, so that one that was found can be kept as a file and read.
"""

import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from components.core.errors import ConfigError, DataError, RaftError, StorageError
from components.core.raft_form import (
    ANSWER_MARKER,
    QUOTE_BEGIN,
    QUOTE_END,
    find_answer,
    split_answer,
)
from tests.faults import bombs

REPOSITORY = Path(__file__).resolve().parents[3]
SCRATCH = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
MARKS = (QUOTE_BEGIN, QUOTE_END, ANSWER_MARKER)


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        inputs: draws the arguments of `check`, as JSON.
        check: asserts what must hold.
    """

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


TARGETS: dict[str, Target] = {}


def target(
    inputs: st.SearchStrategy[Any],
) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Register the check under its own name."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        TARGETS[check.__name__] = Target(inputs, check)
        return check

    return register


# ---- inputs ------------------------------------------------------------------------------------

WORDS = st.sampled_from([
    *MARKS, "##begin_", "quote##", "##", "<ANS", "WER>:", "<answer>", "</ANSWER>", "**",
    "**<ANSWER>:**", "Ada Voss", "was born in", "Kelden", "1850", "1,850", ".", "?", "\n", "\r",
    "\u2028", "\x0b", " ", "\t", "\u00ad", "\u200b", "\ufeff", "ß", "ŉ", "ﬁ", "İ", "ı", "ΐ",
    "e\u0301", "א", "你好", "ไทย", "한국", "«", "“", "’", "…", "...", "```", "```json\n",
    "<DOCUMENT>", "</DOCUMENT>", "$chunk", "\0", "½", "①", "㎏", "ﷺ",
])  # fmt: skip
TEXT = st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=24).map("".join)
SIMILARITY = st.sampled_from([0.5, 0.7, 0.9, 1.0])

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([
        0, -1, 1 << 63, 1 << 200, 1e308, "", "null", "../../etc/passwd", "/etc/passwd", "a\0b",
        "NaN",
    ]),
    st.text(max_size=12),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A copy of JSON data with up to three values replaced, removed or added somewhere in it."""
    changed = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        node = changed
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            match draw(st.sampled_from(["replace", "remove", "rename", "repeat"])):
                case "replace":
                    node[key] = draw(JSON)
                case "remove":
                    del node[key]
                case "rename" if isinstance(node, dict):
                    node[draw(st.text(max_size=8))] = node.pop(key)
                case "repeat" if isinstance(node, list):
                    node.append(node[key])
            break
    return changed


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> list[int] | str:
    """Bytes as latin-1 text: those given, with some of them flipped, cut out, doubled or put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "put", "double", "end"])):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place : place + draw(st.integers(1, 40))]
            case "put":
                data[place:place] = draw(st.binary(max_size=12))
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 400))]
            case "end":
                del data[place:]
    return data.decode("latin-1")


def as_file(name: str, text: str) -> Path:
    """A scratch file with bytes given as latin-1."""
    path = SCRATCH / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    return path


# ---- what teachers and models write --------------------------------------------------------------


@target(TEXT)
def answers(generation: str) -> None:
    """One line, without a marker, no longer than the text; and its own answer again."""
    answer, answered = find_answer(generation)
    assert len(answer) <= len(generation)
    assert answer == answer.strip()
    if answered:
        assert answer and len(answer.splitlines()) == 1
        assert ANSWER_MARKER not in answer
        assert find_answer(f"so {ANSWER_MARKER} {answer}") == (answer, True)
    else:
        assert answer == ("" if split_answer(generation).marked else generation.strip())


@target(st.tuples(TEXT, TEXT, TEXT, SIMILARITY))
def checked_answers(value: tuple[str, str, str, float]) -> None:
    """A kept answer ends in one marker, and all its quotes stand in the oracle, word for word."""
    from components.core import quotes as evaluated
    from components.generate.answers import Unusable, check

    reply, question, oracle, similarity = value
    for text in (
        reply,
        f"{QUOTE_BEGIN}{oracle[:60]}{QUOTE_END} so\n{reply}\n{ANSWER_MARKER} {reply}",
    ):
        try:
            checked = check(text, question, oracle, similarity)
        except Unusable:
            continue
        assert checked.answer and not any(mark in checked.answer for mark in MARKS)
        assert checked.cot_answer.count(ANSWER_MARKER) == 1
        assert find_answer(checked.cot_answer) == (checked.answer, True)
        reasoning = checked.cot_answer.rpartition(ANSWER_MARKER)[0]
        quotes = re.findall(f"{QUOTE_BEGIN}(.*?){QUOTE_END}", reasoning, re.DOTALL)
        assert len(quotes) == checked.quotes.total()
        assert quotes == evaluated.split(reasoning)[1::2]
        assert all(quote in oracle and quote.strip() for quote in quotes)
        assert len(checked.cot_answer) <= len(text) + len(quotes) * len(oracle) + 20
        with suppress(Unusable):  # a text's own marks may stand in the way the second time
            again = check(checked.cot_answer, question, oracle, similarity)
            assert again.answer == checked.answer


@target(st.tuples(TEXT, TEXT, SIMILARITY))
def quotes(value: tuple[str, str, float]) -> None:
    """A quote that is found stands in the oracle; one cut out of it at words is found."""
    from components.generate.answers import Unusable, find_quote
    from components.generate.text import on_word_boundaries

    quote, oracle, similarity = value
    with suppress(Unusable):
        match, how = find_quote(quote, oracle, similarity)
        assert match and match in oracle
        assert how != "verbatim" or match == quote.strip()
        assert find_quote(match, oracle, similarity) == (match, "verbatim")
    inside = oracle[len(oracle) // 3 : 2 * len(oracle) // 3].strip()
    start = oracle.find(inside)
    if inside and on_word_boundaries(oracle, start, start + len(inside)):
        assert find_quote(inside, oracle, similarity) == (inside, "verbatim")


@target(st.tuples(TEXT, st.lists(TEXT, max_size=3)))
def generated_quotes(value: tuple[str, list[str]]) -> None:
    """Cutting at quotes loses nothing; what is called verbatim stands in a document."""
    from components.core import quotes as evaluated

    text, documents = value
    pieces = evaluated.split(text)
    assert len(pieces) % 2 == 1
    whole = "".join(
        piece if place % 2 == 0 else f"{QUOTE_BEGIN}{piece}{QUOTE_END}"
        for place, piece in enumerate(pieces)
    )
    assert whole == text
    counts = evaluated.check(text, documents, {0})
    assert 0 <= counts.oracle <= counts.verbatim <= counts.quotes <= len(pieces) // 2
    quoted = map(str.strip, pieces[1::2])
    there = sum(any(quote in document for document in documents) for quote in quoted)
    assert counts.verbatim <= there


@target(st.tuples(st.one_of(TEXT, JSON.map(json.dumps)), st.integers(1, 5)))
def questions(value: tuple[str, int]) -> None:
    """At most as many as wanted, each once, on one line, of bounded length."""
    from components.generate.questions import is_contentless, parse_questions

    reply, wanted = value
    for text in (reply, json.dumps({"questions": reply.split("?")})):
        for kind in ("general", "api call"):
            parsed = parse_questions(text, wanted, kind)
            assert len(parsed) == len(set(parsed)) <= wanted
            assert all(len(question) <= 1000 and question.strip() for question in parsed)
            assert all(len(question.splitlines()) == 1 for question in parsed)
            assert all(not any(mark in question for mark in MARKS) for question in parsed)
            assert parse_questions(json.dumps({"questions": parsed}), wanted, kind) == parsed
            for question in parsed:
                question.encode()
                is_contentless(question)


@target(st.tuples(TEXT, TEXT))
def text(value: tuple[str, str]) -> None:
    """Folding keeps track of every character; a needle that is found is there, in whole words."""
    from components.generate.text import find_words, folded, normalized, on_word_boundaries, widen

    one, other = value
    plain, origin = folded(one)
    assert len(plain) == len(origin) and origin == sorted(origin)
    assert all(0 <= place < len(one) for place in origin)
    assert normalized(f" {one}\n") == normalized(one)
    for needle in (other, one[1:4], one[len(one) // 2 :]):
        start = find_words(needle, one)
        if start >= 0:
            assert one[start : start + len(needle)] == needle
            assert on_word_boundaries(one, start, start + len(needle))
    start, end = widen(one, len(one) // 3, len(one) // 2)
    assert 0 <= start <= len(one) // 3 and len(one) // 2 <= end <= len(one)
    assert on_word_boundaries(one, start, end)


# ---- rows ----------------------------------------------------------------------------------------

ROW = {
    "id": "seed_task_0", "type": "general", "question": "Where was Ada Voss born?",
    "context": {"title": [["Ada", "Bram"]], "sentences": [["Ada was born in Kelden.", "Bram."]]},
    "oracle_context": "Ada was born in Kelden.",
    "cot_answer": "##begin_quote##Ada was born in Kelden.##end_quote## <ANSWER>: Kelden",
    "instruction": "<DOCUMENT>Ada was born in Kelden.</DOCUMENT>\nWhere was Ada Voss born?",
    "answer": "Kelden", "oracle_index": 0, "distractor_ids": ["b"], "teacher": "extractive",
}  # fmt: skip
QUESTION = {
    "_id": "q1", "question": "Where was Ada born?", "answer": "Kelden", "type": "bridge",
    "supporting_facts": [["Ada", 0]], "level": "easy",
    "context": [["Ada", ["Ada was born.", " In Kelden."]], ["Bram", ["Bram bakes."]]],
}  # fmt: skip
HUB_QUESTION = {
    "id": "q1", "question": "Where was Ada born?", "answer": "Kelden",
    "supporting_facts": {"title": ["Ada"], "sent_id": [0]},
    "context": {"title": ["Ada", "Bram"], "sentences": [["Ada was born."], ["Bram bakes."]]},
}  # fmt: skip
API = {"api_name": "users.get", "api_call": "users.get()", "api_arguments": {"id": "a number"}}


def rows_of(*kinds: Any) -> st.SearchStrategy[str]:
    """The text of a file: edited rows as a list or as lines, sometimes damaged; as latin-1."""
    rows = st.lists(st.one_of(*map(edited, kinds), JSON), min_size=1, max_size=3)
    whole = st.one_of(
        rows.map(json.dumps),
        rows.map(lambda rows: "\n".join(map(json.dumps, rows))),
        rows.map(lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)),
    ).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return whole.flatmap(lambda data: st.one_of(st.just(data.decode("latin-1")), damaged(data)))


@target(rows_of(ROW, QUESTION))
def rows(file: str) -> None:
    """Numbers count up; an error names the file; what is read can be written and read again."""
    from components.core.json_entries import read_entries
    from components.core.records import RaftRow, read_jsonl

    path = as_file("rows.jsonl", file)
    try:
        _, numbered = read_entries(path)
        numbers, entries = zip(*numbered, strict=True) or ((), ())
    except DataError as error:
        assert str(path) in str(error)
    except ValueError:  # nothing to unzip: no rows
        pass
    else:
        assert list(numbers) == sorted(set(numbers)) and numbers[0] >= 1
        again = as_file("again.json", "\n" + json.dumps(list(entries)))
        assert repr([entry for _, entry in read_entries(again)[1]]) == repr(list(entries))
    with suppress(DataError):
        for row in read_jsonl(path, RaftRow):
            assert RaftRow.model_validate_json(row.model_dump_json()) == row


@target(rows_of(QUESTION, HUB_QUESTION, ROW))
def eval_questions(file: str) -> None:
    """Every question that is read can be shown in every way; its oracles are where it says."""
    from components.eval.config import ORACLES
    from components.eval.questions import ContextLayout, arrange, read_examples

    path = as_file("questions.json", file)
    try:
        examples = read_examples(path, "hotpotqa")
    except DataError as error:
        assert str(path) in str(error)
        return
    assert len({example.id for example in examples}) == len(examples) > 0
    for example in examples:
        for distractors in (-1, 0, 1):
            for oracle in ORACLES:
                arranged = arrange(example, ContextLayout(distractors, oracle))
                assert all(index < len(arranged.documents) for index in arranged.golden)
                assert bool(arranged.golden) == (oracle != "absent")
                arranged.model_dump_json().encode()


# ---- documents -----------------------------------------------------------------------------------

PAGES = [
    "<html><body><main><h1>Ada</h1><p>Born in <b>Kelden</b>.</p><ul><li>one<ul><li>two</ul></ul>"
    "<table><tr><th colspan=2>a</th></tr><tr><td>1</td><td rowspan=3>2</td></tr></table>"
    "<blockquote><pre>x = 1</pre></blockquote><ol start=7><li>z</ol></main></body></html>",
    "<!doctype html><meta charset=utf-16><nav>no</nav><article><dl><dt>a<dd>b</dl>"
    "<script>alert(1)</script>&amp;&#0;&#xD800;<img src=x alt='y'></article>",
]
TAGS = st.sampled_from([
    "<ul><li>", "<ol start='-9'>", "<li>", "<blockquote>", "<table>", "<tr>",
    "<td colspan='99999'>", "<td>", "<th rowspan=9>", "<pre>", "<code>", "</p>", "</table>", "<h6>",
    "<br>", "<hr>", "<main>", "</main>", "<a href='", "<dl><dd>", "<sub>", "<video>", "<caption>",
    "<!--", "-->", "<![CDATA[", "]]>", "&#1114112;", "&#0;", "<svg>", "<math>", "<figure>",
    "<thead>", "<tbody>", "<q>", "<kbd>", "<header>", "<aside>", "<form>", "<article>",
    "<noscript>", "<nav>", "<a>x</a>", "</html>", "<frameset>",
])  # fmt: skip


@target(
    st.one_of(
        *(damaged(page.encode()) for page in PAGES),
        st.lists(st.one_of(TAGS, st.text(max_size=6)), max_size=30)
        .map("".join)
        .map(lambda page: page.encode("utf-8", "replace").decode("latin-1")),
        st.tuples(TAGS, st.integers(1, 800)).map(lambda pair: pair[0] * pair[1] + "x"),
    )
)
def html(page: str) -> None:
    """A document or a reason; of bounded length."""
    _one_document(as_file("page.html", page), most=2_000 * len(page) + 1000)


def _one_document(path: Path, most: int) -> None:
    from components.core.corpus.documents import read_document
    from components.core.corpus.formats import Unreadable

    try:
        documents = list(read_document(path, path.parent))
    except Unreadable as error:
        assert error.reason and error.problem
        return
    (document,) = documents
    assert document.id == path.name and document.text == document.text.strip() != ""
    assert len(document.text) <= most, f"{len(document.text)} characters of {path.stat().st_size}"
    document.text.encode()


BODY = (
    '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Ada</w:t></w:r></w:p>'
    "<w:p><w:r><w:t>Born in Kelden.</w:t><w:br/><w:tab/></w:r></w:p>"
    '<w:tbl><w:tblPr/><w:tblGrid><w:gridCol w:w="9"/><w:gridCol w:w="9"/></w:tblGrid>'
    '<w:tr><w:tc><w:tcPr><w:gridSpan w:val="2"/></w:tcPr><w:p/></w:tc></w:tr>'
    '<w:tr><w:tc><w:tcPr><w:vMerge w:val="restart"/></w:tcPr><w:p><w:r><w:t>a</w:t></w:r></w:p>'
    "</w:tc><w:tc><w:p/></w:tc></w:tr><w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/></w:tc><w:tc>"
    "<w:p/></w:tc></w:tr></w:tbl><w:sectPr/>"
)
HEADING = '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'


def _parts(content: bytes) -> dict[str, bytes]:
    """The files in a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


DOCX = _parts(bombs.docx(BODY, parts={"styles": HEADING}))
DOCUMENT = DOCX["word/document.xml"].decode()


@target(
    st.tuples(
        st.sampled_from([
            *["word/document.xml"] * 2, "word/_rels/document.xml.rels", "_rels/.rels",
            "[Content_Types].xml", "",
        ]),
        st.one_of(
            damaged(DOCUMENT.encode()),
            st.integers().map(lambda n: DOCUMENT.replace('"2"', f'"{n}"')),
        ),
    )
)  # fmt: skip
def docx(value: tuple[str, str]) -> None:
    """A document or a reason, whichever part of the file is damaged; of bounded length."""
    name, content = value
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, data in DOCX.items():
            archive.writestr(part, content.encode("latin-1") if part == name else data)
    data = buffer.getvalue().decode("latin-1") if name else content
    _one_document(as_file("text.docx", data), most=20 * len(content) + 1000)


PDF = bombs.page(
    bombs.stream(b"", b"BT /F1 12 Tf 72 720 Td (Ada was born in Kelden.) Tj ET"),
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>",
    bombs.stream(b"", b"1 beginbfrange <00> <7F> <0041> endbfrange\n"
                      b"1 beginbfchar <41> <D800> endbfchar"),
    fonts=b"/Font << /F1 6 0 R >>",
)  # fmt: skip


@target(damaged(PDF))
def pdf(file: str) -> None:
    """A document or a reason; of bounded length."""
    _one_document(as_file("text.pdf", file), most=100 * len(file) + 10_000)


@target(
    st.tuples(rows_of(QUESTION, HUB_QUESTION, API, {"text": "Ada.", "title": "T"}), st.booleans())
)
def json_documents(value: tuple[str, bool]) -> None:
    """Documents with unlike ids and some text, or an error that names the file."""
    from components.core.corpus.documents import read_document, unreadable_document
    from components.core.corpus.formats import Unreadable

    file, by_field = value
    path = as_file("documents.json", file)
    try:
        documents = list(read_document(path, path.parent, "text" if by_field else ""))
    except Unreadable as error:
        assert error.reason and str(path) in str(unreadable_document(path, error))
        return
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert document.text.strip() and document.id.startswith(path.name)
        assert document.model_dump_json().encode()
        assert len(document.text) <= 10 * len(file) + 100


# ---- manifests ----------------------------------------------------------------------------------


def _manifests() -> list[dict[str, Any]]:
    import yaml

    documents = []
    for path in sorted((REPOSITORY / "k8s" / "base").rglob("*.yaml")):
        documents += [entry for entry in yaml.safe_load_all(path.read_text("utf-8")) if entry]
    return documents


YAML_TEXT = st.sampled_from([
    "a: !!int x", "a: !!timestamp 2020-99-99", "? [a]\n: b", "? {a: b}\n: c",
    "!!python/object:os.system x", "a: &a [*a]", "a: &a {b: *a}", "kind: Job\n<<: 3",
    "kind: Job\n<<: [1]", "--- !x\nkind: Job", "a: !!binary é", "a: 12:61:61", "a: 0b",
    "a: !!float _", "- kind: Job", "kind: [Job]", "{kind: Job, metadata: []}", "a: 2001-13-45",
    "kind: Job\nspec: &s\n  template: *s", "!!set {a, b}", "!!omap [a]", "!!pairs [[a, b]]",
    "a: 0o9", "a: 190:20:30.15",
])  # fmt: skip


@target(
    st.one_of(
        st.sampled_from(_manifests()).flatmap(edited).map(json.dumps),
        YAML_TEXT,
        st.tuples(YAML_TEXT, st.text(max_size=20)).map("\n".join),
        damaged((REPOSITORY / "k8s" / "base" / "train.yaml").read_bytes()).map(
            lambda text: text.encode("latin-1").decode("utf-8", "replace")
        ),
    )
)
def manifests(text: str) -> None:
    """Errors with file and line, or Jobs; never another exception."""
    from pipelines import manifests as read
    from pipelines.k8s.located import parse

    try:
        read.jobs_among(parse(text, "given.yaml"))
    except ConfigError as error:
        assert "given.yaml" in str(error)


@target(st.one_of(SCALARS.map(str), st.text(alphabet="0123456789.mkKMGTiEe+- ", max_size=12)))
def quantities(value: str) -> None:
    """What is allowed as a quantity has an amount, and no more than 4,000 digits take part."""
    from pydantic import TypeAdapter, ValidationError

    from pipelines.k8s.values import Bytes, Count, Cpu, amount

    for kind in (Cpu, Bytes):
        with suppress(ValidationError):
            assert amount(TypeAdapter(kind).validate_python(value)) >= 0
    with suppress(ValidationError):
        assert TypeAdapter(Count).validate_python(value) >= 1


# ---- prompts, ledgers, artifacts -----------------------------------------------------------------

PROMPT = st.lists(
    st.one_of(
        st.sampled_from(
            ["$chunk", "${chunk}", "$question", "${count}", "$$", "$", "${", "$1", "\n"]
        ),
        st.text(max_size=6),
    ),
    max_size=12,
).map("".join)


@target(st.tuples(PROMPT, TEXT, TEXT))
def prompts(value: tuple[str, str, str]) -> None:
    """A prompt is filled once: what stands in a chunk or question is never a placeholder."""
    from components.core.records import Chunk
    from components.generate.config import GenerateConfig
    from components.generate.teachers.prompts import Prompts

    template, chunk, question = value
    path = SCRATCH / "prompt.md"
    path.write_bytes(template.encode("utf-8", "surrogatepass"))
    config = GenerateConfig(
        documents="d", output="o", answer_prompt=str(path), teacher="openai", teacher_model="m",
        teacher_endpoint="http://e/v1",
    )  # fmt: skip
    try:
        with redirect_stderr(io.StringIO()):
            loaded = Prompts(config)
    except ConfigError as error:
        assert str(path) in str(error)
        return
    about = Chunk(id="c", document_id="d", title="", text=chunk, start=0, end=len(chunk))
    written = loaded.for_answer(about, question).prompt
    assert chunk in written and question in written
    holes = loaded.templates["answer", "general"].template
    assert written.count("$") == (
        holes.count("$$")
        + len(re.findall(r"(?<!\$)(?:\$\$)*\$\{?chunk", holes)) * chunk.count("$")
        + len(re.findall(r"(?<!\$)(?:\$\$)*\$\{?question", holes)) * question.count("$")
    )


LEDGER = {
    "stage": "train", "seconds": 1.5, "tokens_in": 3, "tokens_out": 4, "requests": 0, "gpu": "",
    "gpu_count": 0, "peak_memory_bytes": 5, "peak_gpu_memory_bytes": 0, "cost": 0.5,
    "prices_date": "2026-01-01", "parts": {"raft": 1.0},
}  # fmt: skip


@target(rows_of(LEDGER))
def ledgers(file: str) -> None:
    """A ledger is refused with its file's name, or adds up and is read again."""
    from components.core.describe import ledger_table
    from components.core.ledger import LedgerEntry, total
    from components.core.pages import markdown_table
    from components.core.records import read_json

    path = as_file("ledger.json", file.strip("[]"))
    try:
        entry = read_json(path, LedgerEntry)
    except DataError as error:
        assert str(path) in str(error)
        return
    assert LedgerEntry.model_validate_json(entry.model_dump_json()) == entry
    run = total([entry, entry])
    assert (run.cost is None) == (entry.cost is None)
    table = markdown_table(ledger_table(run))
    assert len(table.splitlines()) == 5


MANIFEST = {
    "files": [
        {"path": "train.jsonl", "size": 3, "crc32c": "AAAAAA=="},
        {"path": "sub/model.safetensors", "size": 3, "crc32c": "AAAAAA=="},
    ]
}
NAMES = st.sampled_from([
    "../outside", "/outside", "sub/../../outside", "sub/./a", "..", ".", "", "a//b", "~/x", "a\0b",
    "a\nb", "sub", "x" * 300, "train.jsonl/a", "manifest.json", "\ud800",
])  # fmt: skip


@target(
    st.one_of(
        rows_of(MANIFEST),
        NAMES.map(
            lambda name: json.dumps({"files": [{"path": name, "size": 0, "crc32c": "AAAAAA=="}]})
        ),
    )
)
def artifact_manifests(file: str) -> None:
    """Any manifest is refused or held to; nothing outside the folder is read, made or removed."""
    from components.core.storage import begin_artifact, finish_artifact, verify

    outside = as_file("artifact-outside/outside", "keep")
    folder = SCRATCH / "artifact-outside" / "artifact"
    as_file("artifact-outside/artifact/train.jsonl", "abc")
    as_file("artifact-outside/artifact/sub/model.safetensors", "abc")
    path = as_file("artifact-outside/artifact/manifest.json", file.strip("[]"))
    try:
        verify(folder, "--dataset")
    except DataError as error:
        assert str(folder) in str(error)
    with suppress(RaftError):
        begin_artifact(folder)
        assert not path.exists()
        finish_artifact(folder)
        verify(folder, "--dataset")
    assert outside.read_text() == "keep"
    assert {entry.name for entry in outside.parent.iterdir()} == {"outside", "artifact"}
    for entry in sorted(folder.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()


@target(st.one_of(TEXT, st.text(alphabet="gs:/ab.-_%#?[]\n\0", max_size=24).map("gs://".__add__)))
def uris(location: str) -> None:
    """A location is understood or refused; none is another one's."""
    from components.core.locations import SCHEME
    from components.core.storage.bucket import is_remote, locate

    os.environ["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:9"
    if not location.startswith(SCHEME):
        with suppress(StorageError):
            assert not is_remote(location)
            assert not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location)
        return
    try:
        bucket, prefix = locate(location)
    except StorageError as error:
        assert location in str(error)
        return
    assert bucket.name and "/" not in bucket.name
    assert not prefix.startswith("/") and not prefix.endswith("/")
    assert (
        f"gs://{bucket.name}/{prefix}".rstrip("/") == re.sub(r"(?<=[^/:])/+$", "", location)
        or "//" in location[5:]
    )


@target(st.tuples(st.lists(TEXT, min_size=1, max_size=4), st.integers(0, 10**6), st.integers(0, 7)))
def kept_responses(value: tuple[list[str], int, int]) -> None:
    """A flipped bit in what is kept loses the response that it hits, and changes none."""
    from components.core.chat_protocol import Completion, Request
    from components.generate.teachers.responses import open_responses

    texts, place, bit = value
    folder = SCRATCH / "responses"
    requests = [Request(f"{number} {text}", "m", 32, 0) for number, text in enumerate(texts)]
    with open_responses(str(folder)) as responses:
        for request, text in zip(requests, texts, strict=True):
            responses.put(request, Completion(text=text.encode("utf-8", "replace").decode()))
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with open_responses(str(folder)) as responses:
        assert len(texts) - 2 <= len(responses) < len(texts)
        for request, text in zip(requests, texts, strict=True):
            found = responses.get(request)
            assert found is None or found.text == text.encode("utf-8", "replace").decode()
    path.unlink()


@target(st.tuples(st.lists(TEXT, min_size=1, max_size=4), st.integers(0, 10**6), st.integers(0, 7)))
def kept_generations(given: tuple[list[str], int, int]) -> None:
    """A flipped bit in what is kept loses the batch that it hits, and changes none."""
    from components.eval.generations import Batch, Generation, Generations

    texts, place, bit = given
    path = SCRATCH / "generations.jsonl"
    path.unlink(missing_ok=True)
    kept = Generations(path)
    for number, text in enumerate(texts):
        said = Generation(
            key=f"{number:032x}", text=text.encode("utf-8", "replace").decode(), tokens_in=1,
            tokens_out=2, truncated=False,
        )  # fmt: skip
        kept.add(Batch(model="m", weight_bytes=1, seconds=0.5, generations=[said]))
    kept.close()
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with redirect_stderr(io.StringIO()):
        again = Generations(path)
    again.close()
    assert len(texts) - 2 <= len(again.by_key) < len(texts)
    for key, generation in again.by_key.items():
        assert generation == kept.by_key[key]


STEP = {
    "inputs": {"artifacts": {"a": {"artifacts": [{"name": "a", "uri": "gs://b/a"}]}}},
    "outputs": {
        "artifacts": {
            "m": {"artifacts": [{"uri": "gs://b/m", "type": {"schemaTitle": "system.Metrics"}}]}
        },
        "parameters": {"gate": {"outputFile": "/tmp/gate"}},
        "outputFile": "/tmp/x",
    },
}


@target(rows_of(STEP))
def steps(text: str) -> None:
    """Kubeflow's description of a step is read, or refused with the flag's name."""
    from components.core.kubeflow import Step

    try:
        step = Step.parse(text.strip("[]"))
    except ConfigError as error:
        assert "--executor-input" in str(error)
        return
    with suppress(ConfigError):
        step.state("x")
        step.folders_to_read("summary")
