"""The bridge to lm-evaluation-harness: it asks the prompts of our tasks and scores the generations.

The stage hands it examples and a function that answers prompts, so the same task, run by the stock
`lm_eval`, gives the same scores. `load_rows` and `score_generation` are what the tasks' YAML names.
Knows nothing of models.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.errors import ConfigError
from components.core.metrics import contains, score
from components.core.raft_form import find_answer
from components.core.records import Oracle
from components.eval.arms import PROMPTS
from components.eval.config import ORACLES
from components.eval.questions import (
    TASKS,
    ContextLayout,
    EvalExample,
    arrange,
    choose_examples,
)

if TYPE_CHECKING:
    import datasets


# ---- what the YAML of a task names -------------------------------------------------------------


def load_rows(
    dataset: str,
    questions: str = "",
    prompt: str = "raft",
    distractors: int = -1,
    oracle: Oracle = "present",
    examples: Sequence[EvalExample] = (),
    **_: Any,
) -> "dict[str, datasets.Dataset]":
    """The rows that the harness asks, by the names that `lm_eval --metadata` gives.

    Args:
        dataset: the data set, a folder of `tasks/`.
        questions: a file of it or rows of generate; by default the hub's.
        prompt: how they are asked, a key of `PROMPTS`.
        distractors: documents shown with the oracle ones; -1 shows all.
        oracle: where the oracle documents are.
        examples: from the stage, as they are to be asked; only `prompt` counts then.

    Raises:
        ConfigError: no such prompt, or no such place for the oracle.
        DataError: as `choose_examples`.
    """
    from datasets import Dataset

    for name, value, allowed in (("oracle", oracle, ORACLES), ("prompt", prompt, tuple(PROMPTS))):
        if value not in allowed:
            raise ConfigError(
                f"--metadata: {name} {value!r} (allowed: {' | '.join(allowed)})",
                hint=f'Write --metadata \'{{"{name}": "{allowed[-1]}"}}\'.',
            )
    if not examples:
        layout = ContextLayout(int(distractors), oracle)
        examples = [arrange(example, layout) for example in choose_examples(questions, dataset)]
    write, _documents, marker = PROMPTS[prompt]
    rows = [
        {**example.model_dump(), "prompt": write(example), "marker": marker} for example in examples
    ]
    return {"validation": Dataset.from_list(rows)}


def score_generation(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one generation against the right answers; the best of them counts.

    Without a prompt that asks for the marker, only an empty generation is no answer.
    """
    generation = results[0]
    answer, marked = find_answer(generation)
    best = max((score(answer, gold) for gold in doc["answers"]), key=lambda one: (one.f1, one.em))
    return {
        **best._asdict(),
        "contains": float(any(contains(generation, gold) for gold in doc["answers"])),
        "unanswered": float(not (marked if doc["marker"] else generation.strip())),
    }


# ---- what the stage calls ----------------------------------------------------------------------


class PromptTask(NamedTuple):
    """Examples in one layout and with one prompt, as a task of the harness.

    prompts: of each example, as the model reads it.
    """

    layout: ContextLayout
    examples: Sequence[EvalExample]
    task: Any
    tokenizer: Any
    prompts: list[str]

    def score(self, answers: Mapping[str, str]) -> list[dict[str, float]]:
        """Score the generations by prompt: each example's, by the names of the task's metrics."""
        return [
            {name: float(entry[name]) for name in entry["metrics"]}
            for entry in _evaluate(self.task, self.examples, self.tokenizer, answers.__getitem__)
        ]


def load_task(
    dataset: str,
    prompt: str,
    layout: ContextLayout,
    examples: Sequence[EvalExample],
    tokenizer: Any,
) -> PromptTask:
    """A data set's task over examples of ours; the tokenizer's chat template makes the prompts."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        manager = TaskManager(
            include_path=str(TASKS),
            include_defaults=False,
            metadata={"prompt": prompt, "examples": examples},
        )
        task = manager.load([dataset])
    entries = _evaluate(task, examples, tokenizer, lambda _: "")
    prompts = [entry["arguments"][0][0] for entry in entries]
    return PromptTask(layout, examples, task, tokenizer, prompts)


def _evaluate(
    task: Any, examples: Sequence[EvalExample], tokenizer: Any, answer: Callable[[str], str]
) -> list[dict[str, Any]]:
    """What the harness logs about each example, in their order, where `answer` is the model."""
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

        loglikelihood = loglikelihood_rolling = None  # our tasks generate

    with _quiet():
        results = lm_eval.evaluate(
            lm=Replies(),
            task_dict=task,
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
        )
    (logged,) = results["samples"].values()
    entries: list[dict[str, Any]] = sorted(logged, key=lambda entry: int(entry["doc_id"]))
    if [entry["doc"]["id"] for entry in entries] != [example.id for example in examples]:
        raise RuntimeError("the harness returned other questions than it was passed")
    return entries


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
