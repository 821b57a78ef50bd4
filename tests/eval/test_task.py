"""The lm-eval task as the stock harness loads it, and the hub's form of the questions."""

from pathlib import Path
from typing import Any

import yaml

from components.eval import questions
from components.eval.config import EvalConfig
from components.eval.tasks.hotpotqa_raft import task
from components.records import Question, instruction
from tests.eval.conftest import make_question

FILE = Path(task.__file__).with_name("hotpotqa_raft.yaml")


def hub_rows() -> Any:
    """Our questions as hotpotqa/hotpot_qa has them."""
    from datasets import Dataset

    rows = [make_question(number) for number in range(3)]
    return Dataset.from_list(
        [
            {
                "id": row["_id"],
                "question": row["question"],
                "answer": row["answer"],
                "type": row["type"],
                "level": row["level"],
                "supporting_facts": {
                    "title": [title for title, _ in row["supporting_facts"]],
                    "sent_id": [sentence for _, sentence in row["supporting_facts"]],
                },
                "context": {
                    "title": [title for title, _ in row["context"]],
                    "sentences": [text for _, text in row["context"]],
                },
            }
            for row in rows
        ]
    )


def test_the_hubs_rows_become_ours() -> None:
    rows = task.process_docs(hub_rows())
    ours = [
        questions.show(Question.model_validate(make_question(number)), -1).model_dump()
        for number in range(3)
    ]
    assert list(rows) == ours
    assert list(task.process_docs(rows)) == ours


def test_the_prompt_is_that_of_training() -> None:
    doc = questions.show(Question.model_validate(make_question(0)), 0).model_dump()
    assert task.prompt(doc) == instruction(
        ["Ada0 was born in Kelden 0. She paints."], "Where was Ada0 born?"
    )


def test_a_generation_is_judged() -> None:
    judged = task.process_results({"answer": "Kelden"}, ["In Kelden. <ANSWER>: the Kelden"])
    assert judged == {
        "f1": 1.0,
        "em": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "contains": 1.0,
        "unanswered": 0.0,
    }


def test_the_stock_harness_finds_the_task_and_its_metrics() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FILE.parents[1]), include_defaults=False)
    assert manager.all_subtasks == ["hotpotqa_raft"]


def test_defaults_agree_with_the_stage() -> None:
    # `!function` is the harness's own tag; what it names is not needed here.
    settings = yaml.safe_load(FILE.read_text(encoding="utf-8").replace("!function ", ""))
    assert settings["generation_kwargs"]["max_gen_toks"] == EvalConfig.default("max_new_tokens")
    assert [metric["metric"] for metric in settings["metric_list"]] == list(
        task.process_results({"answer": "x"}, ["y"])
    )
