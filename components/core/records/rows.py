"""What flows through the stages: documents, chunks, RAFT rows, questions.

One RAFT row, as `generate` writes it and `train` reads it (shortened)::

    {"id": "seed_task_0", "type": "general", "question": "Where was Ada Voss born?",
     "context": {"title": [["Ada Voss", "Bram Kell"]],
                 "sentences": [["Ada Voss was born in Kelden.", "Bram Kell …"]]},
     "oracle_context": "Ada Voss was born in Kelden.",
     "cot_answer": "… ##begin_quote##…##end_quote## … <ANSWER>: Kelden",
     "instruction": "<DOCUMENT>Ada Voss was born in Kelden.</DOCUMENT>\\n…Where was …?",
     "answer": "Kelden", "document_id": "ada_voss.md", "chunk_id": "ada_voss.md#0",
     "oracle_index": 0, "distractor_ids": ["bram_kell.md#0"], "teacher": "extractive"}

The first seven columns are those of the published RAFT code, nesting included, so that its readers
read ours; the rest is provenance.
"""

import zlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from components.core.records.record import Record

DocumentForm = Literal["text", "markdown", "api"]
RowType = Literal["general", "api call"]
"""A row about a text, or about the documentation of an API call; the published code's words."""


class Document(Record):
    """One source text. `id` is unique in a corpus and says where the text came from."""

    id: str
    title: str = Field(max_length=1000)  # it is repeated in every chunk
    text: str
    form: DocumentForm = "text"


def _pairs(value: Any) -> Any:
    """The hub's parallel lists, such as `{"title": […], "sentences": […]}`, as pairs."""
    names = value.keys() & {"sentences", "sent_id"} if isinstance(value, dict) else set()
    if not names or "title" not in value:
        return value
    name = min(names)
    titles, others = value["title"], value[name]
    if not isinstance(titles, list) or not isinstance(others, list):
        raise ValueError(f"title and {name} must be lists")
    if len(titles) != len(others):
        raise ValueError(f"{len(titles)} titles but {len(others)} lists of {name}")
    return list(zip(titles, others, strict=True))


class Paragraphs(BaseModel):
    """A row in HotpotQA format, of which only the paragraphs are read: titles with sentences.

    Takes the original nesting `[[title, [sentence, …]], …]` and the hub's
    `{"title": [...], "sentences": [[...], ...]}`.
    """

    context: Annotated[list[tuple[str, list[str]]], BeforeValidator(_pairs)]


class Gold(Record):
    """A question that is given with its answer, and the sentences of its oracle that support it."""

    question: str
    answer: str
    sentences: list[str]


class Chunk(Record):
    """A piece of a document; `start` and `end` are character offsets into its text."""

    id: str
    document_id: str
    title: str
    text: str
    start: int
    end: int
    type: RowType = "general"
    gold: Gold | None = None


class Context(Record):
    """The documents shown with a question, nested as HotpotQA and the published code nest them.

    Both lists have one inner list, with one entry a document.
    """

    title: list[list[str]]
    sentences: list[list[str]]


class RaftRow(Record):
    """One training row; see the module's example. Others' rows have numbers as ids, or no type."""

    id: str = Field(coerce_numbers_to_str=True)
    type: RowType = "general"
    question: str
    context: Context
    oracle_context: str
    cot_answer: str
    instruction: str
    # provenance; absent in published RAFT files, which we read too
    answer: str = ""
    document_id: str = ""
    chunk_id: str = ""
    oracle_index: int | None = None
    distractor_ids: list[str] = Field(default_factory=list)
    teacher: str = ""

    @property
    def documents(self) -> list[str]:
        """The documents that the row shows."""
        return list(self.context.sentences[0]) if self.context.sentences else []

    def with_oracle(self) -> tuple[list[str], int]:
        """The documents as an evaluation shows them, and the oracle's place among them.

        A row whose oracle was removed for training gets it back, at a place that its id decides.
        """
        documents, place = self.documents, self.oracle_index
        if place is None and self.oracle_context in documents:  # published rows have no index
            place = documents.index(self.oracle_context)
        if place is None:
            place = zlib.crc32(self.id.encode()) % (len(documents) + 1)
            documents.insert(place, self.oracle_context)
        return documents, place


class Dropped(Record):
    """A draft that became no row, and why; `reply` is all that the teacher wrote."""

    FILE: ClassVar[str] = "dropped.jsonl"

    chunk_id: str
    question: str
    reason: str
    reply: str


class Question(Record):
    """One evaluation question in HotpotQA format, as published or as the hub has it.

    `context` pairs each paragraph's title with its sentences (they join without a separator);
    `supporting_facts` pairs a title with a sentence index; titles named there are the oracle
    paragraphs. Source: https://hotpotqa.github.io, "distractor" setting.
    """

    id: str = Field(validation_alias=AliasChoices("_id", "id"))
    question: str
    answer: str
    supporting_facts: Annotated[list[tuple[str, int]], BeforeValidator(_pairs)]
    context: Annotated[list[tuple[str, list[str]]], BeforeValidator(_pairs)]
    type: str = ""
    level: str = ""

    def oracles(self) -> list[str]:
        """The texts of the oracle paragraphs."""
        titles = {title for title, _ in self.supporting_facts}
        return ["".join(sentences) for title, sentences in self.context if title in titles]

    def supporting_sentences(self) -> list[str]:
        """The sentences that the supporting facts name."""
        return [
            sentence.strip()
            for title, sentences in self.context
            for place, sentence in enumerate(sentences)
            if (title, place) in self.supporting_facts and sentence.strip()
        ]
