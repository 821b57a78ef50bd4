"""Check a teacher's answers against the oracle chunk, and correct what can be corrected.

A chain-of-thought answer is kept if it ends in an answer and everything that it quotes is in the
oracle. A quote is first looked for as it is, then without regard to case, white space and
typography, then by aligning it with the passage most like it; whichever is found, the oracle's
own words replace it. Real teachers copy few passages word for word, so without repair most rows
would be lost, and without the check most rows would teach false quotes.
"""

import re
from collections import Counter
from dataclasses import dataclass

from components.core.raft_form import (
    ANSWER_MARKER,
    QUOTE_BEGIN,
    QUOTE_END,
    find_answer,
    split_answer,
)
from components.generate.text import find_words, folded, normalized, on_word_boundaries, widen

_QUOTE = re.compile(f"{QUOTE_BEGIN}(.*?){QUOTE_END}", re.DOTALL)
_QUOTE_MARK = re.compile(f"({QUOTE_BEGIN}|{QUOTE_END})")
_QUOTE_FORMS = re.compile(
    r"\*{0,3}(?:(?:\\?#){1,3}|[<\[])\s{0,3}(/?)(begin|end)[\s_\\-]{1,2}quote\s{0,3}"
    r"(?:(?:\\?#){1,3}|[>\]])\*{0,3}",
    re.IGNORECASE,
)
_AROUND = " \t\r\n\"'“”‘’«»*_"
_SOURCE = r"\b(?:text|document|passage|context|article|paragraph|excerpt|section|source)s?"
_NOT = r"(?:(?:does|do|did|is|are|was|were) not|\w+n t|not|cannot|can t)(?: be)?"
_TELLS = r"(?:say|state|mention|specify|tell|give|provide|contain|include|indicate|answer|know)"
_TOLD = (
    r"(?:said|stated|mentioned|specified|given|provided|known|available|indicated|disclosed|"
    r"answered|determined|found|inferred|clear|applicable|answerable)"
)
_NO_ANSWER = re.compile(
    r"^(?:n a|unknown|unanswerable)$"
    r"|^(?:there (?:is|was) )?no (?:answer|information|mention)\b"
    r"|^(?:insufficient|not enough) (?:information|context)\b"
    rf"|^(?:it |this |that |the (?:answer|information) )?{_NOT} (?:\w+ )?{_TOLD}\b"
    rf"|^i {_NOT} (?:\w+ )?(?:know|tell|say|answer|determine|find)\b"
    rf"|^it {_NOT} (?:say|state|mention|specify)\b"
    rf"|{_SOURCE} (?:\w+ )?{_NOT} (?:\w+ )?{_TELLS}\b"
    rf"|\b{_NOT} (?:\w+ )?{_TOLD} (?:in|by|from) (?:the|this) (?:\w+ )?{_SOURCE}\b"
)
"""Of a normalized text: "The text does not say.", "Not specified", "I don't know" …"""

_NUMBER = re.compile(r"\d+")

LEAST_CHARACTERS_TO_ALIGN = 12
MOST_LENGTH_OVER_ORACLE = 1.1


class Unusable(Exception):
    """A teacher's reply cannot become a row; the message is the reason that the report counts."""


@dataclass(frozen=True)
class Checked:
    """An answer fit for a row. `quotes` counts its quotes by how they were found."""

    cot_answer: str
    answer: str
    quotes: Counter[str]

    def ending_in(self, answer: str) -> "Checked":
        """The same reasoning with the answer as it was given, not as the teacher wrote it."""
        reasoning = self.cot_answer.removesuffix(self.answer)
        return Checked(reasoning + answer, answer, self.quotes)


def check(cot_answer: str, question: str, oracle: str, similarity: float) -> Checked:
    """The answer with every quote verbatim from the oracle, ending in `<ANSWER>: …`.

    Args:
        cot_answer: as the teacher wrote it.
        question: what it answers.
        oracle: the chunk that it must quote.
        similarity: minimum similarity, 0 to 1, at which a quote is corrected to the oracle's; at 1
            only case, white space and typography may differ.

    Raises:
        Unusable: no answer, or only the question again; no quote, or one that the oracle does
            not hold.
    """
    reasoning, answer, marked = split_answer(_with_plain_marks(cot_answer))
    if not answer:
        raise Unusable("nothing after the answer marker" if marked else "no answer marker")
    if normalized(answer) == normalized(question):
        raise Unusable("answer is the question")
    if _NO_ANSWER.search(normalized(answer)):
        raise Unusable("the answer states that there is none")
    reasoning = reasoning.replace(ANSWER_MARKER, "").strip()
    before, (reasoning, quotes) = reasoning, verify_quotes(reasoning, oracle, similarity)
    if quotes["aligned"] and _quotes(answer, before) and not _quotes(answer, reasoning):
        raise Unusable("answer not in the corrected quote")
    row = f"{reasoning}\n{ANSWER_MARKER} {answer}"
    # Taking one marker out of a text may leave another: <ANS<ANSWER>:WER>:
    if row.count(ANSWER_MARKER) > 1 or _QUOTE_MARK.search(answer) or find_answer(row)[0] != answer:
        raise Unusable("a marker in the reasoning or the answer")
    return Checked(row, answer, quotes)


