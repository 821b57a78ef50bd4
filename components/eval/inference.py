"""Ask every arm the same questions and judge the answers; an interruption loses one batch at most.

An engine generates, and every finished batch is on disk before the next begins: an arm whose
generations are complete is not loaded again. Knows nothing of statistics or reports.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from components.core import progress, quotes
from components.core.chat import render_prompt
from components.core.errors import DataError
from components.core.fingerprints import check_base, fingerprint
from components.core.models import choose_dtype, context_length, load_tokenizer
from components.core.raft_form import find_answer
from components.core.records import Sample
from components.eval import engines
from components.eval.arms import PROMPTS, Arm
from components.eval.config import EvalConfig
from components.eval.generations import Batch, Generation, Generations, key_of
from components.eval.harness import METRICS, judge
from components.eval.questions import ContextLayout, EvalExample, choose_rows

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


class Prompted(NamedTuple):
    """A question in one layout, as a prompt puts it: `ids` is what the model reads."""

    layout: ContextLayout
    example: EvalExample
    ids: tuple[int, ...]


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
    arms = config.variants()
    questions = _ask(config, arms, layouts)
    sources = {config.base_model, *(arm.folder for arm in arms if arm.folder)}
    # Once for all arms: an 8B model has 16 GB to read.
    prints = {source: fingerprint(source) for source in sources}
    for arm in arms:
        if arm.folder:
            check_base(arm.folder, config.base_model, prints[config.base_model])
    groups = [
        (engine, {arm: _model_of(arm, engine, config, prints) for arm in group})
        for engine, group in engines.group_arms(arms, engines.choose_engine(config.engine))
    ]
    keys = {
        key_of(model, item.ids)
        for _, models in groups
        for arm, model in models.items()
        for item in questions[arm]
    }
    copies = config.resume_location(sorted(keys))
    generations = Generations(Path(config.output) / PARTIAL, copies, fresh=config.fresh)
    runs = {}
    with closing(generations):
        for engine, models in groups:
            missing = [
                engines.Request(arm, ids)
                for arm, model in models.items()
                for ids in dict.fromkeys(item.ids for item in questions[arm])
                if key_of(model, ids) not in generations.by_key
            ]
            if missing:
                _generate(engine, models, config, missing, generations)
            for arm, model in models.items():
                runs[arm.name] = _judge(config, arm, model, questions[arm], generations)
    return [runs[arm.name] for arm in arms]


def _ask(
    config: EvalConfig,
    arms: Sequence[Arm],
    layouts: Sequence[tuple[ContextLayout, Sequence[EvalExample]]],
) -> dict[Arm, list[Prompted]]:
    """Every question in every layout, as each arm reads it: in its prompt and chat template."""
    readings = {arm: (arm.prompt, arm.folder or config.main_adapter) for arm in arms}
    questions: dict[tuple[str, str], list[Prompted]] = {each: [] for each in readings.values()}
    for (prompt, adapter), items in questions.items():
        rows = choose_rows(config.dataset, PROMPTS[prompt].examples, config.seed)
        tokenizer = load_tokenizer(config.base_model, adapter)
        longest = context_length(config.base_model, tokenizer)
        for layout, examples in layouts:
            for example in examples:
                ids = render_prompt(tokenizer, PROMPTS[prompt].write(example, rows))
                # A longer prompt would be cut on the left, without a word: documents lost.
                if len(ids) + config.max_new_tokens > longest:
                    raise DataError(
                        f"question {example.id!r}: {len(ids)} prompt tokens and "
                        f"{config.max_new_tokens} for the generation do not fit the model's "
                        f"{longest}",
                        path=config.questions or config.dataset,
                        hint="Lower --distractors or --max-new-tokens.",
                    )
                items.append(Prompted(layout, example, tuple(ids)))
    return {arm: questions[reading] for arm, reading in readings.items()}


def _generate(
    name: str,
    models: dict[Arm, str],
    config: EvalConfig,
    missing: Sequence[engines.Request],
    generations: Generations,
) -> None:
    """Have the arms that share an engine answer what they have not answered yet."""
    arms = ", ".join(arm.name for arm in models)
    progress.say(f"  loading {arms} ({name})")
    started = monotonic()
    with (
        closing(engines.generate(name, missing, config)) as batches,
        progress.task(arms, len(missing), "generations") as bar,
    ):
        for completions, weight_bytes in batches:
            took, started = monotonic() - started, monotonic()
            for arm, model in models.items():
                mine = [
                    Generation(
                        key=key_of(model, request.ids),
                        text=completion.text,
                        tokens_in=len(request.ids),
                        tokens_out=len(completion.ids),
                        truncated=completion.truncated,
                    )
                    for request, completion in completions
                    if request.arm == arm
                ]
                if mine:
                    seconds = round(took * len(mine) / len(completions), 3)
                    generations.add(
                        Batch(
                            model=model,
                            weight_bytes=weight_bytes,
                            seconds=seconds,
                            generations=mine,
                        )
                    )
            bar.advance(len(completions))


def _judge(
    config: EvalConfig,
    arm: Arm,
    model: str,
    questions: Sequence[Prompted],
    generations: Generations,
) -> ArmRun:
    answers = {item.ids: generations.by_key[key_of(model, item.ids)] for item in questions}
    by_layout: dict[ContextLayout, list[Sample]] = {}
    for item in questions:
        sample = _sample(config, arm, item, answers[item.ids])
        by_layout.setdefault(item.layout, []).append(sample)
    samples, *others = by_layout.values()
    return ArmRun(
        arm=arm,
        samples=samples,
        others=others,
        tokens_in=sum(generation.tokens_in for generation in answers.values()),
        tokens_out=sum(generation.tokens_out for generation in answers.values()),
        seconds=round(generations.seconds[model], 3),
        weight_bytes=generations.weight_bytes[model],
    )


def _model_of(arm: Arm, engine: str, config: EvalConfig, prints: dict[str, str]) -> str:
    """Everything but the prompt that decides what an arm answers."""
    return key_of(
        arm.name,
        prints[config.base_model],
        prints[arm.folder] if arm.folder else "no adapter",
        f"{arm.bits}-bit",
        str(choose_dtype(config.dtype)),
        engine,
        f"up to {config.max_new_tokens} tokens, greedy",
    )


def _sample(config: EvalConfig, arm: Arm, item: Prompted, generation: Generation) -> Sample:
    example, text = item.example, generation.text
    counts = quotes.check(text, example.documents, example.golden)
    doc = {
        "dataset": config.task,
        "answers": example.answers,
        "marker": PROMPTS[arm.prompt].marker,
        "corpus": config.documents,
    }
    scores = judge(doc, text)
    return Sample(
        question_id=example.id,
        arm=arm.name,
        question=example.question,
        gold=example.answers,
        generation=text,
        answer=find_answer(text)[0],
        **{name: scores[name] for name in ("f1", "em", "precision", "recall")},
        contains=bool(scores["contains"]),
        truncated=generation.truncated,
        answered=not scores["unanswered"],
        documents=example.documents,
        oracle_indices=example.golden,
        quotes=counts.quotes,
        quotes_verbatim=counts.verbatim,
        quotes_oracle=counts.oracle,
        distractors=item.layout.distractors,
        oracle=item.layout.oracle,
        kind=example.kind,
        sources=example.sources,
        official={name: value for name, value in scores.items() if name not in METRICS},
    )
