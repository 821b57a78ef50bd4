"""The parameters of a compiled pipeline's run, checked before the cluster sees them.

By the config classes of the pipeline's stages: a wrong one would fail a step when the GPU is
already there. A parameter has the name of the setting that it sets.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import ValidationError

from components.core.config import Settings, describe_error, message
from components.core.endpoint import LOOPBACK
from components.core.errors import ConfigError
from components.core.locations import INPUT, OUTPUT, SCHEME
from components.core.records.results import adapter_kind
from components.eval.arms import ARMS, DEFAULT_ARMS
from components.generate.config import GenerateConfig
from pipelines.k8s.located import meant, read
from pipelines.overrides import check_hardware
from pipelines.stages import config_class
from pipelines.trials import FIELDS, completed, settings_of

CHANNEL = "pipelinechannel--"
"""What kfp puts before the name of a parameter in a nested graph."""
HANDED = ("dataset", "adapter")
"""What eval is handed by other steps, though it is no required setting."""


class Compiled(NamedTuple):
    """What is read of a compiled pipeline."""

    path: Path
    inputs: Mapping[str, Any]
    """Name to definition of every pipeline parameter."""
    steps: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Name to command (`train` of `raft train`) and inputs of every step, in loops too."""

    volumes: Sequence[tuple[str, str, str]]
    """Step, place and claim of every volume that is mounted."""
    at_once: int
    """How many trials of a study run at once; 0 for all."""

    @property
    def defaults(self) -> dict[str, Any]:
        """Name to default of every pipeline parameter that has one."""
        inputs = self.inputs.items()
        return {name: entry["defaultValue"] for name, entry in inputs if "defaultValue" in entry}

    @property
    def mounted(self) -> list[str]:
        """Where pods see volumes."""
        return [place for _, place, _ in self.volumes]

    @property
    def hardware(self) -> Mapping[str, Any]:
        """What the Job manifests of the GPU steps asked for when it was compiled, by stage."""
        _, inputs = self.steps["hardware"]
        return dict(inputs["compiled"]["runtimeValue"]["constant"])


def load(path: Path) -> Compiled:
    """Read a compiled pipeline."""
    documents = read(path)
    if not documents or not documents[0].get("pipelineInfo"):
        hint = "raft compile --output pipelines/raft.yaml makes one."
        raise ConfigError(f"{path}: not a compiled pipeline (no pipelineInfo)", hint=hint)
    document = documents[0]
    root, components = document.get("root"), document.get("components")
    executors = document.get("deploymentSpec", "executors")
    steps: dict[str, Any] = {}
    at_once = 0
    for part in (root, *components.values()):
        for name, task in part.get("dag", {}).get("tasks", {}).items():
            at_once = at_once or task.get("iteratorPolicy", {}).get("parallelismLimit", 0)
            if label := components[task["componentRef"]["name"]].get("executorLabel"):
                command = executors[label]["container"]["command"][-1]
                steps[name] = command, task.get("inputs", {}).get("parameters", {})
    place = ("platforms", "kubernetes", "deploymentSpec", "executors")
    volumes = sorted(
        (name.removeprefix("exec-"), mount["mountPath"], mount["constant"])
        for platform in documents[1:]
        for name, pod in platform.get(*place).items()
        for mount in pod.get("pvcMount", [])
    )
    return Compiled(path, root["inputDefinitions"]["parameters"], steps, volumes, at_once)


