"""Read the questions in a teacher's reply, and choose those that are worth a row."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from pydantic_core import from_json

from components.core.raft_form import injected_markers
from components.generate.text import WITHOUT_SPACES

_MARK = re.compile(
    r"^(?:[-*•>]|\#{1,6}|\(?\d{1,3}[.):]|\[\d{1,3}\]|\(?[a-z]\))\s+"
    r"|^(?:q|question|instruction|frage|pregunta|domanda|вопрос|问题|問題|質問)"
    r"(?:\s{0,3}\#?\d{1,3}(?:/\d{1,3})?\s{0,3}(?:[:：.)]|\s[–-]\s)|\s{0,3}[:：])\s{0,9}",
    re.IGNORECASE,
)
"""What stands before a question: a list mark, `Q1:`, `Question 2 -` …"""

_TELL = re.compile(r"(?:name|list|describe|explain|state|identify|give|tell)\b", re.IGNORECASE)

_ANSWERED = re.compile(
    r"(?<=[?？؟])[\s*(\[]{1,9}(?:a|answer)\s{0,3}\d{0,3}\*{0,2}[:：].*", re.IGNORECASE
)
_NAMES = re.compile(r"(?:q|question|instruction)s?[ _]?\d*", re.IGNORECASE)
AROUND = ' "*“”'
MOST_BRACKETS = 20  # tried as the beginning of JSON
QUESTION_MARKS = "?？؟;՞⁇⸮፧꘏"
"""Of Latin, Chinese and Japanese, Arabic, Greek, Armenian, …, Ethiopic and Vai script."""

LEAST_WORDS = 3
MOST_CHARACTERS = 1000
LEAST_CHARACTERS = 4  # in scripts that do not put spaces between words

_POINTING = re.compile(
    r"\b(?:the|this|that|given|provided|above|following) (?:given |provided |above |following )?"
    r"(?:passage|text|document|paragraph|article|excerpt|context|chunk|section|snippet)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"""["“«„`'‘].{1,200}?["”»“`'’]""")


def parse_questions(
    reply: str, wanted: int, kind: str = "general", *, cut_off: bool = False
) -> list[str]:
    """The first `wanted` questions of a reply, each once.

    Takes JSON with anything around it: an object with `questions`, a list, or either of them with
    more in it; of one that was cut off, the whole questions. Takes lines, too: those that end in a
    question mark of any script, or that carry a list mark and begin as "Name the …" or are about
    an API (there, any instruction, such as "Read my profile.", is a question). List marks, `Q1:`
    and quotes around questions are taken off, and preamble ("Here is an example question:") falls
    away.
    """
    lines = reply.splitlines()
    if cut_off and lines and not lines[-1].rstrip().endswith(tuple(QUESTION_MARKS)):
        lines.pop()
    questions = (_bare(line) for line in lines if _asks(line, kind))
    for candidates in (map(_bare, _in_json(reply)), questions):
        if fit := [text for text in candidates if _fits(text)]:
            return list(dict.fromkeys(fit))[:wanted]
    return []


def is_contentless(question: str) -> bool:
    """Whether a question points at "the passage" and names nothing that a reader could look up.

    A name is a word with a capital letter after the first word, a number, or quoted words.
    """
    if not _POINTING.search(question):
        return False
    rest = question.split()[1:]
    named = any(word.strip("(\"'“‘")[:1].isupper() or word[:1].isdigit() for word in rest)
    return not named and not _QUOTED.search(question)


def _in_json(reply: str) -> list[str]:
    """The questions of the first JSON in a reply that has any."""
    for start in islice(re.finditer(r"[{\[]", reply), MOST_BRACKETS):
        with suppress(ValueError, RecursionError):
            try:
                value = json.JSONDecoder(strict=False).raw_decode(reply, start.start())[0]
            except ValueError:
                value = from_json(reply[start.start() :], allow_partial=True)
            if texts := [*_texts(value, named=False)]:
                # JSON within JSON may hold halves of surrogate pairs, which cannot be stored.
                return [text.encode("utf-8", "replace").decode() for text in texts]
    return []


def _texts(value: Any, *, named: bool) -> Iterator[str]:
    """The questions in JSON: texts of lists, and of fields that are called so."""
    if isinstance(value, str) and named:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, named=True)
    elif isinstance(value, dict):
        for name, item in value.items():
            if _NAMES.fullmatch(name):
                yield from _texts(item, named=True)
            elif isinstance(item, dict | list) and not any(map(_NAMES.fullmatch, value)):
                yield from _texts(item, named=False)


def _asks(line: str, kind: str) -> bool:
    bare = _bare(line)
    if bare.endswith(tuple(QUESTION_MARKS)):
        return True
    marked = _MARK.match(line.strip(AROUND)) is not None and not bare.endswith(":")
    return marked and (kind == "api call" or _TELL.match(bare) is not None)


def _bare(line: str) -> str:
    """A line without list marks, bold and quotes around it, and without an answer after it."""
    text, before = " ".join(line.split()), ""
    while text != before:
        before, text = text, _MARK.sub("", text.strip(AROUND))
    return _ANSWERED.sub("", text).strip(AROUND)


def _fits(text: str) -> bool:
    """Whether a question is neither too long nor too short, and without a row's markers.

    In a question they would be taken for the answer's.
    """
    if len(text) > MOST_CHARACTERS or injected_markers(text):
        return False
    if WITHOUT_SPACES.search(text.rstrip(QUESTION_MARKS)):
        return len(text) >= LEAST_CHARACTERS
    return len(text.split()) >= LEAST_WORDS
