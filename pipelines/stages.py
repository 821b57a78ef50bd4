"""The stages by name, and how one is run: for a person, in a Job, or as a step of Kubeflow.

A stage, and with it torch or transformers, is imported when it is run; its settings are imported
when they are asked for.
"""

import importlib
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from components.core.config import ArtifactSettings, Settings
from components.core.progress import say


class Stage(NamedTuple):
    """A command that is all settings and work."""

    work: str
    """Module with its `run`, which takes the settings."""
    config: str
    """The class of its settings."""
    summary: str
    example: str
    filled_by_step: str = ""
    """The setting that a step of Kubeflow fills with the artifacts it is given."""
    ending: str = ""
    """What a person reads last: where to look, or what comes next."""


_NEXT = "next: raft train --dataset {output} --base-model MODEL --output ADAPTER"

COMMANDS = {
    "generate": Stage(
        work="components.generate.generate",
        config="components.generate.config.GenerateConfig",
        summary="Write RAFT rows from documents.",
        example="raft generate --documents my-documents/ --output dataset/ --distractors 3",
        ending=_NEXT,
    ),
    "train": Stage(
        work="components.train.train",
        config="components.train.config.TrainConfig",
        summary="Fine-tune a chat model on RAFT rows with LoRA.",
        example="raft train --dataset dataset/ --base-model models/llama --output adapter/",
        ending="→ {output}/report.html",
    ),
    "quantize-check": Stage(
        work="components.quantize_check.quantize_check",
        config="components.quantize_check.config.QuantizeCheckConfig",
        summary="Measure what 4-bit weights save and cost.",
        example="raft quantize-check --dataset dataset/ --base-model models/llama "
        "--adapter adapter/ --output quantization/",
        ending="→ {output}/quantization.json",
    ),
    "eval": Stage(
        work="components.eval.eval",
        config="components.eval.config.EvalConfig",
        summary="Score base and tuned models; write the report.",
        example="raft eval --questions dev.json --base-model models/llama --adapter adapter/ "
        "--output evaluation/",
        ending="→ {output}/report.html",
    ),
    "hardware": Stage(
        work="components.core.hardware",
        config="components.core.hardware.HardwareConfig",
        summary="Resolve what the GPU steps of a pipeline run ask for.",
        example='raft hardware --compiled \'{"train": {"gpu_count": "1", "memory_request": '
        '"64Gi", "memory_limit": "64Gi"}}\' --memory 96Gi --output hardware/',
    ),
    "summary": Stage(
        work="components.report.summary",
        config="components.report.summary.SummaryConfig",
        summary="Sum up a run: results, time, cost, what failed.",
        example="raft summary --folders run/ --output run/summary",
        filled_by_step="folders",
    ),
    "merge": Stage(
        work="components.generate.merge",
        config="components.generate.merge.MergeConfig",
        summary="Join the datasets of several shards.",
        example="raft merge --shards shard-1/,shard-2/ --output dataset/",
        filled_by_step="shards",
        ending=_NEXT,
    ),
    "export": Stage(
        work="components.generate.export",
        config="components.generate.export.ExportConfig",
        summary="Write a dataset in another format.",
        example="raft export --dataset dataset/ --format chat --type parquet --output exported/",
    ),
}
"""The stages, then what reads what stages made."""

STAGES = ("generate", "train", "quantize-check", "eval")
"""Those with an image, a Job and an account of their own."""

EXECUTOR_INPUT = "executor_input"
"""What Kubeflow tells a step about itself, beside the settings."""


def config_class(name: str) -> type[Settings]:
    """The class of a command's settings."""
    module, _, class_name = COMMANDS[name].config.rpartition(".")
    found: type[Settings] = getattr(importlib.import_module(module), class_name)
    return found


def run_stage(config: Settings, *, as_step: bool = False) -> object:
    """Run one stage with `gs://` locations fetched before and published after; what it found.

    Where the output holds what would be made, nothing is run or found. A step of Kubeflow is handed
    a folder of its own, which is new.
    """
    from components.core.storage import is_up_to_date, locked, with_local_copies

    with nullcontext() if as_step else locked(config.output):
        if not as_step and isinstance(config, ArtifactSettings) and is_up_to_date(config):
            return None
        stage = importlib.import_module(COMMANDS[config.stage].work)
        with with_local_copies(config) as local:
            found: object = stage.run(local)
        # What a step has made goes up after the process has ended.
        if hasattr(stage, "published") and not as_step:
            stage.published(config)
    if (ending := COMMANDS[config.stage].ending) and not as_step:
        say("  " + ending.format(output=shlex.quote(config.output.rstrip("/") or "/")))
    return found


def run_step(kind: type[Settings], given: dict[str, object], executor_input: str) -> None:
    """Run one stage as a step of Kubeflow, and show there what it found."""
    from components.core.kubeflow import Step

    step = Step.parse(executor_input, str(given.get("output", "")))
    filled = COMMANDS[kind.stage].filled_by_step
    if filled:
        given[filled] = tuple(step.folders_to_read(kind.stage))
    with step.ledger_on_failure(kind.stage) if kind.stage in STAGES else nullcontext():
        kept = kind.kept()
        if kept and not given.get(kept):
            # Kubeflow uploads nothing of an attempt that fails.
            given[kept] = step.beside(kept)
        config = kind.parse(given)
        found = run_stage(config, as_step=True)
    step.announce(found, Path(config.output))
