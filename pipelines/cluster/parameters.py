"""The parameters of a compiled pipeline's run, checked before the cluster sees them.

By the config classes of the pipeline's stages: a wrong one would fail a step when the GPU is
already there. A parameter has the name of the setting that it sets.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.core.config import Settings, allowed_values, complaint, message
from components.core.errors import ConfigError
from components.core.locations import INPUT, OUTPUT, SCHEME
from pipelines.hardware import hardware_of_run
from pipelines.k8s.located import meant, read
from pipelines.stages import COMMANDS, config_class


class Compiled(NamedTuple):
    """A compiled pipeline and its file."""

    path: Path
    specification: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name to definition of every pipeline parameter."""
        return dict(self.specification["root"]["inputDefinitions"]["parameters"])

    @property
    def defaults(self) -> dict[str, Any]:
        """Name to default of every pipeline parameter that has one."""
        inputs = self.inputs.items()
        return {name: entry["defaultValue"] for name, entry in inputs if "defaultValue" in entry}

    @property
    def steps(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Name to command (`train` of `raft train`) and inputs of all containers, in loops too."""
        components = self.specification["components"]
        executors = self.specification["deploymentSpec"]["executors"]
        found = {}
        for part in (self.specification["root"], *components.values()):
            for name, task in part.get("dag", {}).get("tasks", {}).items():
                if label := components[task["componentRef"]["name"]].get("executorLabel"):
                    command = executors[label].get("container", {}).get("command", [""])
                    found[name] = command[-1], task.get("inputs", {}).get("parameters", {})
        return found

    @property
    def hardware(self) -> Mapping[str, Any]:
        """What the Job manifests of the GPU steps asked for when it was compiled, by stage."""
        _, inputs = self.steps.get("hardware", ("", {}))
        return dict(inputs["compiled"]["runtimeValue"]["constant"]) if inputs else {}


class UserValue(NamedTuple):
    """A parameter's value and where the user wrote it: `parameters.yaml:3` or `--set`."""

    value: Any
    place: str


def load(path: Path) -> Compiled:
    """Read a compiled pipeline."""
    for document in read(path)[:1] if path.exists() else []:
        if document.get("pipelineInfo"):
            return Compiled(path, document.value)
    problem = "not a compiled pipeline (no pipelineInfo)" if path.exists() else "No such file"
    hint = "raft compile --output pipelines/raft.yaml makes one."
    raise ConfigError(f"{path}: {problem}", hint=hint)


def read_parameters(path: Path | None, settings: tuple[str, ...] = ()) -> dict[str, UserValue]:
    """Parameters of a YAML or JSON file, and `name=value` settings, which win."""
    user_values: dict[str, UserValue] = {}
    for document in read(path)[:1] if path else []:
        if not isinstance(document.value, dict):
            hint = "Write one parameter a line, such as `documents: gs://BUCKET/documents`."
            raise ConfigError(f"{path}: holds no mapping of names to values", hint=hint)
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
        ConfigError: lists each parameter that is unknown, missing, or refused by a stage of the
            pipeline, with file and line and what is allowed.
    """
    inputs = pipeline.inputs
    values = pipeline.defaults | {name: entry.value for name, entry in user_values.items()}
    errors = [
        (name, f"{name} is missing: {' '.join(entry.get('description', '').split())}")
        for name, entry in inputs.items()
        if name not in values
    ]
    allowed = f"(allowed: {', '.join(inputs)})"
    for name in user_values:
        if name not in inputs:
            errors.append((name, f"{name}: unknown parameter{meant(name, inputs)} {allowed}"))
    if type(values.get("train_gpus")) is int:
        values["train_gpus"] = str(values["train_gpus"])  # text for Kubeflow's sake
    for stage, sources in pipeline.steps.values():
        wired = {name for name in sources if "componentInputParameter" in sources[name]}
        typed, problems = _validate(stage, {name: values[name] for name in values if name in wired})
        values |= typed
        errors += problems.items()
    if "trials" in inputs:
        if isinstance(values["trials"], str):  # of --set
            with suppress(ValueError):
                values["trials"] = json.loads(values["trials"])
        keys = sorted(pipeline.defaults["trials"][0])
        errors += [("trials", f"trials{text}") for text in _check_trials(values["trials"], keys)]
    if errors:
        places = {name: f"{entry.place}: " for name, entry in user_values.items()}
        lines = dict.fromkeys(places.get(name, "") + problem for name, problem in errors)
        hint = f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs."
        raise ConfigError("\n".join(lines), hint=hint)
    hardware_of_run(values, pipeline.hardware)
    return {name: values[name] for name in user_values}


def _check_trials(trials: Any, keys: list[str]) -> Iterator[str]:
    """What is wrong with the trials of a study; train checks their values."""
    for index, trial in enumerate(trials if isinstance(trials, list) else [trials]):
        if isinstance(trial, dict) and trial.keys() == set(keys):
            yield from (f"[{index}].{text}" for text in _validate("train", trial)[1].values())
        else:
            yield f"[{index}] {trial!r}: not an object with exactly these keys: {', '.join(keys)}"


def _validate(stage: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A stage's typed settings among values, and its problems with them by name; "" for several."""
    config = config_class(stage) if stage in COMMANDS else Settings
    fields = config.model_fields
    settings = {name: value for name, value in values.items() if name in fields}
    # What the steps hand each other has no value yet.
    unset = {name: f"{SCHEME}unset/{name}" for name in fields if fields[name].is_required()}
    typed, problems = {}, {}
    try:
        model = config.model_validate(unset | settings)
        typed = model.model_dump(mode="json", include=set(settings))
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0]) if fault["loc"] else ""
            if name in settings:
                problems[name] = f"{name} {settings[name]!r}{complaint(fault, fields[name])}"
            elif not name:
                problems[name] = f"{stage}: {message(fault)}"
    for name, value in settings.items():
        if isinstance(value, bool) and fields[name].annotation in (int, float):  # 1 for pydantic
            problems[name] = f"{name} {value} (allowed: {allowed_values(fields[name])})"
        elif is_local(config, name, value):
            local = "the cluster cannot read it (allowed: gs://BUCKET/PATH)"
            problems.setdefault(name, f"{name} {value!r}: {local}")
    return typed, problems


def is_local(config: type[Settings], name: str, value: object) -> bool:
    """Whether a setting is a location on this machine, which no pod sees."""
    location = str(value)
    is_location = any(mark in (INPUT, OUTPUT) for mark in config.model_fields[name].metadata)
    if not is_location or not location or location.startswith(SCHEME):
        return False
    return name != "base_model" or location[0] in "./~" or Path(location).exists()
