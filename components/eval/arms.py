"""Ask the same questions of every arm (a model variant under test), one arm in memory at a time.

lm-evaluation-harness builds the prompts, generates greedily and scores with our task in `tasks/`;
this module makes each arm's model and keeps what the harness does not: how many tokens went in
and out, and which generations were cut off at the limit. Knows nothing of statistics or reports.
"""

import gc
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components import progress
from components.answers import find_answer
from components.errors import ConfigError, DataError, RaftError
from components.eval.config import EvalConfig
from components.eval.questions import AskedQuestion
from components.models import (
    choose_dtype,
    load_4bit,
    load_model,
    load_tokenizer,
    load_tuned,
    weight_bytes,
)
from components.records import Sample

if TYPE_CHECKING:
    import torch

TASK = "hotpotqa_raft"
TASK_FILE = Path(__file__).parent / "tasks" / TASK / f"{TASK}.yaml"


class ArmRun(NamedTuple):
    """What one arm said: samples in the order of the questions, and what they took.

    seconds: of loading, generating and scoring. prompts: as the model saw them, as text.
    """

    name: str
    samples: list[Sample]
    prompts: list[str]
    tokens_in: int
    tokens_out: int
    seconds: float
    weight_bytes: int


class Generated(NamedTuple):
    """The new tokens of one prompt, the end-of-sequence token included."""

    tokens: int
    truncated: bool


def ask_arms(config: EvalConfig, questions: list[AskedQuestion]) -> Iterator[ArmRun]:
    """Run the arms of `config` in their order; every one gets the same prompts.

    Raises:
        ConfigError: the batch does not fit the GPU.
        DataError: a prompt with room for its generation does not fit the model.
        ModelError: a model or the adapter cannot be loaded.
    """
    prompts: list[str] | None = None
    with tempfile.TemporaryDirectory(prefix="raft-eval-") as scratch, _quiet():
        task = _load_task(questions, config.max_new_tokens, Path(scratch))
        for name in config.arms:
            run = _ask(name, config, task, questions)
            if prompts not in (None, run.prompts):
                raise RaftError(f"arm {name} was asked other prompts than arm {config.arms[0]}")
            prompts = run.prompts
            yield run


def _ask(name: str, config: EvalConfig, task: Any, questions: list[AskedQuestion]) -> ArmRun:
    import lm_eval
    import torch

    started = time.monotonic()
    progress.say(f"  loading {name}")
    model = _load_arm(name, config)
    # Before the first token: on a CPU bitsandbytes repacks weights when they are first used.
    size = weight_bytes(model)
    with progress.task(name, len(questions), "questions") as bar:
        harness = _harness(model, config, bar)
        try:
            found = lm_eval.evaluate(
                lm=harness,
                task_dict=task,
                apply_chat_template=True,
                log_samples=True,
                bootstrap_iters=0,
            )
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"--batch-size {config.batch_size}: the GPU ran out of memory on arm {name}",
                hint="Lower --batch-size, then --distractors or --max-new-tokens.",
            ) from None
    logged = sorted(found["samples"][TASK], key=lambda entry: entry["doc_id"])
    prompts = [entry["arguments"][0][0] for entry in logged]
    generated = [harness.generated[prompt] for prompt in prompts]
    run = ArmRun(
        name=name,
        samples=[
            _sample(name, question, entry, new.truncated)
            for question, entry, new in zip(questions, logged, generated, strict=True)
        ],
        prompts=prompts,
        tokens_in=sum(len(harness.prompt_ids[prompt]) for prompt in prompts),
        tokens_out=sum(new.tokens for new in generated),
        seconds=round(time.monotonic() - started, 3),
        weight_bytes=size,
    )
    # The next arm needs the room; the harness and its model refer to each other.
    del harness, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return run


def _sample(name: str, question: AskedQuestion, entry: Any, truncated: bool) -> Sample:
    if entry["doc"]["id"] != question.id:
        raise RaftError(f"arm {name}: the answer to {question.id} came back in another's place")
    generation = entry["filtered_resps"][0]
    return Sample(
        question_id=question.id,
        arm=name,
        question=question.question,
        gold=question.answer,
        generation=generation,
        answer=find_answer(generation)[0],
        f1=entry["f1"],
        em=entry["em"],
        precision=entry["precision"],
        recall=entry["recall"],
        contains=bool(entry["contains"]),
        truncated=truncated,
        answered=not entry["unanswered"],
        documents=question.documents,
        oracle_indices=question.oracle_indices,
    )


