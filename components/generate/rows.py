"""Turn a teacher's drafts into rows: check them, then choose what each shows.

What is held out for validation is known once all drafts are checked, because a document without a
usable draft would leave the validation split empty. Until then drafts are on disk.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.core.corpus.bm25 import Search
from components.core.quotes import quoted
from components.core.raft_form import (
    ANSWER_MARKER,
    NO_DOCUMENT_ANSWERS,
    REFUSAL,
    instruction,
)
from components.core.records import Chunk, Context, Dropped, RaftRow, Record
from components.core.storage import writing
from components.generate.answers import Unusable, check
from components.generate.config import GenerateConfig
from components.generate.corpus import Corpus
from components.generate.distractors import show
from components.generate.leaks import LeakGuard
from components.generate.questions import is_contentless
from components.generate.sampling import Split
from components.generate.teachers import Draft
from components.generate.text import WITHOUT_SPACES, normalized

SPARE_HITS = 24
"""Of a search, beyond the distractors wanted: for those that hold the answer."""

PASSAGE_WORDS = 5
PASSAGE_CHARACTERS = 12
"""At least so many words make a quote a passage, or so many characters without spaces."""


class Usable(Record):
    """A draft that passed the checks: the `place`-th about the chunk `number`."""

    number: int
    place: int
    question: str
    cot_answer: str
    answer: str
    quotes: dict[str, int]

    def answers(self) -> list[str]:
        """What no distractor may contain: the answer, and the passages that lead to it.

        Chunks that overlap share passages. A short quote is a name, which may stand anywhere.
        """
        passages = (
            quote
            for quote in quoted(self.cot_answer)
            if len(quote.split()) >= PASSAGE_WORDS
            or (WITHOUT_SPACES.search(quote) and len(quote) >= PASSAGE_CHARACTERS)
        )
        return [self.answer, *passages]


@dataclass
class RowMaker:
    """Makes rows: `check` every draft, then `rows` of a split.

    Attributes:
        search: finds distractors that fit a question; None draws them at random.
        guard: knows the evaluation questions that no row may give away.
        teacher: its name.
        quotes: quotes in rows, by how they were found in the oracle.
        usable: by chunk number, drafts that passed the checks.
    """

    config: GenerateConfig
    corpus: Corpus
    search: Search | None
    guard: LeakGuard | None
    teacher: str
    quotes: Counter[str] = field(default_factory=Counter)
    usable: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._place = Path(tempfile.gettempdir())
        with writing(self._place):
            self._file = tempfile.TemporaryFile(prefix="raft-drafts-")  # noqa: SIM115
        self._questions: set[str] = set()

    def check(self, number: int, drafts: Iterable[Draft]) -> Iterator[Dropped]:
        """Keep the usable ones of the drafts about a chunk; what becomes of the others."""
        oracle = self.corpus[number]
        for place, draft in enumerate(drafts):
            try:
                usable = self._check(draft, number, place, oracle)
            except Unusable as reason:
                yield _dropped(oracle, draft.question, reason, draft.cot_answer)
                continue
            with writing(self._place):
                self._file.write(usable.model_dump_json().encode() + b"\n")
            self.usable[number] += 1

    def _check(self, draft: Draft, number: int, place: int, oracle: Chunk) -> Usable:
        """A draft that can become a row.

        Raises:
            Unusable: the draft must be dropped.
        """
        if draft.fault:
            raise Unusable(draft.fault)
        if is_contentless(draft.question):
            raise Unusable("question points at the passage and names nothing")
        similarity = self.config.quote_similarity
        checked = check(draft.cot_answer, draft.question, oracle.text, similarity)
        if oracle.gold and normalized(checked.answer) != normalized(oracle.gold.answer):
            raise Unusable("explains another answer than the given one")
        if oracle.gold:
            checked = checked.ending_in(oracle.gold.answer)
        if self.guard is not None and self.guard.knows_question(draft.question):
            raise Unusable("gives away an evaluation question")
        question = normalized(draft.question)
        if question in self._questions:
            raise Unusable("question asked before")
        self._questions.add(question)
        return Usable(
            number=number,
            place=place,
            question=draft.question,
            cot_answer=checked.cot_answer,
            answer=checked.answer,
            quotes=checked.quotes,
        )

    def rows(self, split: Split) -> Iterator[tuple[RaftRow | Dropped, str]]:
        """Every row with its split, in the chunks' order, and what became none.

        Ids are set when rows are written.
        """
        with writing(self._place):
            self._file.seek(0)
        for line in self._file:
            usable = Usable.model_validate_json(line)
            part = split.of(usable.number)
            try:
                yield self._row(usable, split), part
            except Unusable as reason:
                oracle = self.corpus[usable.number]
                yield _dropped(oracle, usable.question, reason, usable.cot_answer), part
            else:
                self.quotes.update(usable.quotes)

    def _row(self, usable: Usable, split: Split) -> RaftRow:
        """The row of a draft.

        Raises:
            Unusable: too few chunks can be shown with it.
        """
        config, oracle = self.config, self.corpus[usable.number]
        rng = random.Random(f"{config.seed}/{oracle.id}/{usable.place}")
        pool = split.pools[split.of(usable.number)]
        chunks, position = show(
            oracle, usable.answers(), pool, self.corpus.__getitem__, config.distractors,
            config.oracle_probability, rng, self._best(usable, split),
        )  # fmt: skip
        cot_answer = usable.cot_answer
        if position is None and config.oracle_absent != "answer":
            answer = usable.answer if config.oracle_absent == "no-quote" else REFUSAL
            cot_answer = f"{NO_DOCUMENT_ANSWERS}\n{ANSWER_MARKER} {answer}"
        texts = [chunk.text for chunk in chunks]
        return RaftRow(
            id="",
            type=oracle.type,
            question=usable.question,
            context=Context(title=[[chunk.title for chunk in chunks]], sentences=[texts]),
            oracle_context=oracle.text,
            cot_answer=cot_answer,
            instruction=instruction(texts, usable.question),
            answer=usable.answer,
            document_id=oracle.document_id,
            chunk_id=oracle.id,
            oracle_index=position,
            distractor_ids=[chunk.id for chunk in chunks if chunk.id != oracle.id],
            teacher=self.teacher,
        )

    def _best(self, usable: Usable, split: Split) -> Iterable[int]:
        """Numbers of the chunks that fit a question best, without what is held out of training."""
        if self.search is None:
            return ()
        numbers = self.search.best(usable.question, self.config.distractors + SPARE_HITS)
        if split.of(usable.number) == "validation":
            return numbers
        return [number for number in numbers if split.of(number) == "train"]


def _dropped(oracle: Chunk, question: str, reason: Unusable, reply: str) -> Dropped:
    return Dropped(chunk_id=oracle.id, question=question, reason=str(reason), reply=reply)
