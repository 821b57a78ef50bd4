"""Teachers write questions and chain-of-thought answers about chunks, behind one protocol."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from components.ledger import Ledger
from components.records import Chunk, Record

if TYPE_CHECKING:
    from components.generate.config import GenerateConfig


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


def make_teacher(config: "GenerateConfig") -> Teacher:
    """The teacher that the config names.

    Raises:
        ConfigError: a setting that it needs is missing, or a prompt cannot be used.
    """
    if config.teacher == "openai":
        from components.generate.teachers.openai import OpenAITeacher

        return OpenAITeacher(config)
    if config.teacher == "vllm":
        from components.generate.teachers.vllm import VllmTeacher

        return VllmTeacher(config)
    from components.generate.teachers.extractive import ExtractiveTeacher

    return ExtractiveTeacher(config.questions_per_chunk, config.seed)
