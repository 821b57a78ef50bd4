"""Checks a compiled pipeline as the Kubeflow backend, and then the cluster, would.

First its shape, against the protobuf messages that the backend reads it into; then what the
messages cannot say: that names lead somewhere, types agree, every required input is given, steps
wait for what they read, placeholders can be filled, and what a step asks of Kubernetes is something
that the Job manifests could ask for too (the same classes check both).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from pipelines.located import Document, Location, Part, explain
from pipelines.manifests import (
    GPU,
    AbsolutePath,
    Annotations,
    Bytes,
    Count,
    Cpu,
    EmptyDir,
    Image,
    Labels,
    Name,
    PodSecurity,
    Selector,
    Toleration,
    VariableName,
    amount,
)

EXECUTORS = ("deploymentSpec", "executors")
PLATFORM = ("platforms", "kubernetes", "deploymentSpec", "executors")

PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}

INPUT = re.compile(
    r"\$\.inputs\.(?P<kind>parameters|artifacts)\['(?P<name>[^']+)'\]"
    r"(\.(path|uri|name|value)|\.metadata(\['[^']+'\])?|\.properties\['[^']+'\])?"
)
OUTPUT = re.compile(
    r"\$\.outputs\.(?P<kind>parameters|artifacts)\['(?P<name>[^']+)'\]"
    r"(\.(path|uri|name|output_file)|\.metadata(\['[^']+'\])?|\.properties\['[^']+'\])?"
)
FIXED = re.compile(
    r"\$(\.(json_escape\[\d\]|outputs\.output_(metadata_uri|file)|pipeline_root|"
    r"pipeline_job_(name|uuid|resource_name|create_time_utc|schedule_time_utc)|"
    r"pipeline_task_(name|uuid)))?"
)


# What the platform half of a compiled pipeline may ask for, in the terms of the Job manifests.


class Settings(Part):
    """Fields that are not declared are left to the check of the shape."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class NodeSelector(Settings):
    labels: Selector = Field(default_factory=dict)


class PodLabels(Settings):
    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)


class EmptyDirMount(EmptyDir):
    volume_name: Name
    mount_path: AbsolutePath


class KeyToEnv(Settings):
    secret_key: str
    env_var: VariableName


class SecretAsEnv(Settings):
    secret_name: Name | None = None
    key_to_env: Annotated[list[KeyToEnv], Field(min_length=1)]


class PullSecrets(Settings):
    secret_name: Name | None = None


class PlatformToleration(Toleration, Settings):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class PlatformSettings(Settings):
    node_selector: NodeSelector | None = None
    tolerations: list[PlatformToleration] = Field(default_factory=list)
    pod_metadata: PodLabels | None = None
    empty_dir_mounts: list[EmptyDirMount] = Field(default_factory=list)
    secret_as_env: list[SecretAsEnv] = Field(default_factory=list)
    security_context: PodSecurity | None = None
    image_pull_secret: list[PullSecrets] = Field(default_factory=list)
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None


class Accelerator(Settings):
    type: Literal[GPU] | None = None  # type: ignore[valid-type]
    resource_type: Literal[GPU] | None = None  # type: ignore[valid-type]
    count: Count | None = None
    resource_count: Count | None = None


class ContainerResources(Settings):
    resource_cpu_limit: Cpu | None = None
    resource_cpu_request: Cpu | None = None
    resource_memory_limit: Bytes | None = None
    resource_memory_request: Bytes | None = None
    accelerator: Accelerator | None = None


class ExecutorVariable(Settings):
    name: VariableName
    value: str = ""


class ExecutorContainer(Settings):
    image: Image
    command: Annotated[list[str], Field(min_length=1)]
    env: list[ExecutorVariable] = Field(default_factory=list)
    resources: ContainerResources | None = None


def is_pipeline(document: Document) -> bool:
    """Whether a document is half of a compiled pipeline."""
    value = document.value
    return isinstance(value, dict) and bool(
        {"pipelineInfo", "deploymentSpec", "root", "platforms"} & set(value)
    )


def complaints(documents: list[Document]) -> list[str]:
    """Everything that the backend or the cluster would refuse, as `file:line: field: problem`."""
    if len(documents) > 2 or not all(map(is_pipeline, documents)):
        return [
            f"{documents[-1].place()}: a compiled pipeline is one document, and one with its "
            "platforms"
        ]
    found = [problem for document in documents for problem in _shape(document)]
    if found:
        return found
    specification = next((doc for doc in documents if "platforms" not in doc.value), None)
    if specification is None:
        return [f"{documents[0].place()}: platforms without a pipeline"]
    found += _pipeline(specification)
    for document in documents:
        if document is not specification:
            found += _platforms(document, specification)
    return found


