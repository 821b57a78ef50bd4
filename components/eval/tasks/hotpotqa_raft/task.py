"""The functions that `hotpotqa_raft.yaml` names: rows in, prompt out, generation judged.

Works on the rows of `components.eval.questions.AskedQuestion`; the hub's rows are brought into
that form.
"""

from typing import TYPE_CHECKING, Any

from components.answers import find_answer
from components.eval.metrics import contains, score
from components.eval.questions import ALL_DISTRACTORS, show
from components.records import Question, instruction

if TYPE_CHECKING:
    import datasets


def process_docs(rows: "datasets.Dataset") -> "datasets.Dataset":
    """Bring the hub's rows into our form; rows in our form stay as they are."""
    if "documents" in rows.column_names:
        return rows
    return rows.map(_from_hub, remove_columns=rows.column_names)


def prompt(doc: dict[str, Any]) -> str:
    """The user's turn: documents, then question."""
    return instruction(doc["documents"], doc["question"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one generation against the gold answer."""
    generation = results[0]
    answer, answered = find_answer(generation)
    return {
        **score(answer, doc["answer"])._asdict(),
        "contains": float(contains(generation, doc["answer"])),
        "unanswered": float(not answered),
    }


def _from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """One row of hotpotqa/hotpot_qa, which keeps titles and sentences in parallel lists."""
    facts, context = row["supporting_facts"], row["context"]
    question = Question.model_validate(
        {
            "_id": row["id"],
            "question": row["question"],
            "answer": row["answer"],
            "supporting_facts": list(zip(facts["title"], facts["sent_id"], strict=True)),
            "context": list(zip(context["title"], context["sentences"], strict=True)),
        }
    )
    return show(question, ALL_DISTRACTORS).model_dump()