# ---- models ------------------------------------------------------------------------------------


def _load_arm(name: str, config: EvalConfig) -> Any:
    """Only what the arm needs: the base arms never read the adapter."""
    dtype = choose_dtype(config.dtype)
    match name:
        case "base":
            return load_model(config.base_model, dtype)
        case "raft":
            return load_tuned(config.base_model, config.adapter, dtype)
        case "base-4bit":
            return load_4bit(config.base_model, None, dtype)
        case _:
            return load_4bit(config.base_model, config.adapter, dtype)


def _make_greedy(model: Any, eos_ids: list[int], pad_id: int) -> None:
    """Replace the model's own generation settings: some sample, some penalise repetition."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=eos_ids, pad_token_id=pad_id
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's and all that the model names (chat models do)."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


# ---- the harness -------------------------------------------------------------------------------


def _load_task(questions: list[AskedQuestion], max_new_tokens: int, scratch: Path) -> Any:
    """Our lm-eval task over our questions instead of the hub's."""
    from lm_eval.tasks import TaskManager

    rows = scratch / "questions.jsonl"
    rows.write_text(
        "".join(question.model_dump_json() + "\n" for question in questions), encoding="utf-8"
    )
    ours = {
        "include": str(TASK_FILE),
        "task": TASK,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"validation": str(rows)},
            "cache_dir": str(scratch / "cache"),
        },
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens},
    }
    # JSON is YAML; a file of its own is the harness's way of changing a task.
    (scratch / TASK_FILE.name).write_text(json.dumps(ours), encoding="utf-8")
    return TaskManager(include_path=str(scratch), include_defaults=False).load([TASK])


def _harness(model: Any, config: EvalConfig, bar: progress.Task) -> Any:
    """The model as lm-eval wants it, counting what the harness throws away.

    After a run, `prompt_ids` has the token ids of each prompt and `generated` what came of it.
    """
    from lm_eval.models.huggingface import HFLM

    class CountingModel(HFLM):
        def __init__(self) -> None:
            tokenizer = load_tokenizer(config.base_model)
            self.eos_ids = _end_tokens(model, tokenizer)
            _make_greedy(model, self.eos_ids, tokenizer.pad_token_id)
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=config.batch_size,
                add_bos_token=False,  # the chat template writes all special tokens itself
            )
            self.prompt_ids: dict[str, tuple[int, ...]] = {}
            self.generated: dict[str, Generated] = {}
            self.by_ids: dict[tuple[int, ...], Generated] = {}

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            for request in requests:
                ids, _ = self.tok_batch_encode([request.args[0]])
                self.prompt_ids[request.args[0]] = tuple(ids[0].tolist())
                self._refuse_too_long(request)
            texts: list[str] = super().generate_until(requests, disable_tqdm=True)
            self.generated = {text: self.by_ids[ids] for text, ids in self.prompt_ids.items()}
            return texts

        def _refuse_too_long(self, request: Any) -> None:
            # The harness would cut such a prompt on the left, without a word: documents lost.
            size = len(self.prompt_ids[request.args[0]])
            if size + config.max_new_tokens > self.max_length:
                raise DataError(
                    f"question {request.doc['id']!r}: {size} prompt tokens and "
                    f"{config.max_new_tokens} for the generation do not fit the model's "
                    f"{self.max_length}",
                    path=config.questions,
                    hint="Lower --distractors or --max-new-tokens.",
                )

        def _model_generate(
            self, context: "torch.Tensor", max_length: int, stop: list[str], **options: Any
        ) -> "torch.Tensor":
            output: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
            width = context.shape[1]
            for row, mask, new in zip(
                context, options["attention_mask"], output[:, width:].tolist(), strict=True
            ):
                ends = (index for index, token in enumerate(new) if token in self.eos_ids)
                tokens = next(ends, len(new) - 1) + 1
                cut = tokens == config.max_new_tokens and new[-1] not in self.eos_ids
                self.by_ids[tuple(row[mask.bool()].tolist())] = Generated(tokens, cut)
            bar.advance(len(context))
            return output

    return CountingModel()


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
