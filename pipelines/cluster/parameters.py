"""The parameters of a run, checked before the cluster sees them.

By the config classes of the stages that they reach: a wrong one would fail a step when the GPU is
already there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.core.config import INPUT, OUTPUT, SCHEME, Settings, complaint, message
from components.core.errors import ConfigError
from pipelines.cluster.compiled import Compiled
from pipelines.hardware import hardware_of_run
from pipelines.k8s.located import meant, read
from pipelines.stages import config_class

TRIALS = "trials"
"""The parameter of the study: a list of objects, each with the settings of one trial."""


class UserValue(NamedTuple):
    """A parameter's value and where the user wrote it: `parameters.yaml:3` or `--set`."""

    value: Any
    place: str


def read_parameters(path: Path | None, settings: tuple[str, ...] = ()) -> dict[str, UserValue]:
    """Parameters of a YAML or JSON file, and `name=value` settings, which win.

    Raises:
        ConfigError: a file that is missing, not a mapping, or names a parameter twice; a setting
            without `=`.
    """
    user_values: dict[str, UserValue] = {}
    for document in read(path)[:1] if path else []:
        if not isinstance(document.value, dict):
            raise ConfigError(
                f"{path}: holds no mapping of names to values",
                hint="Write one parameter a line, such as `documents: gs://BUCKET/documents`.",
            )
        for name, value in document.value.items():
            user_values[str(name)] = UserValue(value, document.place(name))
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting!r}: no value", hint="Write --set name=value.")
        user_values[name.strip()] = UserValue(value, "--set")
    return user_values


def check_parameters(pipeline: Compiled, user_values: Mapping[str, UserValue]) -> dict[str, Any]:
    """The typed values to hand to Kubeflow.

    Raises:
        ConfigError: a parameter is unknown, missing, of another type, or out of the range of a
            stage that it reaches, with file and line and what is allowed; or a stage takes each,
            but not all of them together.
    """
    faults = _unknown_and_missing(pipeline.inputs, user_values)
    values = pipeline.defaults | {name: entry.value for name, entry in user_values.items()}
    if type(values.get("train_gpus")) is int:
        values["train_gpus"] = str(values["train_gpus"])  # text for Kubeflow's sake
    try:
        values |= _trials(pipeline, values)
    except (ValueError, TypeError) as error:
        faults[TRIALS] = f"{user_values[TRIALS].place}: {error}"
        values[TRIALS] = []
    for step in pipeline.steps():
        for index, trial in enumerate(values.get(TRIALS, [{}])):
            given = values | trial
            settings = {name: given[name] for name in step.settings if name in given}
            typed, problems = _parse(step.stage, settings)
            values |= {name: value for name, value in typed.items() if name not in trial}
            for name, problem in problems:
                parameter, label = (TRIALS, f"{TRIALS}[{index}].") if name in trial else (name, "")
                place = f"{user_values[parameter].place}: " if parameter in user_values else ""
                text = f"{place}{label}{name} {settings[name]!r}: " if name else ""
                faults.setdefault(label + (name or problem), f"{text}{step.stage} {problem}")
    if not faults:
        hardware_of_run(values, pipeline.hardware)
        return {name: values[name] for name in user_values}
    raise ConfigError(
        "\n".join(faults.values()),
        hint=f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs.",
    )


def _unknown_and_missing(
    inputs: Mapping[str, Any], user_values: Mapping[str, UserValue]
) -> dict[str, str]:
    faults = {}
    for name, (_, place) in user_values.items():
        if name not in inputs:
            allowed = f"{meant(name, inputs)} (allowed: {', '.join(inputs)})"
            faults[name] = f"{place}: {name}: unknown parameter{allowed}"
    for name, definition in inputs.items():
        if name not in user_values and not definition.get("isOptional", False):
            description = " ".join(definition.get("description", "").split())
            faults[name] = f"{name} is missing: {description}"
    return faults


def _trials(pipeline: Compiled, values: Mapping[str, Any]) -> dict[str, Any]:
    """The trials of a study as objects; a ValueError for one with other keys than the default's."""
    if TRIALS not in pipeline.inputs:
        return {}
    text = values[TRIALS]
    trials = json.loads(text) if isinstance(text, str) else text
    keys = pipeline.defaults[TRIALS][0].keys()
    for index, trial in enumerate(trials):
        if not isinstance(trial, dict) or trial.keys() != keys:
            allowed = f"not an object with exactly these keys: {', '.join(sorted(keys))}"
            raise ValueError(f"{TRIALS}[{index}] {trial!r}: {allowed}")
    return {TRIALS: trials}


def _parse(stage: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A stage's typed settings, and its problems with them by name; "" for several together."""
    if not settings:
        return {}, []
    config = config_class(stage)
    fields = config.model_fields
    local = "runs in a cluster, which cannot read it (allowed: gs://BUCKET/PATH)"
    texts = ((name, value) for name, value in settings.items() if isinstance(value, str))
    problems = [(name, local) for name, value in texts if is_local(config, name, value)]
    # What the steps hand each other has no value yet.
    unset = {name: f"{SCHEME}unset/{name}" for name in fields if fields[name].is_required()}
    try:
        typed = config.model_validate(unset | dict(settings))
        return typed.model_dump(mode="json", include=set(settings)), problems
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if name in settings:
                problems.append((name, f"refuses it{complaint(fault, fields[name])}"))
            elif not name:
                problems.append(("", f"refuses these together: {message(fault)}"))
    return {}, problems


def is_local(config: type[Settings], name: str, value: object) -> bool:
    """Whether a setting is a location on this machine, which no pod sees."""
    location = str(value)
    is_location = any(mark in (INPUT, OUTPUT) for mark in config.model_fields[name].metadata)
    if not is_location or not location or location.startswith(SCHEME):
        return False
    return name != "base_model" or location[0] in "./~" or Path(location).exists()