# The shape: protobuf messages, walked beside the nodes so that a complaint has a line.


def _shape(document: Document) -> Iterator[str]:
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as pipeline_spec

    outer, inner = pipeline_spec.PipelineSpec, pipeline_spec.PipelineDeploymentConfig
    places: list[Location] = [("deploymentSpec",)] if "deploymentSpec" in document.value else []
    if "platforms" in document.value:
        outer, inner = pipeline_spec.PlatformSpec, kubernetes.KubernetesExecutorConfig
        executors = document.get(*PLATFORM)
        places = [(*PLATFORM, name) for name in (executors if isinstance(executors, dict) else ())]
    found = list(_read(document, outer, ()))
    if not found:  # what lies deeper is only text to the outer message
        found = [problem for at in places for problem in _read(document, inner, at)]
    yield from found


def _read(document: Document, message: Any, at: Location) -> Iterator[str]:
    """Read a part as a protobuf message; what protobuf itself finds has only the part's line."""
    from google.protobuf import json_format

    found = list(_message(document, document.get(*at), message.DESCRIPTOR, at))
    yield from found
    if not found:
        try:
            json_format.ParseDict(document.get(*at), message())
        except json_format.ParseError as error:
            yield f"{document.place(*at)}: {error}"


def _message(document: Document, value: Any, descriptor: Any, at: Location) -> Iterator[str]:
    if descriptor.full_name.startswith("google.protobuf."):
        return  # Struct and Value: anything goes
    if not isinstance(value, dict):
        yield _wrong(document, at, value, "a mapping")
        return
    fields = {field.json_name: field for field in descriptor.fields}
    for key, entry in value.items():
        field = fields.get(key) or descriptor.fields_by_name.get(key)
        if field is None:
            allowed = ", ".join(sorted(fields))
            yield (
                f"{document.place(*at, key)}: {_dotted((*at, key))}: no such field "
                f"(allowed: {allowed})"
            )
        else:
            yield from _field(document, entry, field, (*at, key))


def _field(document: Document, value: Any, field: Any, at: Location) -> Iterator[str]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        if not isinstance(value, dict):
            yield _wrong(document, at, value, "a mapping")
            return
        entries = [((*at, key), entry) for key, entry in value.items()]
        field = message.fields_by_name["value"]
    elif field.is_repeated:
        if not isinstance(value, list):
            yield _wrong(document, at, value, "a list")
            return
        entries = [((*at, index), entry) for index, entry in enumerate(value)]
    else:
        entries = [(at, value)]
    for inner, entry in entries:
        if field.message_type is not None:
            yield from _message(document, entry, field.message_type, inner)
        else:
            yield from _scalar(document, entry, field, inner)


def _scalar(document: Document, value: Any, field: Any, at: Location) -> Iterator[str]:
    if field.enum_type is not None:
        names = [entry.name for entry in field.enum_type.values]
        if value not in names:
            yield _wrong(document, at, value, ", ".join(names))
        return
    kinds: Mapping[int, tuple[str, bool]] = {
        field.CPPTYPE_STRING: ("text", isinstance(value, str)),
        field.CPPTYPE_BOOL: ("true or false", isinstance(value, bool)),
    }
    number = isinstance(value, int | float) and not isinstance(value, bool)
    digits = isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) is not None
    allowed, right = kinds.get(field.cpp_type, ("a number", number or digits))
    if not right:
        yield _wrong(document, at, value, allowed)


def _wrong(document: Document, at: Location, value: Any, allowed: str) -> str:
    shown = f" {value!r}" if isinstance(value, str | int | float) or value is None else ""
    return f"{document.place(*at)}: {_dotted(at)}{shown}: wrong type or value (allowed: {allowed})"


def _dotted(at: Location) -> str:
    return ".".join(map(str, at)) or "the file"


# What the messages cannot say.