def _with_plain_marks(text: str) -> str:
    """A text with the marks of quotes as RAFT has them, whatever the spelling."""
    text = _QUOTE_FORMS.sub(
        lambda mark: QUOTE_END if mark[1] or mark[2].lower() == "end" else QUOTE_BEGIN, text
    )
    pieces = text.split(QUOTE_BEGIN)
    if QUOTE_END in text or len(pieces) % 2 == 0:
        return text
    # Some models end a quote with the mark that begins it.
    ends = (QUOTE_END if number % 2 else QUOTE_BEGIN for number in range(len(pieces) - 1))
    return "".join(part for pair in zip(pieces, [*ends, ""], strict=True) for part in pair)


def _quotes(answer: str, reasoning: str) -> bool:
    """Whether one of the quotes holds the answer."""
    wanted = f" {normalized(answer)} "
    return any(wanted in f" {normalized(quote)} " for quote in _QUOTE.findall(reasoning))


def verify_quotes(reasoning: str, oracle: str, similarity: float) -> tuple[str, Counter[str]]:
    """The reasoning with the oracle's own words in every quote, and how each was found.

    Raises:
        Unusable: it quotes nothing, its marks do not pair, or the oracle does not hold a quote.
    """
    pieces = _QUOTE_MARK.split(reasoning)  # text, mark, text, mark, …
    marks = pieces[1::2]
    if not marks:
        raise Unusable("no quote")
    if marks != [QUOTE_BEGIN, QUOTE_END] * (len(marks) // 2):
        raise Unusable("quote marks do not pair")
    quotes: Counter[str] = Counter()
    for place in range(2, len(pieces), 4):
        pieces[place], how = find_quote(pieces[place], oracle, similarity)
        quotes[how] += 1
    corrected = "".join(pieces)
    if _QUOTE_MARK.split(corrected) != pieces:
        raise Unusable("a quote mark in the oracle")
    return corrected, quotes


def find_quote(quote: str, oracle: str, similarity: float) -> tuple[str, str]:
    """The oracle's own words for a quote, and how they were found: verbatim, equal or aligned.

    Raises:
        Unusable: the quote is empty, or the oracle does not hold it.
    """
    bare = quote.strip()
    if find_words(bare, oracle) >= 0:
        return bare, "verbatim"
    wanted = folded(bare.strip(_AROUND))[0].strip()
    wanted = wanted.removeprefix("...").removesuffix("...").strip()
    if not wanted:
        raise Unusable("empty quote")
    text, origin = folded(oracle)
    start = find_words(wanted, text)
    if start >= 0:
        first, last = origin[start], origin[start + len(wanted) - 1] + 1
        if on_word_boundaries(oracle, first, last):
            return oracle[first:last], "equal"
    if similarity < 1 and len(wanted) >= LEAST_CHARACTERS_TO_ALIGN:
        aligned = _align(wanted, text, similarity)
        if aligned is not None:
            # Folding takes some letters apart, and words may end there alone.
            first, last = widen(oracle, origin[aligned[0]], origin[aligned[1] - 1] + 1)
            return oracle[first:last].strip(), "aligned"
    raise Unusable("quote not in the oracle")


def _align(wanted: str, text: str, similarity: float) -> tuple[int, int] | None:
    """The passage of `text` most like `wanted`, in whole words; None if it is not like enough.

    Numbers must be the same ones: "1850" is close to "1950" only for those who count letters.
    """
    from rapidfuzz import fuzz

    if len(wanted) > MOST_LENGTH_OVER_ORACLE * len(text):
        return None
    alignment = fuzz.partial_ratio_alignment(wanted, text, score_cutoff=100 * similarity)
    if alignment is None or len(wanted) > len(text):
        start, end = 0, len(text)
    else:
        start, end = widen(text, alignment.dest_start, alignment.dest_end)
    passage = text[start:end]
    if fuzz.ratio(wanted, passage) < 100 * similarity:
        return None
    if _NUMBER.findall(wanted) != _NUMBER.findall(passage):
        return None
    return start, end
