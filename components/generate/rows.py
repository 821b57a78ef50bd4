"""Turn a teacher's drafts into rows: check them, and choose what each shows."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from components.core.corpus.bm25 import Search
from components.core.raft_form import instruction
from components.core.records import Chunk, Context, RaftRow
from components.generate.answers import Unusable, check
from components.generate.config import GenerateConfig
from components.generate.corpus import Corpus
from components.generate.distractors import show
from components.generate.leaks import LeakGuard
from components.generate.questions import is_contentless
from components.generate.sampling import Sampling
from components.generate.teachers.teacher import Draft

SPARE_HITS = 24
"""Of a search, beyond the distractors wanted: for those that hold the answer."""


@dataclass
class RowMaker:
    """Makes rows.

    Attributes:
        search: finds distractors that fit a question; None draws them at random.
        guard: knows the evaluation questions that no row may give away.
        teacher: its name.
        dropped: drafts without a row, by reason.
        quotes: quotes in rows, by how they were found in the oracle.
    """

    config: GenerateConfig
    corpus: Corpus
    sampling: Sampling
    search: Search | None
    guard: LeakGuard | None
    teacher: str
    dropped: Counter[str] = field(default_factory=Counter)
    quotes: Counter[str] = field(default_factory=Counter)

    def rows(self, oracle: Chunk, drafts: Iterable[Draft], split: str) -> Iterator[RaftRow]:
        """The rows about a chunk; their ids are set when they are written."""
        for place, draft in enumerate(drafts):
            rng = random.Random(f"{self.config.seed}/{oracle.id}/{place}")
            try:
                yield self._row(oracle, draft, split, rng)
            except Unusable as reason:
                self.dropped[str(reason)] += 1

    def _row(self, oracle: Chunk, draft: Draft, split: str, rng: random.Random) -> RaftRow:
        """The row of a draft.

        Raises:
            Unusable: the draft must be dropped.
        """
        config = self.config
        if draft.fault:
            raise Unusable(draft.fault)
        if is_contentless(draft.question):
            raise Unusable("question points at the passage and names nothing")
        checked = check(draft.cot_answer, draft.question, oracle.text, config.quote_similarity)
        if self.guard is not None and self.guard.knows_question(draft.question):
            raise Unusable("gives away an evaluation question")
        self.quotes += checked.quotes
        chunks, position = show(
            oracle, checked.answer, self.sampling.pools[split], self.corpus.__getitem__,
            config.distractors, config.oracle_probability, rng, self._best(draft.question, split),
        )  # fmt: skip
        texts = [chunk.text for chunk in chunks]
        return RaftRow(
            id="",
            type=oracle.type,
            question=draft.question,
            context=Context(title=[[chunk.title for chunk in chunks]], sentences=[texts]),
            oracle_context=oracle.text,
            cot_answer=checked.cot_answer,
            instruction=instruction(texts, draft.question),
            answer=checked.answer,
            document_id=oracle.document_id,
            chunk_id=oracle.id,
            oracle_index=position,
            distractor_ids=[chunk.id for chunk in chunks if chunk.id != oracle.id],
            teacher=self.teacher,
        )

    def _best(self, question: str, split: str) -> Iterable[int]:
        """Numbers of the chunks that fit a question best, without what is held out of training."""
        if self.search is None:
            return ()
        numbers = self.search.best(question, self.config.distractors + SPARE_HITS)
        if split == "validation":
            return numbers
        return [number for number in numbers if self.sampling.split_of(number) == "train"]
