"""Ask the same questions of every arm (a model variant under test), and lose nothing on the way.

The harness builds the prompts and scores the replies, an engine generates, and every finished batch
is on disk before the next begins: an arm whose generations are all there is not loaded again.
Knows nothing of statistics or reports.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from components.core import progress
from components.core.errors import DataError
from components.core.fingerprints import check_base, fingerprint
from components.core.models import (
    choose_dtype,
    context_length,
    load_tokenizer,
)
from components.core.raft_form import find_answer
from components.core.records import Sample
from components.eval import engines, harness, quotes
from components.eval.config import Arm, EvalConfig, Layout
from components.eval.generations import Batch, Generation, Generations, key_of
from components.eval.questions import AskedQuestion

PARTIAL = "generations.partial.jsonl"
"""What is finished so far, in the output folder of a run under way."""


class ArmRun(NamedTuple):
    """What one arm said.

    samples: of the comparison, in the order of the questions. others: of each further layout.
    seconds: of loading and generating, earlier attempts that were gone on from included.
    """

    name: str
    samples: list[Sample]
    others: list[list[Sample]]
    tokens_in: int
    tokens_out: int
    seconds: float
    weight_bytes: int | None


class Asked(NamedTuple):
    """One layout's questions as a task of the harness."""

    layout: Layout
    questions: Sequence[AskedQuestion]
    task: Any


def ask_arms(
    config: EvalConfig, shown: Sequence[tuple[Layout, Sequence[AskedQuestion]]]
) -> list[ArmRun]:
    """Run the arms of `config`; every one gets the same prompts.

    Args:
        config: arms, engine, limits; finished generations in its output folder are used.
        shown: the questions in each layout, that of the comparison first.

    Raises:
        OutOfMemory: the model or a batch does not fit the memory.
        DataError: a prompt with room for its generation does not fit the model.
        ModelError: a model or the adapter cannot be loaded.
    """
    tokenizer = load_tokenizer(config.base_model)
    with ExitStack() as tasks:
        asked = [
            Asked(layout, items, tasks.enter_context(harness.load_task(config.task, items)))
            for layout, items in shown
        ]
        ids = _encode(config, asked, tokenizer)
        kept = Generations(Path(config.output) / PARTIAL, config.partial)
        tasks.callback(kept.close)
        variants = config.variants()
        sources = {config.base_model, *(arm.adapter for arm in variants if arm.adapter)}
        # Once for all arms: an 8B model has 16 GB to read.
        prints = {source: fingerprint(source) for source in sources}
        for arm in variants:
            if arm.adapter:
                check_base(arm.adapter, config.base_model, prints[config.base_model])
        runs = {}
        for engine, arms in engines.group_arms(variants, engines.choose_engine(config.engine)):
            models = {arm: _model_of(arm, engine, config, prints) for arm in arms}
            _generate(engine, models, config, ids, kept)
            for arm, model in models.items():
                runs[arm.name] = _judge(arm, model, asked, tokenizer, ids, kept)
    return [runs[arm.name] for arm in variants]


Ids = dict[str, tuple[int, ...]]
"""Every different prompt with its token ids, in the order in which they were first met."""


def _encode(config: EvalConfig, asked: Sequence[Asked], tokenizer: Any) -> Ids:
    longest = context_length(config.base_model, tokenizer)
    ids: Ids = {}
    for item in asked:
        prompts = harness.prompts(item.task, item.questions, tokenizer)
        for question, prompt in zip(item.questions, prompts, strict=True):
            # The chat template has written all special tokens itself.
            found = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            # A longer prompt would be cut on the left, without a word: documents lost.
            if len(found) + config.max_new_tokens > longest:
                raise DataError(
                    f"question {question.id!r}: {len(found)} prompt tokens and "
                    f"{config.max_new_tokens} for the generation do not fit the model's "
                    f"{longest}",
                    path=config.questions,
                    hint="Lower --distractors or --max-new-tokens.",
                )
            ids[prompt] = found
    return ids


def _generate(
    name: str, models: dict[Arm, str], config: EvalConfig, ids: Ids, kept: Generations
) -> None:
    """Have the arms that share an engine answer what they have not answered yet."""
    missing = [
        engines.Request(arm, prompt, tokens)
        for arm, model in models.items()
        for prompt, tokens in ids.items()
        if key_of(model, prompt) not in kept.found
    ]
    if not missing:
        return
    arms = ", ".join(arm.name for arm in models)
    progress.say(f"  loading {arms} ({name})")
    started = monotonic()
    longest = max(map(len, ids.values()))
    with (
        engines.opened(name, list(models), config, longest) as engine,
        progress.task(arms, len(missing), "generations") as bar,
    ):
        for said in engine.generate(missing):
            took, started = monotonic() - started, monotonic()
            for arm, model in models.items():
                mine = [item for item in said if item.request.arm == arm]
                if mine:
                    share = took * len(mine) / len(said)
                    kept.add(_batch(model, mine, share, engine.weight_bytes(arm)))
            bar.advance(len(said))


def _batch(model: str, said: list[engines.Said], seconds: float, size: int | None) -> Batch:
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
            for item in said
        ],
    )


def _judge(
    arm: Arm, model: str, asked: Sequence[Asked], tokenizer: Any, ids: Ids, kept: Generations
) -> ArmRun:
    generations = {prompt: kept.found[key_of(model, prompt)] for prompt in ids}
    texts = {prompt: generation.text for prompt, generation in generations.items()}
    samples = [
        [
            _sample(arm.name, item.layout, question, judged, generations[judged.prompt])
            for question, judged in zip(
                item.questions,
                harness.judge(item.task, item.questions, tokenizer, texts.__getitem__),
                strict=True,
            )
        ]
        for item in asked
    ]
    return ArmRun(
        name=arm.name,
        samples=samples[0],
        others=samples[1:],
        tokens_in=sum(generation.tokens_in for generation in generations.values()),
        tokens_out=sum(generation.tokens_out for generation in generations.values()),
        seconds=round(kept.seconds[model], 3),
        weight_bytes=kept.weight_bytes[model],
    )


def _model_of(arm: Arm, engine: str, config: EvalConfig, prints: dict[str, str]) -> str:
    """Everything but the prompt that decides what an arm says."""
    parts = [
        prints[config.base_model],
        prints[arm.adapter] if arm.adapter else "no adapter",
        "4-bit" if arm.four_bit else "full",
        str(choose_dtype(config.dtype)),
        engine,
        f"up to {config.max_new_tokens} tokens, greedy",
    ]
    return key_of("\n".join(parts), arm.name)


def _sample(
    name: str,
    layout: Layout,
    question: AskedQuestion,
    entry: harness.Judged,
    generation: Generation,
) -> Sample:
    scores = entry.scores
    found = quotes.check(generation.text, question.documents, question.oracle_indices)
    return Sample(
        question_id=question.id,
        arm=name,
        question=question.question,
        gold=question.answer,
        generation=generation.text,
        answer=find_answer(generation.text)[0],
        f1=scores["f1"],
        em=scores["em"],
        precision=scores["precision"],
        recall=scores["recall"],
        contains=bool(scores["contains"]),
        truncated=generation.truncated,
        answered=not scores["unanswered"],
        documents=question.documents,
        oracle_indices=question.oracle_indices,
        quotes=found.quotes,
        quotes_verbatim=found.verbatim,
        quotes_oracle=found.oracle,
        distractors=layout.distractors,
        oracle=layout.oracle,
    )
