"""Parse what teachers write, and check it against the oracle chunk.

A chain-of-thought answer is kept when it ends in `<ANSWER>: …` and every passage between
`##begin_quote##` and `##end_quote##` stands in the oracle. A quote that differs in whitespace
only is replaced by the oracle's own text.
"""

import re

from components.records import ANSWER_MARKER, QUOTE_BEGIN, QUOTE_END

_QUOTE = re.compile(f"{QUOTE_BEGIN}(.*?){QUOTE_END}", re.DOTALL)
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")


class Unusable(Exception):
    """A teacher's reply cannot become a row; the message is the reason that the report counts."""


def parse_questions(reply: str, wanted: int) -> list[str]:
    """The questions in a reply: lines that end in a question mark, without list marks or quotes.

    Preamble ("Here is an example question:") and empty lines fall away.
    """
    lines = (_LIST_MARK.sub("", line).strip().strip('"*').strip() for line in reply.splitlines())
    return [line for line in lines if line.endswith("?") and len(line.split()) > 2][:wanted]


def final_answer(cot_answer: str) -> str:
    """The text after the last answer marker: its first line with words, without bold marks.

    Raises:
        Unusable: there is no marker, or nothing after it.
    """
    _, marker, tail = cot_answer.rpartition(ANSWER_MARKER)
    if not marker:
        raise Unusable("no answer marker")
    for line in tail.splitlines():
        if answer := line.strip().strip("*").strip():
            return answer
    raise Unusable("nothing after the answer marker")


def verify_quotes(cot_answer: str, oracle: str) -> str:
    """The answer with every quote verbatim from the oracle.

    Raises:
        Unusable: it quotes nothing, leaves a quote open, or quotes what the oracle does not say.
    """
    if cot_answer.count(QUOTE_BEGIN) != cot_answer.count(QUOTE_END):
        raise Unusable("quote left open")
    if not _QUOTE.search(cot_answer):
        raise Unusable("no quote")
    return _QUOTE.sub(
        lambda match: QUOTE_BEGIN + _verbatim(match.group(1), oracle) + QUOTE_END, cot_answer
    )


def _verbatim(quote: str, oracle: str) -> str:
    words = quote.split()
    if not words:
        raise Unusable("empty quote")
    found = re.search(r"\s+".join(map(re.escape, words)), oracle)
    if found is None:
        raise Unusable("quote not in the oracle")
    return found.group()
