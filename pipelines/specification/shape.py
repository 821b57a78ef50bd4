"""Whether a compiled pipeline can be read at all: its shape against the protobuf messages.

Protobuf's own parser knows no lines, so the messages are walked beside the YAML; the parser has the
last word.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.k8s.located import Document, Location

PLATFORM = ("platforms", "kubernetes", "deploymentSpec", "executors")


def shape(document: Document) -> Iterator[str]:
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
        yield wrong(document, at, value, "a mapping")
        return
    fields = {field.json_name: field for field in descriptor.fields}
    for key, entry in value.items():
        field = fields.get(key) or descriptor.fields_by_name.get(key)
        if field is None:
            allowed = ", ".join(sorted(fields))
            yield (
                f"{document.place(*at, key)}: {dotted((*at, key))}: no such field "
                f"(allowed: {allowed})"
            )
        else:
            yield from _field(document, entry, field, (*at, key))


def _field(document: Document, value: Any, field: Any, at: Location) -> Iterator[str]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        if not isinstance(value, dict):
            yield wrong(document, at, value, "a mapping")
            return
        entries = [((*at, key), entry) for key, entry in value.items()]
        field = message.fields_by_name["value"]
    elif field.is_repeated:
        if not isinstance(value, list):
            yield wrong(document, at, value, "a list")
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
            yield wrong(document, at, value, ", ".join(names))
        return
    kinds: Mapping[int, tuple[str, bool]] = {
        field.CPPTYPE_STRING: ("text", isinstance(value, str)),
        field.CPPTYPE_BOOL: ("true or false", isinstance(value, bool)),
    }
    number = isinstance(value, int | float) and not isinstance(value, bool)
    digits = isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) is not None
    allowed, right = kinds.get(field.cpp_type, ("a number", number or digits))
    if not right:
        yield wrong(document, at, value, allowed)


def wrong(document: Document, at: Location, value: Any, allowed: str) -> str:
    """The complaint about a value of the wrong kind."""
    shown = f" {value!r}" if isinstance(value, str | int | float) or value is None else ""
    return f"{document.place(*at)}: {dotted(at)}{shown}: wrong type or value (allowed: {allowed})"


def dotted(at: Location) -> str:
    """A location as one writes it."""
    return ".".join(map(str, at)) or "the file"


def unknown(document: Document, at: Location, name: Any, what: str, known: Any) -> str:
    """The complaint about a name that leads nowhere."""
    return (
        f"{document.place(*at)}: {dotted(at)}: {name!r} is no {what} "
        f"(allowed: {', '.join(sorted(known)) or 'none'})"
    )
