"""What tuning cost elsewhere: further tasks of lm-evaluation-harness, with and without the adapter.

The harness prompts, ranks or generates, and scores by itself, as its own command would (no chat
template, the task's own number of examples); models come from the stage's loaders, 4-bit ones
too. A full fine-tuning rate can wreck a model while F1 rises: here it shows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.core import progress
from components.core.errors import ConfigError, first_line
from components.core.memory import free_memory
from components.core.models import load_tokenizer
from components.core.records import OtherScore
from components.core.statistics import mean, mean_interval, paired_difference
from components.eval.arms import ARMS, Arm
from components.eval.config import EvalConfig
from components.eval.engines import load_weights, with_adapter

Values = dict[tuple[str, str], list[float]]
"""Task and metric to the score of each example, in the task's order."""


def load_other_tasks(names: Sequence[str]) -> Any:
    """The harness's tasks; a name that ends in .yaml is a task's file on this machine.

    Raises:
        ConfigError: the harness has no such task, or cannot load it.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml as load_yaml_config

    files = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    try:
        known = [load_yaml_config(path, resolve_func=False)["task"] for path in files]
        manager = TaskManager(
            include_path=[str(path.parent) for path in files] or None,
            include_defaults=len(files) < len(names),  # thousands of files to read
        )
        return manager.load([*known, *(name for name in names if Path(name) not in files)])
    except Exception as error:  # the harness raises whatever its parts do
        raise ConfigError(
            f"--also {','.join(names)}: no task of lm-evaluation-harness ({first_line(error)})",
            hint="`lm_eval ls tasks` lists their names; a task of your own is a YAML file.",
        ) from error


def score_other_tasks(config: EvalConfig, arms: Sequence[Arm], tasks: Any) -> list[OtherScore]:
    """Score the tasks with every set of weights that the arms have.

    Args:
        tasks: as `load_other_tasks` loads them.

    Raises:
        ModelError: a model or the adapter cannot be loaded.
    """
    variants = {(arm.bits, arm.folder): arm for arm in reversed(arms)}
    for bits in {arm.bits for arm in arms}:
        variants.setdefault((bits, ""), ARMS["base" if bits == 16 else "base-4bit"])
    base: dict[int, Values] = {}
    scores: list[OtherScore] = []
    # Models without an adapter first: the others are compared with them.
    for bits, folder in sorted(variants, key=lambda key: (key[1] != "", -key[0])):
        arm = variants[bits, folder]
        progress.say(f"  {', '.join(config.also)}: {arm.name}")
        values = _evaluate(config, arm, tasks)
        if not folder:
            base[bits] = values
        scores += _summarise(arm, values, base.get(bits, {}), config.seed)
    return scores


def _evaluate(config: EvalConfig, arm: Arm, tasks: Any) -> Values:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    tokenizer: Any = load_tokenizer(config.base_model)
    with with_adapter(load_weights(arm, config), arm.folder, config) as model:
        results = lm_eval.evaluate(
            lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size),
            task_dict=tasks,
            limit=config.also_limit,
            log_samples=True,
            bootstrap_iters=0,
        )
    del model
    free_memory()
    values: Values = {}
    for task, entries in results["samples"].items():
        for entry in sorted(entries, key=lambda entry: int(entry["doc_id"])):
            for metric in entry["metrics"]:
                # A task may read the same generation in several ways, which it calls filters.
                name = metric if entry["filter"] == "none" else f"{metric} ({entry['filter']})"
                if isinstance(entry[metric], int | float):
                    values.setdefault((task, name), []).append(float(entry[metric]))
    return values


def _summarise(arm: Arm, values: Values, base: Values, seed: int) -> Iterator[OtherScore]:
    for (task, metric), scores in values.items():
        compared = None
        if arm.adapter and (task, metric) in base:
            compared = paired_difference(scores, base[task, metric], seed)
        yield OtherScore(
            task=task,
            metric=metric,
            arm=arm.name,
            n=len(scores),
            value=mean(scores),
            ci=mean_interval(scores, seed),
            difference=compared.mean if compared else None,
            difference_ci=compared.ci if compared else None,
        )
