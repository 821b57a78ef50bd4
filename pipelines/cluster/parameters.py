"""A compiled pipeline's parameters, checked before the cluster sees them.

Against the inputs of the compiled YAML and the ranges of the stages that they reach: a wrong one
would fail a step when the GPU is already there.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from components.core.config import INPUT, SCHEME, complaint, flag, message
from components.core.errors import ConfigError
from pipelines.hardware import hardware_of_run
from pipelines.k8s.located import meant
from pipelines.stages import STAGES, config_class

KINDS = {
    "STRING": "a text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true | false",
    "LIST": "a list, or its JSON",
    "STRUCT": "a mapping, or its JSON",
}


@dataclass(frozen=True)
class Given:
    """A parameter's value and where the user wrote it: `parameters.yaml:3` or `--set`."""

    value: object
    place: str


Origin = tuple[str, str | None]
"""A pipeline parameter; with a key, what each object in its list holds under that key."""

ITEM = re.compile(r"""parseJson\(string_value\)\["(.+)"\]""")


class Reader(NamedTuple):
    """A step that reads a pipeline parameter, or a key of each object in one that is a list."""

    stage: str
    field: str
    key: str | None = None


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline, as far as a submission needs to know it."""

    path: Path
    specification: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.specification["pipelineInfo"]["name"])

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name to definition of every pipeline parameter."""
        definitions = self.specification["root"].get("inputDefinitions", {})
        parameters: Mapping[str, Any] = definitions.get("parameters", {})
        return parameters

    @property
    def steps(self) -> list[str]:
        """Names of the tasks that run a container, in the order of the file."""
        return list(dict.fromkeys(name for name, _, _ in self._tasks(self.specification["root"])))

    def stages(self) -> Iterator[tuple[str, dict[str, "Origin"]]]:
        """Every step that runs a stage, with the pipeline parameter behind each of its settings."""
        executors = self.specification["deploymentSpec"]["executors"]
        for _, component, origins in self._tasks(self.specification["root"]):
            command = executors[component["executorLabel"]].get("container", {}).get("command", [])
            if len(command) == 2 and command[0] == "raft" and command[1] in STAGES:
                fields = config_class(command[1]).model_fields
                # KFP hands a pod more than settings, such as the memory that it asks for.
                yield command[1], {name: origins[name] for name in origins if name in fields}

    def readers(self, parameter: str) -> Iterator["Reader"]:
        """What every stage makes of a pipeline parameter that reaches it unchanged."""
        for stage, origins in self.stages():
            for name, (origin, key) in origins.items():
                if origin == parameter:
                    yield Reader(stage, name, key)

    def _tasks(
        self, parent: Mapping[str, Any], known: Mapping[str, Origin] | None = None
    ) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Origin]]]:
        """Name, component, and pipeline parameter behind each input, of every container task."""
        for name, step in parent["dag"]["tasks"].items():
            component = self.specification["components"][step["componentRef"]["name"]]
            origins = {}
            for key, source in step.get("inputs", {}).get("parameters", {}).items():
                found = source.get("componentInputParameter")
                if found is not None and (known is None or found in known):
                    origin, _ = (found, None) if known is None else known[found]
                    item = ITEM.fullmatch(source.get("parameterExpressionSelector", ""))
                    origins[key] = (origin, item[1] if item else None)
            if "dag" in component:
                loop = step.get("parameterIterator", {})
                items = loop.get("items", {}).get("inputParameter")
                if items in origins:
                    origins[loop["itemInput"]] = (origins[items][0], None)
                yield from self._tasks(component, origins)
            else:
                yield name, component, origins


def load(path: Path) -> Compiled:
    """Read a compiled pipeline.

    Raises:
        ConfigError: no such file, or not a compiled pipeline.
    """
    try:
        specification = next(yaml.safe_load_all(path.read_text(encoding="utf-8")), None)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", hint=f"raft compile --output {path}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    needed = {"pipelineInfo", "root", "components", "deploymentSpec"}
    if not isinstance(specification, dict) or not needed <= specification.keys():
        raise ConfigError(
            f"{path}: not a compiled pipeline (it needs {', '.join(sorted(needed))})",
            hint="raft compile --output pipelines/raft.yaml makes one.",
        )
    return Compiled(path, specification)


def read_parameters(path: Path | None, settings: tuple[str, ...] = ()) -> dict[str, Given]:
    """Parameters of a YAML or JSON file, and `name=value` settings, which win.

    Raises:
        ConfigError: a file that is missing, not a mapping, or names a parameter twice; a setting
            without `=`.
    """
    given = {} if path is None else _read_file(path)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting!r}: no value", hint="Write --set name=value.")
        given[name.strip()] = Given(value, "--set")
    return given


def _read_file(path: Path) -> dict[str, Given]:
    try:
        text = path.read_text(encoding="utf-8")
        # JSON is YAML but for its tabs, which it allows between values only.
        root = yaml.compose(text.replace("\t", " ") if path.suffix == ".json" else text)
        values = yaml.SafeLoader("")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="Check --parameters.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not text in UTF-8", hint="Check --parameters.") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{path}{line}: neither YAML nor JSON ({error.problem})", hint="Fix that line."
        ) from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}: holds no mapping of names to values",
            hint="Write one parameter a line, such as `documents: gs://BUCKET/documents`.",
        )
    given: dict[str, Given] = {}
    for key, value in root.value:
        name, place = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name in given:
            raise ConfigError(
                f"{place}: {name} is given twice (first in {given[name].place})",
                hint="Keep one of the two.",
            )
        try:
            given[name] = Given(values.construct_document(value), place)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{place}: {name}: {error}", hint="Put it in quotes.") from None
    return given


