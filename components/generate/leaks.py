"""Keep evaluation questions out of the training rows.

A model that was trained on the paragraphs of the questions that test it remembers them, and its
score proves nothing about other documents. A chunk is skipped when it shares much of its text with
a paragraph that answers an evaluation question; a row, when its question is such a question, word
for word or nearly.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from components.core.errors import DataError
from components.core.json_entries import fault_at, read_entries
from components.core.records import Question, RaftRow, explain
from components.generate.text import normalized

READABLE = (
    "--eval-questions takes a file in HotpotQA format or rows of generate. Questions on the hub "
    "have to be downloaded first; for those of another format, omit it and check the rows yourself."
)
WORDS_IN_A_ROW = 8
LEAST_SHARE = 0.5
"""Of the runs of 8 words of a chunk or a paragraph, whichever has fewer, that make it a leak."""

LIKE_A_QUESTION = 90.0
"""Percent of similarity, words in any order, from which two questions are the same."""
LIKE_A_WORD = 85.0
"""The same of letters, from which two words are spellings of one."""
LEAST_LETTERS = 4  # of a word that counts as a name: shorter ones are mostly grammar


class LeakGuard:
    """What must not be given away: evaluation questions and the paragraphs that answer them."""

    def __init__(self, path: Path) -> None:
        """Read a file in HotpotQA form, or rows that generate wrote (a file, or its folder).

        Raises:
            DataError: the file cannot be read, or contains no questions; names the row or line.
        """
        self.questions: list[str] = []
        self._paragraphs: list[str] = []
        self._runs: dict[int, list[int]] = {}
        self._run_counts: list[int] = []
        path = path / "validation.jsonl" if path.is_dir() else path
        kind, rows = read_entries(path, hint=READABLE)
        for number, row in rows:
            from_generate = isinstance(row, dict) and "cot_answer" in row
            try:
                if from_generate:
                    raft = RaftRow.model_validate(row)
                    self._add(raft.question, [raft.oracle_context])
                else:
                    question = Question.model_validate(row)
                    self._add(question.question, question.oracles())
            except ValidationError as error:
                raise fault_at(path, kind, number, explain(error)) from error
        if not self.questions:
            raise DataError("contains no questions", path=path, hint=READABLE)

    def knows_context(self, text: str) -> bool:
        """Whether a text holds much of a paragraph that answers a question, or the other way."""
        words = normalized(text).split()
        if not words:
            return False
        if len(words) < WORDS_IN_A_ROW:
            inner = f" {' '.join(words)} "
            return any(inner in paragraph for paragraph in self._paragraphs)
        runs = _runs(words)
        shared: Counter[int] = Counter()
        for run in runs:
            shared.update(self._runs.get(run, ()))
        return any(
            count >= LEAST_SHARE * min(len(runs), self._run_counts[paragraph])
            for paragraph, count in shared.items()
        )

    def knows_question(self, question: str) -> bool:
        """Whether a question is one of the evaluation, or very like one."""
        from rapidfuzz import fuzz, process

        words = _in_order(question)
        similar = process.extract(
            words, self.questions, scorer=fuzz.ratio, score_cutoff=LIKE_A_QUESTION, limit=None
        )
        return any(_names_are_equal(words, known) for known, *_ in similar)

    def _add(self, question: str, oracles: Iterable[str]) -> None:
        self.questions.append(_in_order(question))
        for paragraph in filter(None, map(normalized, oracles)):
            runs = _runs(paragraph.split())
            for run in runs:
                self._runs.setdefault(run, []).append(len(self._paragraphs))
            self._run_counts.append(len(runs))
            self._paragraphs.append(f" {paragraph} ")


def _in_order(question: str) -> str:
    """The words of a question, sorted: questions are alike whatever the order of their words."""
    return " ".join(sorted(normalized(question).split()))


def _names_are_equal(one: str, other: str) -> bool:
    """Whether no name or number differs in two questions: "Who founded Kelden?", "… Kelmor?".

    A longer word that only one of them has must be another spelling of one that the other has.
    """
    from rapidfuzz import fuzz

    first, second = set(one.split()), set(other.split())
    return all(
        any(fuzz.ratio(word, spelling) >= LIKE_A_WORD for spelling in theirs - ours)
        for ours, theirs in ((first, second), (second, first))
        for word in ours - theirs
        if len(word) >= LEAST_LETTERS or word.isdigit()
    )


def _runs(words: list[str]) -> set[int]:
    """The runs of 8 words of a text, hashed; the text itself where it is shorter."""
    return {
        hash(" ".join(words[start : start + WORDS_IN_A_ROW]))
        for start in range(max(1, len(words) - WORDS_IN_A_ROW + 1))
    }