def _pipeline(document: Document) -> Iterator[str]:
    version = document.get("schemaVersion")
    if version not in ("2.0.0", "2.1.0"):
        yield _wrong(document, ("schemaVersion",), version, "2.0.0, 2.1.0")
    name = document.get("pipelineInfo", "name")
    if re.fullmatch(r"[a-z0-9][-a-z0-9]{0,127}", str(name)) is None:
        allowed = "up to 128 of a-z, 0-9 and -, no - first"
        yield _wrong(document, ("pipelineInfo", "name"), name, allowed)
    if document.get("root", "dag", "tasks") is None:
        yield f"{document.place('root')}: root: has no tasks, so there is nothing to run"
        return
    components = document.get("components") or {}
    for component in components:
        yield from _component(document, component)
    yield from _definitions(document, ("root",))
    for executor in document.get(*EXECUTORS) or {}:
        yield from _executor(document, executor)
    for at in (("root",), *(("components", component) for component in components)):
        if document.get(*at, "dag") is not None:
            yield from _dag(document, at)


def _component(document: Document, name: str) -> Iterator[str]:
    at = ("components", name)
    yield from _definitions(document, at)
    label = document.get(*at, "executorLabel")
    known = document.get(*EXECUTORS) or {}
    if label is None and document.get(*at, "dag") is None:
        yield f"{document.place(*at)}: {_dotted(at)}: has neither an executorLabel nor a dag"
    if label is not None and label not in known:
        yield _unknown(document, (*at, "executorLabel"), label, "executor", known)


def _definitions(document: Document, at: Location) -> Iterator[str]:
    """Names, and defaults of the right type."""
    for kind in ("inputDefinitions", "outputDefinitions"):
        parameters = document.get(*at, kind, "parameters") or {}
        for name, parameter in parameters.items():
            here = (*at, kind, "parameters", name)
            type_ = parameter.get("parameterType", "PARAMETER_TYPE_ENUM_UNSPECIFIED")
            if type_ == "PARAMETER_TYPE_ENUM_UNSPECIFIED":
                yield _wrong(document, here, type_, ", ".join(PYTHON_TYPES))
            elif "defaultValue" in parameter:
                yield from _constant(
                    document, (*here, "defaultValue"), parameter["defaultValue"], type_
                )
        for name in (*parameters, *(document.get(*at, kind, "artifacts") or {})):
            if re.fullmatch(r"[A-Za-z_][-\w]*", name) is None:
                yield (
                    f"{document.place(*at, kind)}: {_dotted((*at, kind))} {name!r}: not a name "
                    "(allowed: letters, digits, _ and -, no digit first)"
                )


def _constant(document: Document, at: Location, value: Any, type_: str) -> Iterator[str]:
    right = isinstance(value, PYTHON_TYPES.get(type_, (object,)))
    if isinstance(value, bool) and type_ != "BOOLEAN":
        right = False
    if type_ == "NUMBER_INTEGER" and isinstance(value, float) and not value.is_integer():
        right = False
    if not right:
        yield _wrong(document, at, value, type_)


def _executor(document: Document, name: str) -> Iterator[str]:
    at: Location = (*EXECUTORS, name)
    container = document.get(*at, "container")
    users = [
        component
        for component, value in (document.get("components") or {}).items()
        if value.get("executorLabel") == name
    ]
    if not users:
        yield f"{document.place(*at)}: {_dotted(at)}: no component runs it"
    if container is None:
        if document.get(*at, "importer") is None:
            yield f"{document.place(*at)}: {_dotted(at)}: has no container"
        return
    at = (*at, "container")
    yield from _modelled(document, at, _constants(container), ExecutorContainer)
    yield from _resources(document, (*at, "resources"))
    for component in users:
        for inner, text in _texts(container, at):
            yield from _placeholders(document, inner, text, component)


def _constants(value: Any) -> Any:
    """A container without the values that are only known when the pipeline runs."""
    if isinstance(value, dict):
        return {
            key: _constants(entry)
            for key, entry in value.items()
            if not (key != "command" and isinstance(entry, str) and "{{" in entry)
        }
    return value


