"""Checks a compiled pipeline as the Kubeflow backend, and then the cluster, would.

First its shape (shape.py), then what protobuf messages cannot say: that the steps fit together
(wiring.py), that placeholders can be filled, and that what a step asks of Kubernetes is something
that the Job manifests could ask for too (the same classes check both).
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from pipelines.k8s.job import EmptyDir, PodSecurity, Toleration
from pipelines.k8s.located import Document, Location, Part, explain
from pipelines.k8s.values import (
    GPU,
    AbsolutePath,
    Annotations,
    Bytes,
    Count,
    Cpu,
    Image,
    Labels,
    Name,
    Selector,
    VariableName,
    amount,
)
from pipelines.specification.shape import PLATFORM, dotted, shape, unknown, wrong
from pipelines.specification.wiring import INPUT, PYTHON_TYPES, constant_of, dag, texts_in

EXECUTORS = ("deploymentSpec", "executors")

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
    found = [problem for document in documents for problem in shape(document)]
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


def _pipeline(document: Document) -> Iterator[str]:
    version = document.get("schemaVersion")
    if version not in ("2.0.0", "2.1.0"):
        yield wrong(document, ("schemaVersion",), version, "2.0.0, 2.1.0")
    name = document.get("pipelineInfo", "name")
    if re.fullmatch(r"[a-z0-9][-a-z0-9]{0,127}", str(name)) is None:
        allowed = "up to 128 of a-z, 0-9 and -, no - first"
        yield wrong(document, ("pipelineInfo", "name"), name, allowed)
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
            yield from dag(document, at)


def _component(document: Document, name: str) -> Iterator[str]:
    at = ("components", name)
    yield from _definitions(document, at)
    label = document.get(*at, "executorLabel")
    known = document.get(*EXECUTORS) or {}
    if label is None and document.get(*at, "dag") is None:
        yield f"{document.place(*at)}: {dotted(at)}: has neither an executorLabel nor a dag"
    if label is not None and label not in known:
        yield unknown(document, (*at, "executorLabel"), label, "executor", known)


def _definitions(document: Document, at: Location) -> Iterator[str]:
    """Names, and defaults of the right type."""
    for kind in ("inputDefinitions", "outputDefinitions"):
        parameters = document.get(*at, kind, "parameters") or {}
        for name, parameter in parameters.items():
            here = (*at, kind, "parameters", name)
            type_ = parameter.get("parameterType", "PARAMETER_TYPE_ENUM_UNSPECIFIED")
            if type_ == "PARAMETER_TYPE_ENUM_UNSPECIFIED":
                yield wrong(document, here, type_, ", ".join(PYTHON_TYPES))
            elif "defaultValue" in parameter:
                yield from constant_of(
                    document, (*here, "defaultValue"), parameter["defaultValue"], type_
                )
        for name in (*parameters, *(document.get(*at, kind, "artifacts") or {})):
            if re.fullmatch(r"[A-Za-z_][-\w]*", name) is None:
                yield (
                    f"{document.place(*at, kind)}: {dotted((*at, kind))} {name!r}: not a name "
                    "(allowed: letters, digits, _ and -, no digit first)"
                )


def _executor(document: Document, name: str) -> Iterator[str]:
    at: Location = (*EXECUTORS, name)
    container = document.get(*at, "container")
    users = [
        component
        for component, value in (document.get("components") or {}).items()
        if value.get("executorLabel") == name
    ]
    if not users:
        yield f"{document.place(*at)}: {dotted(at)}: no component runs it"
    if container is None:
        if document.get(*at, "importer") is None:
            yield f"{document.place(*at)}: {dotted(at)}: has no container"
        return
    at = (*at, "container")
    yield from _modelled(document, at, _constants(container), ExecutorContainer)
    yield from _resources(document, (*at, "resources"))
    for component in users:
        for inner, text in texts_in(container, at):
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
            except (ArithmeticError, ValueError):
                continue  # absent, a placeholder, or no quantity, which the model says
            number = resources.get(f"{name}{end}")
            unit = 1 if name == "cpu" else 10**9
            if number is not None and abs(float(texts[end]) / unit - number) > 1e-6:
                yield (
                    f"{document.place(*at, f'{name}{end}')}: {dotted(at)}.{name}{end} {number}: "
                    f"not the {text} of resource{name.title()}{end}"
                )
        if texts.get("Request", 0) > texts.get("Limit", float("inf")):
            yield (
                f"{document.place(*at, f'resource{name.title()}Request')}: {dotted(at)}: requests "
                f"more {name} than the limit"
            )
    accelerator = resources.get("accelerator") or {}
    counts = {accelerator[key] for key in ("count", "resourceCount") if key in accelerator}
    if len(counts) > 1:
        yield f"{document.place(*at, 'accelerator')}: {dotted(at)}.accelerator: two counts"
    if accelerator and not counts:
        yield f"{document.place(*at, 'accelerator')}: {dotted(at)}.accelerator: has no count"


def _placeholders(document: Document, at: Location, text: str, component: str) -> Iterator[str]:
    for found in re.findall(r"\{\{.*?(?:\}\}|$)", text):
        inside = found[2:-2] if found.endswith("}}") else ""
        match = INPUT.fullmatch(inside) or OUTPUT.fullmatch(inside)
        if match:
            side = "inputDefinitions" if INPUT.fullmatch(inside) else "outputDefinitions"
            known = document.get("components", component, side, match["kind"]) or {}
            given = known if match["name"] in known else _given(document, component)
            if match["name"] not in given:
                what = f"{side[: -len('Definitions')]} of {component} among its {match['kind']}"
                yield unknown(document, at, match["name"], what, known)
        elif FIXED.fullmatch(inside) is None:
            yield (
                f"{document.place(*at)}: {dotted(at)}: the placeholder {found} is unknown "
                "(allowed: {{$.inputs.parameters['NAME']}}, {{$.inputs.artifacts['NAME'].path}}, "
                "{{$.outputs.artifacts['NAME'].path}} and the like)"
            )


def _tasks(document: Document, component: str) -> Iterator[tuple[Location, Any]]:
    """Every task that runs a component, and where its group of tasks stands."""
    groups = [("components", name) for name in document.get("components") or {}]
    for at in (("root",), *groups):
        for task in (document.get(*at, "dag", "tasks") or {}).values():
            if (task.get("componentRef") or {}).get("name") == component:
                yield at, task


def _given(document: Document, component: str) -> set[str]:
    """Parameters that every task of a component is given, declared by it or added by kfp."""
    found = [
        set((task.get("inputs") or {}).get("parameters") or {})
        for _, task in _tasks(document, component)
    ]
    return set.intersection(*found) if found else set()


def _node_selector(
    document: Document, at: Location, selector: Any, specification: Document
) -> Iterator[str]:
    """Whether the parameter that holds the labels exists around each task of the executor."""
    name = ((selector or {}).get("nodeSelectorJson") or {}).get("componentInputParameter")
    if name is None:
        return
    for component, value in (specification.get("components") or {}).items():
        if value.get("executorLabel") != at[-2]:
            continue
        for scope, _ in _tasks(specification, component):
            known = specification.get(*scope, "inputDefinitions", "parameters") or {}
            here = (*at, "nodeSelectorJson", "componentInputParameter")
            if name not in known:
                yield unknown(document, here, name, "input", known)
            elif known[name].get("parameterType") != "STRUCT":
                yield wrong(document, here, known[name].get("parameterType"), "STRUCT")


def _platforms(document: Document, specification: Document) -> Iterator[str]:
    known = specification.get(*EXECUTORS) or {}
    for platform in document.get("platforms") or {}:
        if platform != "kubernetes":
            yield wrong(document, ("platforms", platform), platform, "kubernetes")
    for name, settings in (document.get(*PLATFORM) or {}).items():
        at = (*PLATFORM, name)
        if name not in known:
            yield unknown(document, at, name, "executor", known)
            continue
        yield from _modelled(document, at, settings, PlatformSettings)
        selector = (settings or {}).get("nodeSelector")
        yield from _node_selector(document, (*at, "nodeSelector"), selector, specification)
        seen: dict[str, int] = {}
        for index, mount in enumerate(settings.get("emptyDirMounts") or ()):
            path = mount.get("mountPath")
            if path in seen:
                here = (*at, "emptyDirMounts", index, "mountPath")
                yield f"{document.place(*here)}: {dotted(here)}: {path} is mounted twice"
            seen[path] = index
