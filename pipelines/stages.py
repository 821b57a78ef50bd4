"""The stages by name, and how one is run: for a person, in a Job, or as a step of Kubeflow.

A stage, and with it torch or transformers, is imported when it is run; its settings are imported
when they are asked for.
"""

import importlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.core.accelerator import GpuStageConfig, check_gpus
from components.core.config import Options, Settings, StageConfig, default_text
from components.core.errors import RaftError
from components.core.progress import say

if TYPE_CHECKING:
    from components.core.kubeflow import Step


class Stage(NamedTuple):
    """A command that is all settings and work."""

    work: str
    """Module with its `run`, which takes the settings."""
    config: str
    """The class of its settings."""
    summary: str
    example: str
    filled_by_step: str = ""
    """The setting that a step of Kubeflow fills with the artifacts it is settings."""
    ending: str = ""
    """What a person reads last: where to look, and the next command. Settings in braces are filled
    in, `{parent}` is the output's parent; a line is left out where a setting of it is not given."""
    resumes: str = ""
    """What the same command does after an interruption."""


COMMANDS = {
    "generate": Stage(
        work="components.generate.generate",
        config="components.generate.config.GenerateConfig",
        summary="Write RAFT rows from documents.",
        example="raft generate --documents my-documents/ --output dataset/ --teacher openai "
        "--teacher-endpoint http://localhost:8000/v1 --teacher-model MODEL",
        ending="→ {output}/report.html\n"
        "next: raft train --dataset {output} --base-model meta-llama/Llama-3.1-8B-Instruct "
        "--output {parent}/adapter",
        resumes="the same command resumes: no response of a teacher is paid for twice",
    ),
    "train": Stage(
        work="components.train.train",
        config="components.train.config.TrainConfig",
        summary="Fine-tune a chat model on RAFT rows with LoRA.",
        example="raft train --dataset dataset/ --base-model models/llama --output adapter/",
        ending="→ {output}/report.html\n"
        "next: raft quantize-check --dataset {dataset} --base-model {base_model} "
        "--adapter {output} --output {parent}/quantization",
        resumes="the same command resumes from the newest checkpoint",
    ),
    "quantize-check": Stage(
        work="components.quantize_check.quantize_check",
        config="components.quantize_check.config.QuantizeCheckConfig",
        summary="Measure what 4-bit weights save and cost.",
        example="raft quantize-check --dataset dataset/ --base-model models/llama "
        "--adapter adapter/ --output quantization/",
        ending="→ {output}/report.html\n"
        "next: raft eval --questions {dataset} --base-model {base_model} --adapter {adapter} "
        "--quantization {output} --output {parent}/evaluation",
        resumes="the same command starts the check again",
    ),
    "eval": Stage(
        work="components.eval.eval",
        config="components.eval.config.EvalConfig",
        summary="Score base and tuned models; write the report.",
        example="raft eval --questions dev.json --base-model models/llama --adapter adapter/ "
        "--output evaluation/",
        ending="→ {output}/report.html\n"
        "use it: raft ask --adapter {adapter} --base-model {base_model} --documents DOCUMENTS "
        '"QUESTION"\n'
        "        raft serve --adapter {adapter} --base-model {base_model} --run\n"
        "        raft card --adapter {adapter} --evaluation {output} --output {parent}/published",
        resumes="the same command resumes: finished generations are kept",
    ),
    "hardware": Stage(
        work="components.core.hardware",
        config="components.core.hardware.HardwareConfig",
        summary="Resolve what the GPU steps of a pipeline run ask for.",
        example='raft hardware --compiled \'{"train": {"gpu_count": "1", "cpu_request": "8", '
        '"cpu_limit": "12", "memory_request": "64Gi", "memory_limit": "64Gi"}}\' --gpu h100 '
        "--output hardware/",
    ),
    "summary": Stage(
        work="components.report.summary",
        config="components.report.summary.SummaryConfig",
        summary="Sum up a run: results, time, cost, what failed.",
        example="raft summary --folders run/ --output run/summary",
        filled_by_step="folders",
    ),
    "export": Stage(
        work="components.generate.export",
        config="components.generate.export.ExportConfig",
        summary="Write a dataset in another format.",
        example="raft export --dataset dataset/ --format chat --output exported/",
    ),
    "merge-adapter": Stage(
        work="components.use.merge",
        config="components.use.config.MergeConfig",
        summary="Merge an adapter into its base, in 16 or 4 bits.",
        example="raft merge-adapter --base-model models/llama --adapter run/adapter --bits 16 "
        "--output merged/",
        ending="→ vllm serve {output}",
    ),
    "card": Stage(
        work="components.use.card",
        config="components.use.config.CardConfig",
        summary="Write an adapter with the figures in its card, to publish.",
        example="raft card --adapter run/adapter --evaluation run/evaluation --output published/",
        ending="→ {output}/README.md",
    ),
}
"""The stages, then what reads what stages made."""

USES = {
    "ask": Stage(
        work="components.use.ask",
        config="components.use.config.AskConfig",
        summary="Ask an adapter about documents.",
        example="raft ask --adapter run/adapter --documents my-documents/ "
        '"Where was Ada Voss born?"',
    ),
    "serve": Stage(
        work="components.use.serve",
        config="components.use.config.ServeConfig",
        summary="Print or start the vLLM server of an adapter.",
        example="raft serve --adapter run/adapter --run",
    ),
    "rows": Stage(
        work="components.use.rows",
        config="components.use.config.RowsConfig",
        summary="Write a page to review the rows of a dataset.",
        example="raft rows dataset/ --output rows.html",
    ),
}
"""Commands with settings that write no artifact."""

