"""What the tasks' YAML names, so that the stock `lm_eval` asks and scores as the stage does.

The stage asks the same prompts and scores with the same function; a test holds both equal.
Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.core.metrics import contains, score
from components.core.raft_form import find_answer
from components.core.records import Oracle
from components.eval.arms import PROMPTS
from components.eval.questions import (
    ContextLayout,
    arrange,
    choose_examples,
    choose_rows,
    load_dataset_module,
)

if TYPE_CHECKING:
    import datasets

METRICS = ("f1", "em", "precision", "recall", "contains", "unanswered")
"""What every data set scores; one whose answers are right or wrong has the same for the first."""


def load_rows(
    dataset: str,
    questions: str = "",
    prompt: str = "raft",
    distractors: int = -1,
    oracle: Oracle = "present",
    examples_from: str = "",
    seed: int = 0,
    corpus: str = "",
    **_: Any,
) -> "dict[str, datasets.Dataset]":
    """The rows that the harness asks, by the names that `lm_eval --metadata` gives.

    Args:
        dataset: the data set, a folder of `tasks/`.
        questions: a file of it or rows of generate; by default the hub's.
        prompt: how they are asked, a key of `PROMPTS`.
        distractors: documents shown with the oracle ones; -1 shows all.
        oracle: where the oracle documents are.
        examples_from: a folder of generate, whose training rows a prompt with examples shows.
        seed: of their choice.
        corpus: the documents of which the data set's score reads, if it does.

    Raises:
        KeyError: no such prompt, or no such place for the oracle.
        DataError: as `choose_examples`.
    """
    from datasets import Dataset

    layout = ContextLayout(int(distractors), oracle)
    asked = PROMPTS[prompt]
    shots = choose_rows(examples_from, asked.examples, int(seed))
    examples = [arrange(example, layout) for example in choose_examples(questions, dataset)]
    expected = {"dataset": dataset, "marker": asked.marker, "corpus": corpus}
    rows = [
        {**example.model_dump(), **expected, "prompt": asked.write(example, shots)}
        for example in examples
    ]
    return {"validation": Dataset.from_list(rows)}


def score_generation(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score the generation to one row: with the `score` of its data set's module, if it has one.

    Args:
        doc: the row; its `dataset`, `answers`, `marker` and `corpus` count.
        results: the generation alone, as the harness hands it over.
    """
    return {name: value for name, value in judge(doc, results[0]).items() if name in METRICS}


def judge(expected: Mapping[str, Any], generation: str) -> dict[str, float]:
    """The scores of a generation: `METRICS`, and what else its data set's module knows of it."""
    scorer = getattr(load_dataset_module(expected["dataset"]), "score", score_answer)
    scores: dict[str, float] = scorer(expected, generation)
    return scores


def score_answer(expected: Mapping[str, Any], generation: str) -> dict[str, float]:
    """Score a generation against the right answers; the best of them counts.

    Args:
        expected: `answers`; `marker`, without which only an empty generation is no answer;
            `corpus`, the location of `--documents`, or "".
        generation: the text.
    """
    answers = expected["answers"]
    answer, marked = find_answer(generation)
    best = max((score(answer, gold) for gold in answers), key=lambda one: (one.f1, one.em))
    return {
        **best._asdict(),
        "contains": float(any(contains(generation, gold) for gold in answers)),
        "unanswered": float(not (marked if expected["marker"] else generation.strip())),
    }


def accuracy_and_macro_f1(truth: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Of labels, compared as texts; what is no right answer anywhere is a class of its own."""
    from sklearn.metrics import accuracy_score, f1_score

    macro = f1_score(truth, labels, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, labels)), "macro F1": float(macro)}


def right_or_wrong(right: bool, expected: Mapping[str, Any], generation: str) -> dict[str, float]:
    """The scores of a data set whose answers are right or wrong as a whole."""
    figures = dict.fromkeys(("f1", "em", "precision", "recall", "contains"), float(right))
    return {**figures, "unanswered": score_answer(expected, generation)["unanswered"]}