def check_parameters(pipeline: Compiled, given: Mapping[str, Given]) -> dict[str, Any]:
    """The typed values to hand to Kubeflow.

    Raises:
        ConfigError: a parameter is unknown, missing, of another type, or out of the range of a
            stage that it reaches, or a stage takes each but not all of them together; names each
            with file and line and what is allowed.
    """
    faults = []
    values = {}
    for name, entry in given.items():
        try:
            values[name] = _checked(pipeline, name, entry.value)
        except ValueError as error:
            faults.append(f"{entry.place}: {error}")
    for name, definition in pipeline.inputs.items():
        if name not in given and not definition.get("isOptional", False):
            description = " ".join(definition.get("description", "").split())
            faults.append(f"{name} is missing: {description}")
    if not faults:
        faults = list(dict.fromkeys(_disagreements(pipeline, given, values)))
    if faults:
        raise ConfigError(
            "\n".join(faults),
            hint=f"Fix the file or add --set name=value; {pipeline.path} opens with all inputs.",
        )
    return values


def _checked(pipeline: Compiled, name: str, value: object) -> Any:
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
        typed = _typed(kind, value)
    except ValueError:
        hint = "; put it in quotes" if kind == "STRING" else ""
        raise ValueError(f"{name} {value!r}: not {KINDS[kind]}{hint}") from None
    _check_range(pipeline, name, typed)
    return typed


def _typed(kind: str, value: Any) -> Any:
    """A value, perhaps given as text, as the type that the pipeline declares."""
    if kind == "STRING":
        if isinstance(value, str):
            return value
    elif kind == "BOOLEAN":
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif kind in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if kind == "NUMBER_DOUBLE" and math.isfinite(number):
                return number
            if kind == "NUMBER_INTEGER" and number.is_integer():
                return int(value)
    else:
        expected = list if kind == "LIST" else dict
        parsed = json.loads(value) if isinstance(value, str) else value
        if isinstance(parsed, expected):
            return parsed
    raise ValueError(value)


def _check_range(pipeline: Compiled, name: str, value: object) -> None:
    """Refuse what a stage would refuse, by the same config class.

    Raises:
        ValueError: names the stage and what it allows.
    """
    try:
        hardware_of_run({name: value})
    except ConfigError as error:
        raise ValueError(error) from None
    readers = list(pipeline.readers(name))
    keys = {reader.key for reader in readers if reader.key is not None}
    items = value if keys and isinstance(value, list) else []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or item.keys() != keys:
            raise ValueError(
                f"{name}[{number}] {item!r}: not an object with exactly these keys: "
                f"{', '.join(sorted(keys))}"
            )
    for reader in readers:
        if reader.key is None:
            _ask(reader, name, value)
        for number, item in enumerate(items if reader.key else []):
            _ask(reader, f"{name}[{number}].{reader.key}", item[reader.key])


def _ask(reader: Reader, place: str, value: object) -> None:
    """Let a stage's config class look at one of its fields.

    Raises:
        ValueError: the stage would refuse the value.
    """
    config = config_class(reader.stage)
    if INPUT in config.model_fields[reader.field].metadata:
        _check_reachable(reader, place, value)
    try:
        config.model_validate({reader.field: value})
    except ValidationError as error:
        # The other fields of the stage are missing here, and not at fault.
        for fault in error.errors():
            if fault["loc"][:1] == (reader.field,) and fault["type"] != "missing":
                problem = complaint(fault, config.model_fields[reader.field])
                raise ValueError(f"{place} {value!r}: {reader.stage} refuses it{problem}") from None


def _check_reachable(reader: Reader, place: str, value: object) -> None:
    """Refuse a path of this machine: a pod has none of its files."""
    name = str(value)
    on_hub = reader.field == "base_model" and not name.startswith((".", "/", "~"))
    if name and not name.startswith(SCHEME) and not on_hub:
        raise ValueError(
            f"{place} {value!r}: {reader.stage} runs in a cluster, which cannot read it "
            "(allowed: gs://BUCKET/PATH)"
        )


def _disagreements(
    pipeline: Compiled, given: Mapping[str, Given], typed: Mapping[str, Any]
) -> Iterator[str]:
    """What a stage takes each of, but not together; it would say so when it starts."""
    values = {
        name: definition["defaultValue"]
        for name, definition in pipeline.inputs.items()
        if "defaultValue" in definition
    } | dict(typed)
    try:
        hardware_of_run(values)
    except ConfigError as error:
        yield str(error)
    for stage, origins in pipeline.stages():
        config = config_class(stage)
        # What the steps hand each other has no value yet.
        unset = {
            name: f"{SCHEME}unset/{name}"
            for name, field in config.model_fields.items()
            if field.is_required()
        }
        known = {name: origin for name, origin in origins.items() if origin[0] in values}
        lists = [values[parameter] for parameter, key in known.values() if key is not None]
        for turn in range(len(lists[0]) if lists else 1):
            settings = {
                name: values[parameter] if key is None else values[parameter][turn][key]
                for name, (parameter, key) in known.items()
            }
            try:
                config.model_validate(unset | settings)
            except ValidationError as error:
                problem = message(error.errors()[0])
                named = [name for name in known if re.search(rf"{flag(name)}(?![\w-])", problem)]
                parameters = [known[name][0] for name in named or known]
                places = [given[name].place for name in parameters if name in given]
                said = ", ".join(f"{name} {settings[name]!r}" for name in named)
                yield (
                    f"{', '.join(dict.fromkeys(places)) or pipeline.path}: "
                    f"{said or stage}: {stage} refuses these together: {problem}"
                )
