"""Questions of any kind, such as NQ or TriviaQA with retrieved passages. A line:

    {"id": "1", "question": "Where was Ada Voss born?", "answers": ["Kelden", "Old Kelden"],
     "documents": ["Bram Kell …", "Ada Voss was born in Kelden."], "golden": [1]}

Any answer is right. `golden` are the places of the documents that hold it, from 0. A question
without documents needs `--retrieve`.
"""

from pydantic import BaseModel, ConfigDict, Field

from components.eval.questions import EvalExample

FORMAT = (
    'A line is {"id": "…", "question": "…", "answers": ["…"], "documents": ["…"], "golden": [0]}; '
    "golden counts from 0."
)
HUB = None


class Row(BaseModel):
    """A line; other fields are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str
    question: str
    answers: list[str]
    documents: list[str] = Field(default_factory=list)
    golden: list[int] = Field(default_factory=list)


def read(row: object) -> EvalExample:
    """The line as it is."""
    return EvalExample(**Row.model_validate(row).model_dump())
