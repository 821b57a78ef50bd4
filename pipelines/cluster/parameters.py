"""The parameters of a run, checked before the cluster sees them.

Against the inputs of the compiled YAML and the config classes of the stages that they reach: a
wrong one would fail a step when the GPU is already there.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.core.config import INPUT, OUTPUT, SCHEME, Settings, complaint, flag, message
from components.core.errors import ConfigError
from pipelines.cluster.compiled import Compiled, first_document
from pipelines.hardware import hardware_of_run
from pipelines.k8s.located import meant
from pipelines.stages import config_class

KINDS: dict[str, tuple[type, str]] = {
    "STRING": (str, "a text; put it in quotes"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a number"),
    "BOOLEAN": (bool, "true | false"),
    "LIST": (list, "a list, or its JSON"),
    "STRUCT": (dict, "a mapping, or its JSON"),
}


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
    document = first_document(path, "Check --parameters.") if path else None
    if document is not None:
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
            stage that it reaches, or a stage takes each but not all of them together; names each
            with file and line and what is allowed.
    """
    faults = []
    values = {}
    for name, (value, place) in user_values.items():
        try:
            values[name] = _typed(pipeline, name, value)
        except ValueError as error:
            faults.append(f"{place}: {error}")
    for name, definition in pipeline.inputs.items():
        if name not in user_values and not definition.get("isOptional", False):
            description = " ".join(definition.get("description", "").split())
            faults.append(f"{name} is missing: {description}")
    alone: dict[str, str] = {}
    together: dict[str, str] = {}
    for parameters, labels, problem in _refusals(pipeline, pipeline.defaults | values):
        places = dict.fromkeys(
            user_values[name].place for name in parameters if name in user_values
        )
        text = f"{', '.join(places) or pipeline.path}: {labels}: {problem}"
        (alone if len(parameters) == 1 else together).setdefault(labels, text)
    faults = [*faults, *alone.values()] or [*together.values()]
    if faults:
        raise ConfigError(
            "\n".join(faults),
            hint=f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs.",
        )
    return values


def _typed(pipeline: Compiled, name: str, value: Any) -> Any:
    """A value, perhaps given as text, as the type that the pipeline declares; or a ValueError."""
    if name not in pipeline.inputs:
        raise ValueError(
            f"{name}: unknown parameter{meant(name, pipeline.inputs)} "
            f"(allowed: {', '.join(pipeline.inputs)})"
        )
    kind = pipeline.inputs[name]["parameterType"]
    if kind not in KINDS:
        raise ValueError(f"{name}: set by Kubeflow, not by a user")
    if name == "train_gpus" and type(value) is int:
        value = str(value)  # text for Kubeflow's sake; nobody quotes a number
    try:
        typed = as_kind(kind, value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} {value!r}: not {KINDS[kind][1]}") from None
    origins = [origin for step in pipeline.steps() for origin in step.origins.values()]
    keys = {origin.key for origin in origins if origin.parameter == name and origin.key}
    for index, item in enumerate(typed if keys else []):
        if not isinstance(item, dict) or item.keys() != keys:
            raise ValueError(
                f"{name}[{index}] {item!r}: not an object with exactly these keys: "
                f"{', '.join(sorted(keys))}"
            )
    return typed


def as_kind(kind: str, value: Any) -> Any:
    """A value as one of KFP's types; all but a STRING may also be given as text."""
    if kind.startswith("NUMBER") and not isinstance(value, bool):
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(value)
        if kind == "NUMBER_INTEGER" and value.is_integer():
            value = int(value)
    elif kind != "STRING" and isinstance(value, str):
        value = json.loads(value)
    if type(value) is not KINDS[kind][0]:
        raise ValueError(value)
    return value


def _refusals(
    pipeline: Compiled, values: Mapping[str, Any]
) -> Iterator[tuple[list[str], str, str]]:
    """What a stage would refuse when it starts: parameters, with their values, and the problem."""
    try:
        hardware_of_run(values, pipeline.hardware)
    except ConfigError as error:
        start, _, problem = str(error).partition(": ")
        yield [name for name in values if _names(str(error), name)], start, problem
    for step in pipeline.steps():
        origins = {name: origin for name, origin in step.origins.items() if origin[0] in values}
        lists = [values[parameter] for parameter, key in origins.values() if key]
        for index in range(len(lists[0]) if lists else 1 if origins else 0):
            settings = {name: origin.value(values, index) for name, origin in origins.items()}
            for blamed, problem in _problems(step.stage, settings):
                labels = [f"{origins[name].label(index)} {settings[name]!r}" for name in blamed]
                parameters = [origins[name].parameter for name in blamed or origins]
                yield parameters, ", ".join(labels) or step.stage, f"{step.stage} {problem}"


def _problems(stage: str, settings: Mapping[str, Any]) -> Iterator[tuple[list[str], str]]:
    """What a stage has against settings: one alone, or several that it does not take together."""
    config = config_class(stage)
    fields = config.model_fields
    for name, value in settings.items():
        if is_local(config, name, value):
            yield [name], "runs in a cluster, which cannot read it (allowed: gs://BUCKET/PATH)"
    # What the steps hand each other has no value yet.
    unset = {name: f"{SCHEME}unset/{name}" for name in fields if fields[name].is_required()}
    try:
        config.model_validate(unset | dict(settings))
    except ValidationError as error:
        for fault in error.errors():
            problem = message(fault)
            if not fault["loc"]:
                flags = [name for name in settings if _names(problem, flag(name))]
                yield flags, f"refuses these together: {problem}"
            elif (name := str(fault["loc"][0])) in settings:
                yield [name], f"refuses it{complaint(fault, fields[name])}"


def _names(text: str, word: str) -> bool:
    """Whether a text names a parameter or a flag."""
    return re.search(rf"(?<![\w-]){word}(?![\w-])", text) is not None


def is_local(config: type[Settings], name: str, value: object) -> bool:
    """Whether a setting is a location on this machine, which no pod sees."""
    location = str(value)
    is_location = any(mark in (INPUT, OUTPUT) for mark in config.model_fields[name].metadata)
    if not is_location or not location or location.startswith(SCHEME):
        return False
    return name != "base_model" or location[0] in "./~" or Path(location).exists()
