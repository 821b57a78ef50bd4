"""Read the questions in a teacher's reply, and tell those that are worth a row."""

import json
import re
from typing import Any

from components.core.raft_form import ANSWER_MARKER, QUOTE_BEGIN, QUOTE_END
from components.generate.text import without_spaces

_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
QUESTION_MARKS = "?？؟;՞⁇⸮፧꘏"
"""Of Latin, Chinese and Japanese, Arabic, Greek, Armenian, …, Ethiopic and Vai script."""

MARKS = (QUOTE_BEGIN, QUOTE_END, ANSWER_MARKER)
LEAST_WORDS = 3
MOST_CHARACTERS = 1000
LEAST_CHARACTERS = 4  # in scripts that do not put spaces between words

_POINTING = re.compile(
    r"\b(?:the|this|that|given|provided|above|following) (?:given |provided |above |following )?"
    r"(?:passage|text|document|paragraph|article|excerpt|context|chunk|section|snippet)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"""["“«„`'‘].{1,200}?["”»“`'’]""")


def parse_questions(reply: str, wanted: int, kind: str = "general") -> list[str]:
    """The first `wanted` questions of a reply, each once.

    Takes a JSON object with `questions`, a JSON list, either of them in a code fence, or lines.
    Of lines, those count that end in a question mark of any script, or that carry a list mark and
    are about an API (there, an instruction such as "Read my profile." is a question); list marks
    and quotes around them are taken off, and preamble ("Here is an example question:") falls away.
    """
    structured = _from_json(reply)
    candidates = (
        [_bare(text) for text in structured]
        if structured is not None
        else [_bare(line) for line in reply.splitlines() if _asks(line, kind)]
    )
    fit = (text for text in candidates if _fits(text))
    return list(dict.fromkeys(fit))[:wanted]


def is_contentless(question: str) -> bool:
    """Whether a question points at "the passage" and names nothing that a reader could look up.

    A name is a word with a capital letter after the first word, a number, or quoted words.
    """
    if not _POINTING.search(question):
        return False
    rest = question.split()[1:]
    named = any(word.strip("(\"'“‘")[:1].isupper() or word[:1].isdigit() for word in rest)
    return not named and not _QUOTED.search(question)


def _from_json(reply: str) -> list[str] | None:
    """The questions of a reply in JSON; None where it is none."""
    fenced = _FENCE.search(reply)
    try:
        value: Any = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("questions")
    if not isinstance(value, list):
        return None
    texts = [item.get("question") if isinstance(item, dict) else item for item in value]
    # JSON within JSON may hold halves of surrogate pairs, which cannot be stored.
    return [text.encode("utf-8", "replace").decode() for text in texts if isinstance(text, str)]


def _asks(line: str, kind: str) -> bool:
    bare = _bare(line)
    if bare.endswith(tuple(QUESTION_MARKS)):
        return True
    return kind == "api call" and not bare.endswith(":") and _LIST_MARK.match(line) is not None


def _bare(line: str) -> str:
    """A line without list marks, bold and quotes around it."""
    return _LIST_MARK.sub("", " ".join(line.split())).strip(' "*“”')


def _fits(text: str) -> bool:
    """Whether a question is neither too long nor too short, and without a row's markers.

    In a question they would be taken for the answer's.
    """
    if len(text) > MOST_CHARACTERS or any(mark in text for mark in MARKS):
        return False
    if any(map(without_spaces, text.rstrip(QUESTION_MARKS))):
        return len(text) >= LEAST_CHARACTERS
    return len(text.split()) >= LEAST_WORDS
