"""All stages on this machine, from the file of parameters that `raft submit` takes too.

Each stage is a process of its own: the memory of a GPU is free again only when one ends. A stage
that is finished is skipped, and one that was stopped resumes, because the stages do so themselves.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.base_model import is_hub_id
from components.core.config import StageConfig, flag
from components.core.errors import ConfigError
from components.core.progress import say
from components.core.records import QuantizationReport, read_json
from components.core.storage import put
from components.core.use_it import use_it
from components.report.outcome import proven
from components.report.results import read
from components.report.summary import SUMMARY, render
from pipelines.form import DEFAULTS, FIELDS, fields_of
from pipelines.parameters import arms_problem, read_parameters
from pipelines.stages import PART_OF_RUN, STAGES, config_class

FOLDERS = dict(zip(STAGES, ("dataset", "adapter", "quantization", "evaluation"), strict=True))
"""Where each stage writes, below the run's folder."""


def run_file(file: Path, settings: tuple[str, ...], output: Path) -> int:
    """Run the stages into folders below `output`; the exit code of the one that failed, or 0.

    Args:
        file: YAML or JSON, a parameter's name and its value on each line.
        settings: `NAME=VALUE`, which wins over the file.
        output: a folder on this machine.

    Raises:
        ConfigError: lists every parameter that is unknown, missing or refused, with its line.
    """
    configs = plan(*read_parameters(file, settings), output)
    folder_of = {stage: config.output for stage, config in configs.items()}
    page = folder_of["eval"]
    for stage, config in configs.items():
        code = _run_stage(stage, flags_of(config))
        if code:
            say(f"{stage} has not finished; to resume: {_again(file, settings, output)}")
            return code
        if stage == "quantize-check":
            verdict = read_json(Path(config.output) / QuantizationReport.FILE, QuantizationReport)
            if verdict.decision == "stop":
                say("gate is stop: no evaluation")
                page = config.output
                break
    results = read((str(output),))
    put(render(results, proven(results)), str(output / SUMMARY))
    say(f"next: open {page}/report.html; in words: {output / SUMMARY}")
    for command in use_it(folder_of["train"]):
        say(f"  {command}")
    return 0


def plan(
    parameters: Mapping[str, Any], places: Mapping[str, str], output: Path
) -> dict[str, StageConfig]:
    """The settings of every stage, checked before the first one runs.

    Raises:
        ConfigError: as `run_file`.
    """
    problems = [
        f"{places[name]}: {name}: unknown parameter (allowed: {', '.join(FIELDS)})"
        for name in parameters
        if name not in FIELDS
    ]
    if ignored := [name for name in parameters if FIELDS.get(name) == ("hardware",)]:
        say(f"  of a cluster, and ignored here: {', '.join(ignored)}")
    folders = {folder: str(output / folder) for folder in FOLDERS.values()}
    configs: dict[str, StageConfig] = {}
    for stage, folder in FOLDERS.items():
        kind = config_class(stage)
        names = [*fields_of(FIELDS, stage), *folders]
        values = {
            name: value
            for name, value in (DEFAULTS | folders | dict(parameters)).items()
            if name in names and name in kind.model_fields
        }
        if stage == "generate" and (questions := str(parameters.get("questions", ""))):
            if is_hub_id(questions):
                say(f"  {questions} is on the hub: rows are not checked against its questions")
            else:
                values["eval_questions"] = questions  # no row may give them away
        try:
            configs[stage] = kind.parse(values | {"output": folders[folder]})  # type: ignore[assignment]
        except ConfigError as error:
            problems += [_located(line, places) for line in str(error).splitlines()]
    if not problems:
        train, evaluation = configs["train"].model_dump(), configs["eval"].model_dump()
        if problem := arms_problem(train, evaluation["arms"]):
            problems = [f"{places.get('arms', '--set')}: arms: {problem}"]
    if problems:
        hint = "Correct the file, or add --set NAME=VALUE."
        raise ConfigError("\n".join(dict.fromkeys(problems)), hint=hint)
    return configs


def flags_of(config: StageConfig) -> list[str]:
    """The flags of settings that were given: a default may win over what `gpu` sets."""
    given = config.model_dump(mode="json", exclude_unset=True)
    return [
        word
        for name, value in given.items()
        for word in (flag(name), value if isinstance(value, str) else json.dumps(value))
    ]


def _run_stage(stage: str, flags: list[str]) -> int:
    """The exit code of a stage; what stops this process stops the stage, in its own time."""
    command = [sys.executable, "-m", "pipelines", stage, *flags]
    process = subprocess.Popen(command, env=os.environ | {PART_OF_RUN: "1"})  # noqa: S603
    try:
        code = process.wait()
        return code if code >= 0 else 128 - code  # as a shell counts what a signal has ended
    except KeyboardInterrupt:  # which a terminal has sent to the stage as well
        process.wait()
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _located(line: str, places: Mapping[str, str]) -> str:
    """A problem with a flag as one with the parameter of that name, behind its place."""
    for name, place in places.items():
        if line.startswith((f"{flag(name)} ", f"{flag(name)}:")):
            return f"{place}: {name}{line.removeprefix(flag(name))}"
    return line


def _again(file: Path, settings: tuple[str, ...], output: Path) -> str:
    words = ["raft", "run", str(file), "--output", str(output)]
    return shlex.join([*words, *(word for text in settings for word in ("--set", text))])
