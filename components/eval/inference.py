"""Ask every arm the same questions and judge the answers; an interruption loses one batch at most.

The harness builds the prompts and scores the generations, an engine generates, and every finished
batch is on disk before the next begins: an arm whose generations are complete is not loaded again.
Knows nothing of statistics or reports.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from components.core import progress
from components.core.errors import DataError
from components.core.models import (
    check_base,
    choose_dtype,
    context_length,
    fingerprint,
    load_tokenizer,
)
from components.core.raft_form import find_answer
from components.core.records import Sample
from components.eval import engines, quotes
from components.eval.arms import Arm
from components.eval.config import EvalConfig
from components.eval.generations import Batch, Generation, Generations, key_of
from components.eval.harness import PromptTask, load_task
from components.eval.questions import ContextLayout, EvalExample

PARTIAL = "generations.partial.jsonl"
"""What is finished so far, in the output folder of a run under way."""


class ArmRun(NamedTuple):
    """What one arm answered.

    samples: of the comparison, in the order of the questions. others: of each further layout.
    seconds: of loading and generating, interrupted attempts included.
    """

    arm: Arm
    samples: list[Sample]
    others: list[list[Sample]]
    tokens_in: int
    tokens_out: int
    seconds: float
    weight_bytes: int | None


def run_arms(
    config: EvalConfig, layouts: Sequence[tuple[ContextLayout, Sequence[EvalExample]]]
) -> list[ArmRun]:
    """Have the arms of `config` answer; those with the same prompt read the same texts.

    Args:
        config: arms, engine, limits; finished generations in its output folder are used.
        layouts: the questions in each layout, that of the comparison first.

    Raises:
        OutOfMemory: the model or a batch does not fit the memory.
        DataError: a prompt with room for its generation does not fit the model.
        ModelError: a model or the adapter cannot be loaded.
    """
    tokenizer = load_tokenizer(config.base_model)
    arms = config.variants()
    tasks = {
        prompt: [
            load_task(config.task, prompt, layout, examples, tokenizer)
            for layout, examples in layouts
        ]
        for prompt in dict.fromkeys(arm.prompt for arm in arms)
    }
    ids = _encode(config, [task for members in tasks.values() for task in members], tokenizer)
    generations = Generations(Path(config.output) / PARTIAL, config.partial)
    try:
        sources = {config.base_model, *(arm.adapter for arm in arms if arm.adapter)}
        # Once for all arms: an 8B model has 16 GB to read.
        prints = {source: fingerprint(source) for source in sources}
        for arm in arms:
            if arm.adapter:
                check_base(arm.adapter, config.base_model, prints[config.base_model])
        runs = {}
        for engine, group in engines.group_arms(arms, engines.choose_engine(config.engine)):
            models = {arm: _model_of(arm, engine, config, prints) for arm in group}
            missing = [
                engines.Request(arm, prompt, ids[prompt])
                for arm, model in models.items()
                for prompt in dict.fromkeys(
                    text for task in tasks[arm.prompt] for text in task.prompts
                )
                if key_of(model, prompt) not in generations.by_key
            ]
            if missing:
                longest = max(map(len, ids.values()))
                _generate(engine, models, config, missing, longest, generations)
            for arm, model in models.items():
                runs[arm.name] = _judge(arm, model, tasks[arm.prompt], generations)
    finally:
        generations.close()
    return [runs[arm.name] for arm in arms]


def _encode(
    config: EvalConfig, tasks: Sequence[PromptTask], tokenizer: Any
) -> dict[str, tuple[int, ...]]:
    """The token ids of every prompt."""
    longest = context_length(config.base_model, tokenizer)
    ids: dict[str, tuple[int, ...]] = {}
    for task in tasks:
        for example, prompt in zip(task.examples, task.prompts, strict=True):
            # The chat template has written all special tokens itself.
            ids[prompt] = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            # A longer prompt would be cut on the left, without a word: documents lost.
            if len(ids[prompt]) + config.max_new_tokens > longest:
                raise DataError(
                    f"question {example.id!r}: {len(ids[prompt])} prompt tokens and "
                    f"{config.max_new_tokens} for the generation do not fit the model's "
                    f"{longest}",
                    path=config.questions,
                    hint="Lower --distractors or --max-new-tokens.",
                )
    return ids


def _generate(
    name: str,
    models: dict[Arm, str],
    config: EvalConfig,
    missing: Sequence[engines.Request],
    longest: int,
    generations: Generations,
) -> None:
    """Have the arms that share an engine answer what they have not answered yet."""
    arms = ", ".join(arm.name for arm in models)
    progress.say(f"  loading {arms} ({name})")
    started = monotonic()
    with (
        engines.open_engine(name, list(models), config, longest) as engine,
        progress.task(arms, len(missing), "generations") as bar,
    ):
        for completions in engine.generate(missing):
            took, started = monotonic() - started, monotonic()
            for arm, model in models.items():
                mine = [item for item in completions if item.request.arm == arm]
                if mine:
                    share = took * len(mine) / len(completions)
                    generations.add(_batch(model, mine, share, engine.weight_bytes))
            bar.advance(len(completions))


def _batch(
    model: str, completions: Sequence[engines.Completion], seconds: float, size: int | None
) -> Batch:
    return Batch(
        model=model,
        weight_bytes=size,
        seconds=round(seconds, 3),
        generations=[
            Generation(
                key=key_of(model, item.request.prompt),
                text=item.text,
                tokens_in=len(item.request.ids),
                tokens_out=len(item.ids),
                truncated=item.truncated,
            )
            for item in completions
        ],
    )


def _judge(arm: Arm, model: str, tasks: Sequence[PromptTask], generations: Generations) -> ArmRun:
    answers = {
        prompt: generations.by_key[key_of(model, prompt)]
        for task in tasks
        for prompt in task.prompts
    }
    texts = {prompt: generation.text for prompt, generation in answers.items()}
    samples = [
        [
            _sample(arm.name, task.layout, example, scores, answers[prompt])
            for example, prompt, scores in zip(
                task.examples, task.prompts, task.score(texts), strict=True
            )
        ]
        for task in tasks
    ]
    return ArmRun(
        arm=arm,
        samples=samples[0],
        others=samples[1:],
        tokens_in=sum(generation.tokens_in for generation in answers.values()),
        tokens_out=sum(generation.tokens_out for generation in answers.values()),
        seconds=round(generations.seconds[model], 3),
        weight_bytes=generations.weight_bytes[model],
    )


def _model_of(arm: Arm, engine: str, config: EvalConfig, prints: dict[str, str]) -> str:
    """Everything but the prompt that decides what an arm answers."""
    parts = [
        prints[config.base_model],
        prints[arm.adapter] if arm.adapter else "no adapter",
        f"{arm.bits}-bit",
        str(choose_dtype(config.dtype)),
        engine,
        f"up to {config.max_new_tokens} tokens, greedy",
    ]
    return key_of("\n".join(parts), arm.name)


def _sample(
    arm: str,
    layout: ContextLayout,
    example: EvalExample,
    scores: dict[str, float],
    generation: Generation,
) -> Sample:
    counts = quotes.check(generation.text, example.documents, example.golden)
    return Sample(
        question_id=example.id,
        arm=arm,
        question=example.question,
        gold=example.answers,
        generation=generation.text,
        answer=find_answer(generation.text)[0],
        **{name: scores[name] for name in ("f1", "em", "precision", "recall")},
        contains=bool(scores["contains"]),
        truncated=generation.truncated,
        answered=not scores["unanswered"],
        documents=example.documents,
        oracle_indices=example.golden,
        quotes=counts.quotes,
        quotes_verbatim=counts.verbatim,
        quotes_oracle=counts.oracle,
        distractors=layout.distractors,
        oracle=layout.oracle,
    )
