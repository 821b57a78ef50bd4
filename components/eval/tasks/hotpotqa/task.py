"""The functions that the tasks' YAML names: rows in, prompt out, generation judged."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import ConfigError
from components.core.metrics import contains, score
from components.core.raft_form import find_answer, instruction
from components.core.records import Oracle
from components.core.storage import SCHEME, fetch
from components.eval.config import ORACLES
from components.eval.harness import read_asked
from components.eval.questions import HUB, choose_questions, show

if TYPE_CHECKING:
    import datasets


def load(
    questions: str = HUB,
    distractors: int = -1,
    oracle: Oracle = "present",
    max_questions: int = 1_000_000,
    seed: int = 0,
    asked: str = "",
    **_: Any,
) -> "dict[str, datasets.Dataset]":
    """The questions as a data set, by the names that `lm_eval --metadata` gives.

    Args:
        questions: a file in HotpotQA form or rows of generate, local or on gs://, or the data
            set's name on the hub.
        distractors: paragraphs shown beside the oracle ones; -1 shows all.
        oracle: where the oracle paragraphs stand.
        max_questions: when there are more, this many are drawn.
        seed: of the draw.
        asked: a file of questions as they are asked, from the stage; nothing else counts then.

    Raises:
        ConfigError: no such place for the oracle.
        DataError: as `questions.choose_questions`.
    """
    from datasets import Dataset

    if oracle not in ORACLES:
        raise ConfigError(
            f"--metadata: oracle {oracle!r} (allowed: {' | '.join(ORACLES)})",
            hint='Write --metadata \'{"oracle": "first"}\'.',
        )
    if asked:
        rows = read_asked(Path(asked))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            if questions.startswith(SCHEME):
                fetch(questions, Path(scratch) / "questions")
                questions = str(Path(scratch) / "questions")
            chosen = choose_questions(questions, max_questions=max_questions, seed=seed)
        rows = [show(question, int(distractors), oracle).model_dump() for question in chosen]
    return {"validation": Dataset.from_list(rows)}


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


def process_plain_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The same for a prompt that asks for no marker: only silence is no answer."""
    return process_results(doc, results) | {"unanswered": float(not results[0].strip())}
