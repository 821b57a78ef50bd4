"""The prompt and the answer format of RAFT, which generate, train and eval share.

Source: the published RAFT code. Models write its marks in many spellings.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

QUOTE_BEGIN = "##begin_quote##"
QUOTE_END = "##end_quote##"
ANSWER_MARKER = "<ANSWER>:"

TEMPLATE = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
"""The same as `instruction`, for the beginning of a chat template: a test holds them equal.

A request's `documents`, which transformers and vLLM hand to templates, go in front of the last
question. Without any, the template does what it did.
"""

NO_DOCUMENT_ANSWERS = "None of the documents answers the question."
REFUSAL = "not in the documents"
"""The answer of a model that was trained to refuse (`--oracle-absent refuse`)."""

_THINK_TAG = re.compile(r"[<\[◁]\s{0,3}(/?)\s{0,3}think(?:ing)?\s{0,3}[>\]▷]", re.IGNORECASE)

_ANSWER = r"(?:final\s)?(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ|答案|答え)"
_MARKERS = tuple(
    re.compile(form, re.IGNORECASE | re.MULTILINE)
    for form in (
        rf"\*{{0,3}}[<＜]\s{{0,9}}{_ANSWER}\s{{0,9}}[>＞]\*{{0,3}}\s{{0,9}}[:：]?\*{{0,3}}",
        rf"(?:^[\s>#*_]{{0,9}}|(?<=[.!?] )\*{{0,3}})(?:(?:the|my)\s)?{_ANSWER}(?:\sis)?"
        r"\s{0,9}\*{0,3}\s{0,9}[:：]\*{0,3}",
        rf"^(?:\#{{1,6}}\s|\*\*)\s{{0,9}}{_ANSWER}\*{{0,3}}[ \t]*$",
        r"(?=\\boxed\{)",
    )
)
"""Of the first that a text holds, the last one begins the answer."""

_CLOSING = re.compile(rf"[<＜]/\s{{0,9}}{_ANSWER}\s{{0,9}}[>＞]", re.IGNORECASE)
_FENCE = re.compile(r"^\s{0,9}```\w*\s{0,9}$", re.MULTILINE)
_EDGES = "*" + "".join(filter(str.isspace, map(chr, range(0x3001))))  # all white space
_BOX = "\\boxed{"
_BOXED = re.compile(r"((?:[^{}]|\{[^{}]*\})*)\}")
_TEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")


_MARKS = {
    "holds one of RAFT's own marks": re.compile(
        r"##(?:begin|end)_quote##|</?DOCUMENT>|<\s{0,9}/?\s{0,9}(?i:answer)\s{0,9}>"
    ),
    "holds a token of a chat template": re.compile(
        r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|/?s)>"
    ),
}


class Parts(NamedTuple):
    """A generation taken apart; `answer` is empty where it gives none.

    marked: whether anything marks where an answer should be.
    """

    reasoning: str
    answer: str
    marked: bool


def instruction(documents: Iterable[str], question: str) -> str:
    """The prompt: each document between tags on its own line, then the question."""
    return "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in documents) + question


def injected_markers(text: str) -> str:
    """Why a text would end a quote, an answer, a document or a turn too early; "" if it would not.

    Markers count, too, in characters that tokenizers drop or read as plain ones.
    """
    if not text.isascii():
        plain = unicodedata.normalize("NFKC", text)
        text = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    return next((reason for reason, marks in _MARKS.items() if marks.search(text)), "")


def is_refusal(answer: str) -> bool:
    """Whether an answer is the refusal, but for case and a final stop."""
    return answer.strip().rstrip(".").casefold() == REFUSAL


def find_answer(generation: str) -> tuple[str, bool]:
    """The answer in a generation, and whether the generation gave one.

    Without a marker the whole generation is returned, and with nothing after the marker an empty
    text; neither counts as an answer.
    """
    parts = split_answer(generation)
    return (parts.answer if parts.marked else parts.reasoning), bool(parts.answer)


def split_answer(generation: str) -> Parts:
    """What a model reasoned, and its answer: what follows the last answer marker.

    That is `<ANSWER>:` in any spelling; without it, "Answer:" where a line or a sentence begins;
    without that, such a heading, or `\\boxed{…}`. The answer is the first line with content after
    it, without Markdown. A JSON object with an answer is read as well.
    """
    text = without_thought(generation)
    if parts := _from_json(text):
        return parts
    for marker in _MARKERS:
        if markers := [*marker.finditer(text)]:
            reasoning = text[: markers[-1].start()].strip()
            return Parts(reasoning, _first_line(text[markers[-1].end() :]), True)
    return Parts(text.strip(), "", False)


def without_thought(text: str) -> str:
    """A text without what a model thought between `<think>` and `</think>`.

    A chat template may have written the opening tag; a reply that was cut off lacks the closing
    one.
    """
    rest: list[str] = []
    start, thinking = 0, False
    for tag in _THINK_TAG.finditer(text):
        if tag[1]:
            if not thinking:
                rest.clear()
            start, thinking = tag.end(), False
        elif not thinking:
            rest.append(text[start : tag.start()])
            thinking = True
    return "".join(rest if thinking else [*rest, text[start:]])


def _from_json(text: str) -> Parts | None:
    with suppress(ValueError, RecursionError, AttributeError):
        fields = json.loads(_FENCE.sub("", text), strict=False).items()
        values = {name.casefold(): value for name, value in fields if isinstance(value, str)}
        if answer := values.pop("answer", ""):
            return Parts("\n".join(values.values()), _first_line(answer), True)
    return None


def _first_line(text: str) -> str:
    text = text.replace(QUOTE_BEGIN, "").replace(QUOTE_END, "")
    lines = (
        _MARKERS[1].sub("", line).replace("**", "").strip(_EDGES)
        for line in _CLOSING.sub("", text).splitlines()
        if not _FENCE.match(line)
    )
    answer = next((line for line in lines if line), "")
    _, box, rest = answer.rpartition(_BOX)
    boxed = _BOXED.match(rest) if box else None
    return _TEX_TEXT.sub(r"\1", boxed[1]).strip() if boxed else answer
