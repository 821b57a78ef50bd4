"""Whether the steps of a compiled pipeline fit together: inputs, types, who waits for whom."""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pipelines.k8s.located import Document, Location
from pipelines.specification.shape import dotted, unknown, wrong

PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


OF_KFP = re.compile(r"pipelinechannel--.+|(cpu|memory)_(request|limit)|accelerator_(type|count)")
"""Inputs that kfp adds to a task: for placeholders in a constant, and for resources."""

INPUT = re.compile(
    r"\$\.inputs\.(?P<kind>parameters|artifacts)\['(?P<name>[^']+)'\]"
    r"(\.(path|uri|name|value)|\.metadata(\['[^']+'\])?|\.properties\['[^']+'\])?"
)


def dag(document: Document, at: Location) -> Iterator[str]:
    tasks = document.get(*at, "dag", "tasks") or {}
    needs = {}
    for name, task in tasks.items():
        here = (*at, "dag", "tasks", name)
        if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is None:
            yield f"{document.place(*here)}: {name!r}: not a task's name (allowed: a-z, 0-9, -)"
        waits = task.get("dependentTasks") or []
        for index, other in enumerate(waits):
            if other not in tasks:
                yield unknown(document, (*here, "dependentTasks", index), other, "task", tasks)
        needs[name] = [*waits]
        component = str((task.get("componentRef") or {}).get("name"))
        known = document.get("components") or {}
        if component not in known:
            yield unknown(document, (*here, "componentRef", "name"), component, "component", known)
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
                    needs[name].append(producer)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # each waits for the next
        place = document.place(*at, "dag", "tasks", circle[0])
        yield f"{place}: tasks wait in a circle: {' -> '.join(circle)}"


def _producers(source: Any) -> Iterator[str]:
    for kind in ("taskOutputArtifact", "taskOutputParameter"):
        if kind in source:
            yield source[kind].get("producerTask")


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
                    f"{document.place(*task, 'inputs', kind)}: {dotted(task)}: the input {name} "
                    f"of {component} is required, but not given"
                )
        for name, source in given.items():
            at = (*task, "inputs", kind, name)
            if name in wanted or (kind == "parameters" and OF_KFP.fullmatch(name)):
                yield from _source(document, at, source, wanted.get(name), scope)
            else:
                yield unknown(document, at, name, f"input of {component}", wanted)
            for inner, text in texts_in(source, at):
                for found in INPUT.finditer(text):
                    if found["name"] not in document.get(*task, "inputs", found["kind"]):
                        yield unknown(document, inner, found["name"], "input of the task", given)


def _source(
    document: Document, at: Location, source: Any, wanted: Any, scope: Location
) -> Iterator[str]:
    """Whether an input's source exists and has the input's type."""
    kind = "parameters" if at[-2] == "parameters" else "artifacts"
    if "runtimeValue" in source:
        constant = (source["runtimeValue"] or {}).get("constant")
        inner = (*at, "runtimeValue", "constant")
        texts = [text for _, text in texts_in(constant, ())]
        if wanted and not any("{{$" in text for text in texts):
            yield from constant_of(document, inner, constant, wanted.get("parameterType", ""))
        return
    for key in ("componentInputParameter", "componentInputArtifact"):
        if key in source:
            known = document.get(*scope, "inputDefinitions", kind) or {}
            if source[key] not in known:
                yield unknown(document, (*at, key), source[key], "input", known)
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
                yield unknown(document, (*at, key, "producerTask"), producer, "task", tasks)
                return
            component = document.get(*scope, "dag", "tasks", producer, "componentRef", "name")
            known = document.get("components", component, "outputDefinitions", kind) or {}
            name = source[key].get(output)
            if name not in known:
                yield unknown(document, (*at, key, output), name, f"output of {producer}", known)
            else:
                yield from _agree(document, (*at, key, output), known[name], wanted, source)
            return
    if "taskFinalStatus" not in source:
        yield f"{document.place(*at)}: {dotted(at)}: names no source"


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
        yield (f"{document.place(*at)}: {dotted(at)}: is {types[0]}, where {types[1]} is wanted")


def constant_of(document: Document, at: Location, value: Any, type_: str) -> Iterator[str]:
    right = isinstance(value, PYTHON_TYPES.get(type_, (object,)))
    if isinstance(value, bool) and type_ != "BOOLEAN":
        right = False
    if type_ == "NUMBER_INTEGER" and isinstance(value, float) and not value.is_integer():
        right = False
    if not right:
        yield wrong(document, at, value, type_)


def texts_in(value: Any, at: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts_in(entry, (*at, key))
