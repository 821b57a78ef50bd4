"""What the API server refuses: pipelines and parameters that do not fit together."""

import re
from graphlib import CycleError, TopologicalSorter
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
OF_KFP = re.compile(
    r"pipelinechannel--.*|base_image|(memory|cpu)_(limit|request)|accelerator_(count|type)"
)
"""Inputs that kfp's compiler adds to a task, which its component does not declare."""
PLACEHOLDER = re.compile(r"\{\{\$\.(inputs|outputs)\.(parameters|artifacts)\['([^']+)'\]")
PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


class Refused(ValueError):
    """The backend would answer 400."""


def check_pipeline(documents: list[dict[str, Any]]) -> None:
    """Refuse a compiled pipeline (specification, then platforms) that the backend refuses."""
    specification, *platforms = documents
    try:
        json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise Refused(f"invalid v2 pipeline spec: {error}") from None
    if not NAME.fullmatch(specification["pipelineInfo"]["name"]):
        raise Refused(f"invalid pipeline name {specification['pipelineInfo']['name']!r}")
    executors = specification["deploymentSpec"]["executors"]
    for platform in platforms:
        for settings in platform["platforms"].values():
            for label in settings.get("deploymentSpec", {}).get("executors", {}):
                if label not in executors:
                    raise Refused(f"platform settings for unknown executor {label!r}")
    for name, component in specification["components"].items():
        if "dag" in component:
            _check_dag(specification, name, component)
        elif component.get("executorLabel") not in executors:
            raise Refused(f"component {name!r} has no executor")
        else:
            _check_executor(name, component, executors[component["executorLabel"]])
    _check_dag(specification, "root", specification["root"])


def _names(component: dict[str, Any], side: str, kind: str) -> dict[str, Any]:
    names: dict[str, Any] = component.get(f"{side}Definitions", {}).get(kind, {})
    return names


def _check_executor(name: str, component: dict[str, Any], executor: dict[str, Any]) -> None:
    if "container" not in executor:
        return  # an importer
    container = executor["container"]
    if not container.get("image") or not container.get("command"):
        raise Refused(f"component {name!r} has no image or no command")
    for text in [*container["command"], *container.get("args", [])]:
        for side, kind, key in PLACEHOLDER.findall(str(text)):
            if key not in _names(component, side[:-1], kind):
                raise Refused(f"component {name!r}: placeholder of unknown {side} {key!r}")


def _check_dag(specification: dict[str, Any], name: str, parent: dict[str, Any]) -> None:
    tasks = parent["dag"]["tasks"]
    order: dict[str, set[str]] = {}
    for key, task in tasks.items():
        if task["componentRef"]["name"] not in specification["components"]:
            raise Refused(f"task {key!r} refers to unknown component")
    for key, task in tasks.items():
        if not NAME.fullmatch(key):
            raise Refused(f"invalid task name {key!r}")
        component = specification["components"][task["componentRef"]["name"]]
        producers = set(task.get("dependentTasks", []))
        inputs: dict[str, set[str]] = {}
        for kind in ("parameters", "artifacts"):
            sources = task.get("inputs", {}).get(kind, {})
            inputs[kind] = set(sources)
            for entry, source in sources.items():
                # Conditions, and resources that are parameters, add inputs of kfp's own.
                declared = _names(component, "input", kind).get(entry)
                if declared is None and not OF_KFP.fullmatch(entry):
                    raise Refused(f"task {key!r} passes undeclared input {entry!r}")
                producers |= _check_source(specification, parent, tasks, key, source, declared)
        for iterator in ("parameterIterator", "artifactIterator"):
            if iterator in task:
                inputs["parameters"].add(task[iterator]["itemInput"])
                inputs["artifacts"].add(task[iterator]["itemInput"])
        for kind, passed in inputs.items():
            for entry, declared in _names(component, "input", kind).items():
                if entry not in passed and not declared.get("isOptional"):
                    raise Refused(f"task {key!r} lacks required input {entry!r}")
        order[key] = producers
    for key, producers in order.items():
        if unknown := producers - tasks.keys():
            raise Refused(f"task {key!r} depends on unknown {sorted(unknown)}")
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        raise Refused(f"{name}: cycle of tasks {error.args[1]}") from None


def _check_source(
    specification: dict[str, Any],
    parent: dict[str, Any],
    tasks: dict[str, Any],
    task: str,
    source: dict[str, Any],
    declared: dict[str, Any] | None,
) -> set[str]:
    """The tasks that an input comes from; refuses one that is not there or of another type."""
    for kind, word in (("Parameter", "parameters"), ("Artifact", "artifacts")):
        if f"componentInput{kind}" in source:
            entry = source[f"componentInput{kind}"]
            definition = _names(parent, "input", word).get(entry)
            if definition is None:
                if declared is None:  # the driver finds out: a channel that kfp did not declare
                    return set()
                raise Refused(f"task {task!r}: unknown pipeline input {entry!r}")
            wanted = (declared or {}).get("parameterType")
            if (
                wanted
                and definition["parameterType"] != wanted
                and "parameterExpressionSelector" not in source
            ):
                raise Refused(
                    f"task {task!r}: {entry!r} is {definition['parameterType']}, not {wanted}"
                )
        output = source.get(f"taskOutput{kind}")
        if output:
            producer = tasks.get(output["producerTask"])
            if producer is None:
                raise Refused(f"task {task!r}: unknown producer {output['producerTask']!r}")
            component = specification["components"][producer["componentRef"]["name"]]
            key = output[f"output{kind}Key"]
            if key not in _names(component, "output", word):
                raise Refused(f"task {task!r}: {output['producerTask']!r} has no output {key!r}")
            return {output["producerTask"]}
    if "taskFinalStatus" in source:
        return {source["taskFinalStatus"]["producerTask"]}
    return set()


def check_parameters(specification: dict[str, Any], values: dict[str, Any]) -> None:
    """Refuse runtime parameters that are unknown, missing or of another type."""
    declared = _names(specification["root"], "input", "parameters")
    for name, value in values.items():
        if name not in declared:
            raise Refused(f"parameter {name} is not defined in the pipeline")
        kind = declared[name]["parameterType"]
        is_type = isinstance(value, PYTHON_TYPES[kind])
        if not is_type or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise Refused(f"input parameter {name} requires type {kind}, got {value!r}")
        if kind == "NUMBER_INTEGER" and float(value) != int(value):
            raise Refused(f"input parameter {name} requires an integer, got {value!r}")
    for name, definition in declared.items():
        if name not in values and not definition.get("isOptional"):
            raise Refused(f"parameter {name} is required")
