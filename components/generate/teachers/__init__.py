"""Teachers write questions and chain-of-thought answers about chunks, behind one protocol."""

from collections.abc import Generator, Iterable
from typing import Protocol

from components.core.ledger import Ledger
from components.core.records import Chunk, Record
from components.generate.config import GenerateConfig

OVER_COST = "not asked, as --teacher-max-cost is reached"
"""The fault of drafts that a teacher was not asked for."""


class Draft(Record):
    """A question about a chunk and the teacher's unverified answer to it.

    `fault` names why the teacher could not give one ("" = it could); `cot_answer` is then what it
    replied instead.
    """

    question: str = ""
    cot_answer: str = ""
    fault: str = ""


class Teacher(Protocol):
    """Writes drafts."""

    name: str

    def drafts(
        self, chunks: Iterable[Chunk], ledger: Ledger
    ) -> Generator[tuple[Chunk, list[Draft]], None, None]:
        """Each chunk with its drafts, in the chunks' order.

        Raises:
            TeacherError: the teacher cannot be reached or refuses for good.
        """


def make_teacher(config: GenerateConfig) -> Teacher:
    """The teacher that the config names.

    Raises:
        ConfigError: a setting that it needs is missing, or a prompt cannot be used.
    """
    if config.teacher != "extractive":
        from components.generate.teachers.endpoint_teacher import EndpointTeacher

        return EndpointTeacher(config)
    from components.generate.teachers.extractive import ExtractiveTeacher

    return ExtractiveTeacher(config.questions_per_chunk, config.seed)
