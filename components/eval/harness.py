"""lm-evaluation-harness builds the prompts of our tasks in `tasks/` and scores the replies.

It is given questions and a function that answers prompts, and knows nothing of models: so the same
task, run by the stock `lm_eval`, gives the same scores.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from components.core import storage
from components.eval.questions import AskedQuestion

TASKS = Path(__file__).parent / "tasks"


class Judged(NamedTuple):
    """One prompt with the scores of its reply, by the names of the task's metrics."""

    prompt: str
    reply: str
    scores: dict[str, float]


@contextmanager
def load_task(name: str, questions: Sequence[AskedQuestion]) -> Iterator[Any]:
    """A task of ours over our questions instead of the hub's."""
    from lm_eval.tasks import TaskManager

    with storage.scratch("questions", name) as folder, _quiet():
        rows = folder / "questions.jsonl"
        rows.write_text(
            "".join(question.model_dump_json() + "\n" for question in questions), encoding="utf-8"
        )
        manager = TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata={"asked": str(rows)}
        )
        yield manager.load([name])


def prompts(task: Any, questions: Sequence[AskedQuestion], tokenizer: Any) -> list[str]:
    """Every question's prompt as the model reads it, in the order of the questions."""
    return [judged.prompt for judged in judge(task, questions, tokenizer, lambda _: "")]


def judge(
    task: Any, questions: Sequence[AskedQuestion], tokenizer: Any, answer: Callable[[str], str]
) -> list[Judged]:
    """Ask every question of a task and score the replies, in the order of the questions.

    Args:
        task: of `load_task`.
        questions: those it was loaded with.
        tokenizer: its chat template makes the prompts.
        answer: from a prompt to the reply.
    """
    import lm_eval
    from lm_eval.api.model import LM

    class Replies(LM):
        """What the harness takes for a model."""

        tokenizer_name = str(tokenizer.name_or_path)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            text: str = tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [answer(request.args[0]) for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError("our tasks generate")

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError("our tasks generate")

    with _quiet():
        found = lm_eval.evaluate(
            lm=Replies(),
            task_dict=task,
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
        )
    (logged,) = found["samples"].values()
    ordered = sorted(logged, key=lambda entry: int(entry["doc_id"]))
    if [entry["doc"]["id"] for entry in ordered] != [question.id for question in questions]:
        raise RuntimeError("the harness returned other questions than it was given")
    return [
        Judged(
            entry["arguments"][0][0],
            entry["filtered_resps"][0],
            {name: float(entry[name]) for name in entry["metrics"]},
        )
        for entry in ordered
    ]


def read_asked(path: Path) -> list[dict[str, Any]]:
    """The rows that `load_task` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's bars and notices away from our own progress; put them back after."""
    import datasets
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # There is no switch for the bar over the prompts it builds.
    lm_eval.api.task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bars
        datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