STAGES = ("generate", "train", "quantize-check", "eval")
"""Those with an image, a Job and an account of their own."""

CACHE_VARIABLE = "RAFT_CACHE"
"""Names the place of a volume that keeps what the steps of a pipeline would keep in `state`."""
PART_OF_RUN = "RAFT_PART_OF_RUN"
"""A variable that `raft run` sets for its stages: the next command is its own affair."""

GPU_TEACHER = "generate-gpu"
"""The Job and image of generate with a teacher on GPUs of its own (--teacher vllm)."""

JOBS = (*STAGES, GPU_TEACHER)
"""The Jobs by their manifests' names."""

EXECUTOR_INPUT = "executor_input"
"""What Kubeflow tells a step about itself, beside the settings."""


def config_class(name: str) -> type[Settings]:
    """The class of the settings of a command that writes an artifact."""
    kind: type[Settings] = options_class(name)  # type: ignore[assignment]
    return kind


def options_class(name: str) -> type[Options]:
    """The class of a command's settings."""
    module, _, class_name = (COMMANDS | USES)[name].config.rpartition(".")
    kind: type[Options] = getattr(importlib.import_module(module), class_name)
    return kind


def use(config: Options) -> None:
    """Run a command that writes no artifact, on local copies of what it reads."""
    from components.core.storage import with_local_copies

    with with_local_copies(config) as local:
        importlib.import_module(USES[config.stage].work).run(local)


def run_stage(config: Settings, *, as_step: bool = False) -> object:
    """Run one stage with `gs://` locations fetched before and published after; its result.

    Where the output holds what would be made, nothing is run, and there is no result. A step of
    Kubeflow is handed a folder of its own, which is new.
    """
    from components.core.base_model import with_base_model
    from components.core.storage import is_up_to_date, locked, with_local_copies

    with nullcontext() if as_step else locked(config.output):
        if not as_step and isinstance(config, StageConfig) and is_up_to_date(config):
            _say_ending(config)
            return None
        if isinstance(config, GpuStageConfig):
            check_gpus(config)  # before anything is fetched
        stage = importlib.import_module(COMMANDS[config.stage].work)
        with with_local_copies(config) as local, with_base_model(local) as ready:
            result: object = stage.run(ready)
        # What a step has made goes up after the process has ended.
        if hasattr(stage, "published") and not as_step:
            stage.published(config)
    if not as_step:
        _say_ending(config)
    return result


def _say_ending(config: Settings) -> None:
    """Show where to look and what to type next, but for a stage of `raft run`."""
    if PART_OF_RUN not in os.environ:
        for line in ending(config):
            say(f"  {line}")


def ending(config: Settings) -> list[str]:
    """The last lines of a command, with its settings filled in as one would type them."""
    place = config.output.rstrip("/") or "/"
    texts = {name: str(value) for name, value in config.model_dump().items() if value}
    texts |= {"output": place, "parent": place.rpartition("/")[0] or "."}
    words = {name: shlex.quote(value) for name, value in texts.items()}
    lines = []
    for line in COMMANDS[config.stage].ending.splitlines():
        with suppress(KeyError):  # a setting that is not given
            lines.append(line.format_map(words))
    return lines


def without_defaults(kind: type[Settings], settings: dict[str, object]) -> dict[str, object]:
    """The settings of a step that are not at their default.

    Kubeflow passes every setting, and one that is passed wins over what `--gpu` stands for.
    """
    defaults = {
        name: default_text(field)
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }
    return {name: value for name, value in settings.items() if value != defaults.get(name)}


def run_step(kind: type[Settings], settings: dict[str, object], executor_input: str) -> None:
    """Run one stage as a step of Kubeflow, and show its result there."""
    from components.core.kubeflow import Step

    step = Step.parse(executor_input)
    state = str(settings.get("state", ""))
    filled = COMMANDS[kind.stage].filled_by_step
    if filled:
        settings[filled] = tuple(step.folders_to_read(kind.stage))
    with nullcontext() if filled else _recorded_failure(step, kind.stage, state):
        # Kubeflow uploads nothing of an attempt that fails, and a new run looks nowhere else.
        if issubclass(kind, StageConfig):
            cache = os.environ.get(CACHE_VARIABLE, "")
            settings["state"] = cache or state or step.state(kind.stage)
        config = kind.parse(without_defaults(kind, settings))
        result = run_stage(config, as_step=True)
    step.announce(result, Path(config.output))
    _sum_up(step, state)


@contextmanager
def _recorded_failure(step: "Step", stage: str, state: str) -> Iterator[None]:
    """Leave the ledger of an attempt that fails, and the run's summary with it."""
    try:
        with step.ledger_on_failure(stage, state):
            yield
    except Exception:  # not what ends a process from outside: it has a second left
        _sum_up(step, state)
        raise


def _sum_up(step: "Step", state: str) -> None:
    """Write the run's summary to a place that a Retry, too, keeps up to date: RUN/summary.md.

    Where others cannot read the step's artifact, because its store is not on gs://, its results are
    copied next to that summary.
    """
    from components.core.kubeflow import results_folder
    from components.core.storage import put
    from components.report.results import copy_results
    from components.report.summary import SUMMARY, so_far

    if not (folder := results_folder(step.run_folder, state)):
        return
    uri, artifact = step.place
    try:
        if folder != step.run_folder:
            copy_results(Path(artifact), step.results(state))
        put(so_far(step.run_folder, state, uri, artifact), f"{folder}/{SUMMARY}")
    except (RaftError, OSError) as obstacle:
        say(f"  {folder}/{SUMMARY} is not up to date: {obstacle}")