def _modelled(document: Document, at: Location, value: Any, model: type[Part]) -> Iterator[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        for found in error.errors():
            yield explain(document, model, found, at)


def _resources(document: Document, at: Location) -> Iterator[str]:
    """Each amount stands there twice, as text and as a number; requests stay below limits."""
    resources = document.get(*at) or {}
    for name in ("cpu", "memory"):
        texts = {}
        for end in ("Request", "Limit"):
            text = resources.get(f"resource{name.title()}{end}")
            try:
                texts[end] = amount(str(text))
            except (ArithmeticError, KeyError):
                continue  # absent, a placeholder, or no quantity, which the model says
            number = resources.get(f"{name}{end}")
            unit = 1 if name == "cpu" else 10**9
            if number is not None and abs(float(texts[end]) / unit - number) > 1e-6:
                yield (
                    f"{document.place(*at, f'{name}{end}')}: {_dotted(at)}.{name}{end} {number}: "
                    f"not the {text} of resource{name.title()}{end}"
                )
        if texts.get("Request", 0) > texts.get("Limit", float("inf")):
            yield (
                f"{document.place(*at, f'resource{name.title()}Request')}: {_dotted(at)}: requests "
                f"more {name} than the limit"
            )
    accelerator = resources.get("accelerator") or {}
    counts = {accelerator[key] for key in ("count", "resourceCount") if key in accelerator}
    if len(counts) > 1:
        yield f"{document.place(*at, 'accelerator')}: {_dotted(at)}.accelerator: two counts"
    if accelerator and not counts:
        yield f"{document.place(*at, 'accelerator')}: {_dotted(at)}.accelerator: has no count"


def _texts(value: Any, at: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(entry, (*at, key))


def _placeholders(document: Document, at: Location, text: str, component: str) -> Iterator[str]:
    for found in re.findall(r"\{\{.*?(?:\}\}|$)", text):
        inside = found[2:-2] if found.endswith("}}") else ""
        match = INPUT.fullmatch(inside) or OUTPUT.fullmatch(inside)
        if match:
            side = "inputDefinitions" if INPUT.fullmatch(inside) else "outputDefinitions"
            known = document.get("components", component, side, match["kind"]) or {}
            if match["name"] not in known:
                what = f"{side[: -len('Definitions')]} of {component} among its {match['kind']}"
                yield _unknown(document, at, match["name"], what, known)
        elif FIXED.fullmatch(inside) is None:
            yield (
                f"{document.place(*at)}: {_dotted(at)}: the placeholder {found} is unknown "
                "(allowed: {{$.inputs.parameters['NAME']}}, {{$.inputs.artifacts['NAME'].path}}, "
                "{{$.outputs.artifacts['NAME'].path}} and the like)"
            )


def _unknown(document: Document, at: Location, name: Any, what: str, known: Any) -> str:
    return (
        f"{document.place(*at)}: {_dotted(at)}: {name!r} is no {what} "
        f"(allowed: {', '.join(sorted(known)) or 'none'})"
    )


# Tasks: where their inputs come from, and what they wait for.


def _dag(document: Document, at: Location) -> Iterator[str]:
    tasks = document.get(*at, "dag", "tasks") or {}
    needs = {}
    for name, task in tasks.items():
        here = (*at, "dag", "tasks", name)
        if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is None:
            yield f"{document.place(*here)}: {name!r}: not a task's name (allowed: a-z, 0-9, -)"
        waits = task.get("dependentTasks") or []
        for index, other in enumerate(waits):
            if other not in tasks:
                yield _unknown(document, (*here, "dependentTasks", index), other, "task", tasks)
        needs[name] = set(waits)
        component = str((task.get("componentRef") or {}).get("name"))
        known = document.get("components") or {}
        if component not in known:
            yield _unknown(document, (*here, "componentRef", "name"), component, "component", known)
            continue
        yield from _inputs(document, here, at, component)
        for kind in ("parameters", "artifacts"):
            for name_, source in ((task.get("inputs") or {}).get(kind) or {}).items():
                for producer in _producers(source):
                    if producer in tasks and producer not in waits:
                        yield (
                            f"{document.place(*here, 'inputs', kind, name_)}: {name} reads from "
                            f"{producer}, but dependentTasks does not name it"
                        )
                    needs[name].add(producer)
    cycle = _cycle(needs)
    if cycle:
        path = " -> ".join(cycle)
        yield f"{document.place(*at, 'dag', 'tasks', cycle[0])}: tasks wait in a circle: {path}"


def _producers(source: Any) -> Iterator[str]:
    for kind in ("taskOutputArtifact", "taskOutputParameter"):
        if kind in source:
            yield source[kind].get("producerTask")


def _cycle(needs: Mapping[str, set[str]]) -> list[str]:
    """Tasks that wait for each other in a circle, the first of them repeated at the end."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(needs.get(name, ())):
            found = visit(other, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in needs)), [])


def _inputs(document: Document, task: Location, scope: Location, component: str) -> Iterator[str]:
    supplied = {
        document.get(*task, iterator, "itemInput")
        for iterator in ("parameterIterator", "artifactIterator")
    }
    for kind in ("parameters", "artifacts"):
        wanted = document.get("components", component, "inputDefinitions", kind) or {}
        given = document.get(*task, "inputs", kind) or {}
        for name, definition in wanted.items():
            optional = definition.get("isOptional") or "defaultValue" in definition
            status = definition.get("parameterType") == "TASK_FINAL_STATUS"
            if not (name in given or optional or status or name in supplied):
                yield (
                    f"{document.place(*task, 'inputs', kind)}: {_dotted(task)}: the input {name} "
                    f"of {component} is required, but not given"
                )
        for name, source in given.items():
            at = (*task, "inputs", kind, name)
            if name in wanted or name.startswith("pipelinechannel--"):
                # The compiler adds inputs of the latter kind for the placeholders in a constant.
                yield from _source(document, at, source, wanted.get(name), scope)
            else:
                yield _unknown(document, at, name, f"input of {component}", wanted)
            for inner, text in _texts(source, at):
                for found in INPUT.finditer(text):
                    if found["name"] not in document.get(*task, "inputs", found["kind"]):
                        yield _unknown(document, inner, found["name"], "input of the task", given)


def _source(
    document: Document, at: Location, source: Any, wanted: Any, scope: Location
) -> Iterator[str]:
    """Whether an input's source exists and has the input's type."""
    kind = "parameters" if at[-2] == "parameters" else "artifacts"
    if "runtimeValue" in source:
        constant = (source["runtimeValue"] or {}).get("constant")
        inner = (*at, "runtimeValue", "constant")
        texts = [text for _, text in _texts(constant, ())]
        if wanted and not any("{{$" in text for text in texts):
            yield from _constant(document, inner, constant, wanted.get("parameterType", ""))
        return
    for key in ("componentInputParameter", "componentInputArtifact"):
        if key in source:
            known = document.get(*scope, "inputDefinitions", kind) or {}
            if source[key] not in known:
                yield _unknown(document, (*at, key), source[key], "input", known)
            else:
                yield from _agree(document, (*at, key), known[source[key]], wanted, source)
            return
    for key, output in (
        ("taskOutputParameter", "outputParameterKey"),
        ("taskOutputArtifact", "outputArtifactKey"),
    ):
        if key in source:
            tasks = document.get(*scope, "dag", "tasks") or {}
            producer = source[key].get("producerTask")
            if producer not in tasks:
                yield _unknown(document, (*at, key, "producerTask"), producer, "task", tasks)
                return
            component = document.get(*scope, "dag", "tasks", producer, "componentRef", "name")
            known = document.get("components", component, "outputDefinitions", kind) or {}
            name = source[key].get(output)
            if name not in known:
                yield _unknown(document, (*at, key, output), name, f"output of {producer}", known)
            else:
                yield from _agree(document, (*at, key, output), known[name], wanted, source)
            return
    if "taskFinalStatus" not in source:
        yield f"{document.place(*at)}: {_dotted(at)}: names no source"


def _agree(document: Document, at: Location, found: Any, wanted: Any, source: Any) -> Iterator[str]:
    """A parameter's or artifact's type at its source and at its end."""
    if wanted is None or "parameterExpressionSelector" in source:
        return  # an input of the compiler's own, or a part of a value: nobody declares a type
    if "artifactType" in wanted:
        types = [
            (definition.get("artifactType") or {}).get("schemaTitle")
            for definition in (found, wanted)
        ]
        right = types[0] == types[1] or "system.Artifact" in types
    else:
        types = [definition.get("parameterType") for definition in (found, wanted)]
        right = types[0] == types[1] or types == ["NUMBER_INTEGER", "NUMBER_DOUBLE"]
    if not right:
        yield (f"{document.place(*at)}: {_dotted(at)}: is {types[0]}, where {types[1]} is wanted")


def _platforms(document: Document, specification: Document) -> Iterator[str]:
    known = specification.get(*EXECUTORS) or {}
    for platform in document.get("platforms") or {}:
        if platform != "kubernetes":
            yield _wrong(document, ("platforms", platform), platform, "kubernetes")
    for name, settings in (document.get(*PLATFORM) or {}).items():
        at = (*PLATFORM, name)
        if name not in known:
            yield _unknown(document, at, name, "executor", known)
            continue
        yield from _modelled(document, at, settings, PlatformSettings)
        seen: dict[str, int] = {}
        for index, mount in enumerate(settings.get("emptyDirMounts") or ()):
            path = mount.get("mountPath")
            if path in seen:
                here = (*at, "emptyDirMounts", index, "mountPath")
                yield f"{document.place(*here)}: {_dotted(here)}: {path} is mounted twice"
            seen[path] = index