def read_parameters(
    path: Path | None, settings: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters of a YAML or JSON file, `name=value` settings, which win, and each one's place."""
    parameters: dict[str, Any] = {}
    places: dict[str, str] = {}
    for document in read(path)[:1] if path else []:
        if not isinstance(document.value, dict):
            hint = "Write one parameter a line, such as `documents: gs://BUCKET/documents`."
            raise ConfigError(f"{path}: holds no mapping of names to values", hint=hint)
        parameters = {str(name): value for name, value in document.value.items()}
        places = {name: document.place(name) for name in parameters}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: no value", hint="Write --set name=value.")
        parameters[name], places[name] = value, "--set"
    return parameters, places


def check_parameters(
    pipeline: Compiled, parameters: Mapping[str, Any], places: Mapping[str, str]
) -> dict[str, Any]:
    """The typed values to hand to Kubeflow.

    Raises:
        ConfigError: lists each parameter that is unknown, missing, or refused by a stage of the
            pipeline, with file and line and what is allowed.
    """
    inputs = pipeline.inputs
    values = pipeline.defaults | dict(parameters)
    problems = {name: f"{name} is missing" for name in inputs if name not in values}
    for name in parameters:
        if name not in inputs:
            allowed = f"{meant(name, inputs)} (allowed: {', '.join(inputs)})"
            problems[name] = f"{name}: unknown parameter{allowed}"
    for name in ("train_gpus", "teacher_gpus"):
        if type(values.get(name)) is int:
            values[name] = str(values[name])  # text for Kubeflow's sake
    for stage, sources in pipeline.steps.values():
        # By name: a trial's tested distractors are no run's distractors.
        settings = {
            name: values[name]
            for name, source in sources.items()
            if name in values
            and source.get("componentInputParameter", "").removeprefix(CHANNEL) == name
        }
        typed, wrong = _validate(stage, settings, pipeline.mounted)
        values |= typed
        problems |= wrong
    if "trials" in inputs:
        with suppress(TypeError, ValueError):
            values["trials"] = json.loads(values["trials"])  # of --set
        if faults := "; ".join(_trial_faults(values["trials"], pipeline.mounted)):
            problems["trials"] = faults
        else:
            values["trials"] = [completed(trial) for trial in values["trials"]]
    elif "arms" not in problems and (problem := arms_problem(values, values["arms"])):
        problems["arms"] = f"arms: {problem}"
    if problems:
        prefixes = {name: f"{place}: " for name, place in places.items()}
        lines = [prefixes.get(name, "") + problem for name, problem in problems.items()]
        hint = f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs."
        raise ConfigError("\n".join(lines), hint=hint)
    check_hardware(values, pipeline.hardware)
    return {name: values[name] for name in parameters}


def check_teacher(values: Mapping[str, Any]) -> None:
    """Refuse a teacher that no pod reaches.

    Raises:
        ConfigError: its address is that of the machine that asks.
    """
    endpoint = str(values.get("teacher_endpoint", ""))
    if (host := urlsplit(endpoint).hostname) in LOOPBACK:
        raise ConfigError(
            f"teacher_endpoint {endpoint}: in a pod, {host} is the pod itself",
            hint="Give an address that pods can reach, such as that of a Service.",
        )


def dataset_notes(pipeline: Compiled, values: Mapping[str, Any]) -> list[str]:
    """What the checked parameters say about the rows that the run will make."""
    settings = {**pipeline.defaults, **values, "output": f"{SCHEME}unset/output"}
    fields = GenerateConfig.model_fields
    known = {name: value for name, value in settings.items() if name in fields}
    return GenerateConfig.model_validate(known).notes()


def arms_problem(training: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Which of a run's arms needs another adapter than the run trains; "" if none does.

    Args:
        training: settings of train.
        arms: that eval is to compare; its default means those that fit the adapter.
    """
    kind = adapter_kind(training)
    if tuple(arms) == DEFAULT_ARMS:
        return ""
    fitting = [name for name, arm in ARMS.items() if arm.adapter in (None, kind)]
    problems = (
        f"{name} needs an adapter trained as {ARMS[name].adapter}, and target makes this one "
        f"{kind} (allowed: {', '.join(fitting)})"
        for name in arms
        if name not in fitting
    )
    return next(problems, "")


def _trial_faults(trials: object, mounted: Sequence[str]) -> Iterator[str]:
    """What is wrong with the trials of a study."""
    for index, trial in enumerate(trials if isinstance(trials, list) else [trials]):
        place = f"trials[{index}]"
        if not isinstance(trial, dict):
            yield f"{place} {trial!r}: not an object with fields such as base_model and rank"
            continue
        if "base_model" not in trial:
            yield f"{place}: base_model is missing"
        for name in trial:
            if name not in FIELDS:
                allowed = f"{meant(name, FIELDS)} (allowed: {', '.join(FIELDS)})"
                yield f"{place}.{name}: unknown field{allowed}"
        for stage in ("train", "eval"):
            names = {setting: name for name, (owner, setting) in FIELDS.items() if owner == stage}
            _, problems = _validate(stage, settings_of(trial, stage), mounted)
            for setting, problem in problems.items():
                yield f"{place}.{problem.replace(setting, names.get(setting, setting), 1)}"
        arms = trial.get("arms", DEFAULT_ARMS)
        if set(arms) <= ARMS.keys() and (problem := arms_problem(trial, arms)):
            yield f"{place}.arms: {problem}"


def _validate(
    stage: str, settings: Mapping[str, Any], mounted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of a stage as they are typed, and its problems with them by name or stage."""
    config = config_class(stage)
    fields = config.model_fields
    # What the steps hand each other has no value yet.
    handed = (name for name in fields if fields[name].is_required() or name in HANDED)
    unset = {name: f"{SCHEME}unset/{name}" for name in handed if name not in settings}
    problems = {
        name: f"{name} {value!r}: the cluster cannot read it (allowed: gs://BUCKET/PATH)"
        for name, value in settings.items()
        if is_local(config, name, value, mounted)
    }
    try:
        model = config.model_validate(unset | dict(settings))
        return model.model_dump(mode="json", include=set(settings)), problems
    except ValidationError as error:
        for fault in error.errors():
            if fault["loc"]:
                name = str(fault["loc"][0])
                if name not in settings:  # a choice that is missing, and named as such
                    continue
                problems[name] = f"{name} {settings[name]!r}{describe_error(fault, fields[name])}"
            else:
                problems[stage] = f"{stage}: {message(fault)}"
    return {}, problems


def is_local(config: type[Settings], name: str, value: object, mounted: Iterable[str] = ()) -> bool:
    """Whether a setting is a location on this machine, which no pod sees.

    Args:
        mounted: where pods mount volumes.
    """
    location = str(value)
    marks = config.model_fields[name].metadata
    is_location = name == "state" or any(mark in (INPUT, OUTPUT) for mark in marks)
    if not is_location or not location or location.startswith(SCHEME):
        return False
    if any(Path(location).is_relative_to(place) for place in mounted):
        return False
    return name != "base_model" or location[0] in "./~" or Path(location).exists()
