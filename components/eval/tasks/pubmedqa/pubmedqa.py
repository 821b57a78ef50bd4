"""PubMedQA: an abstract without its conclusion, and a question to answer yes, no or maybe.

    {"10808977": {"QUESTION": "Can it help?", "CONTEXTS": ["Calls …"], "final_decision": "yes"}}

The hub's rows have other names for the same. All parts are golden. Source: Jin et al., 2019.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, Field

from components.core.metrics import normalize
from components.core.raft_form import find_answer
from components.eval.harness import accuracy_and_macro_f1, right_or_wrong
from components.eval.questions import EvalExample

FORMAT = "PubMedQA's format is described at https://github.com/pubmedqa/pubmedqa."
HUB = ("qiaojin/PubMedQA", "pqa_labeled", "train")
KEYED, METRIC = True, "accuracy"
HUBS_CONTEXTS = AliasPath("context", "contexts")


class Row(BaseModel):
    """What is read of a row."""

    id: str = Field(validation_alias=AliasChoices("id", "pubid"), coerce_numbers_to_str=True)
    question: str = Field(validation_alias=AliasChoices("QUESTION", "question"))
    contexts: list[str] = Field(validation_alias=AliasChoices("CONTEXTS", HUBS_CONTEXTS))
    answer: str = Field(validation_alias="final_decision", pattern="^(yes|no|maybe)$")


def read(row: object) -> EvalExample:
    """A question, which says what may be answered, with the parts of its abstract."""
    item = Row.model_validate(row)
    golden = list(range(len(item.contexts)))
    question = f"{item.question} Answer yes, no or maybe."
    return EvalExample(
        id=item.id, question=question, answers=[item.answer], documents=item.contexts, golden=golden
    )


def label(generation: str) -> str:
    """The first word of the answer, in lower case."""
    return "".join(normalize(find_answer(generation)[0]).split()[:1])


def score(expected: Mapping[str, Any], generation: str) -> dict[str, float]:
    """Whether the label is right."""
    return right_or_wrong(label(generation) in expected["answers"], expected, generation)


def figures(judged: Sequence[tuple[Sequence[str], str]]) -> dict[str, float]:
    """The official script's figures, of the labels."""
    truth = [answers[0] for answers, _ in judged]
    return accuracy_and_macro_f1(truth, [label(text) for _, text in judged])
