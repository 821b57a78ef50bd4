"""What a teacher is: it writes questions and chain-of-thought answers about chunks."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from components.core.ledger import Ledger
from components.core.records import Chunk, Record


class Draft(Record):
    """A question about a chunk and the teacher's unverified answer to it.

    `fault` names why the teacher could not give one ("" = it could).
    """

    question: str = ""
    cot_answer: str = ""
    fault: str = ""


class Teacher(Protocol):
    """Writes drafts."""

    name: str

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Iterator[tuple[Chunk, list[Draft]]]:
        """Each chunk with its drafts, in the chunks' order.

        Raises:
            TeacherError: the teacher cannot be reached or refuses for good.
        """
