"""HotpotQA, distractor setting: ten paragraphs a question, two of which it needs.

A row, shortened:

    {"_id": "5a8b57f2", "question": "Where was Ada Voss born?", "answer": "Kelden",
     "supporting_facts": [["Ada Voss", 0]],
     "context": [["Ada Voss", ["Ada Voss was born in Kelden.", " She …"]], ["Bram Kell", ["…"]]]}

The hub has the same in parallel lists. Paragraphs whose title is among the facts are golden.
"""

from components.core.records import Question
from components.eval.questions import EvalExample

FORMAT = "HotpotQA's format is described at https://hotpotqa.github.io."
HUB = ("hotpotqa/hotpot_qa", "distractor", "validation")


def read(row: object) -> EvalExample:
    """A question with its paragraphs."""
    item = Question.model_validate(row)
    titles = {title for title, _ in item.supporting_facts}
    return EvalExample(
        id=item.id,
        question=item.question,
        answers=[item.answer],
        documents=["".join(sentences) for _, sentences in item.context],
        golden=[index for index, (title, _) in enumerate(item.context) if title in titles],
        kind=item.type,
        sources=sorted(titles),
    )
