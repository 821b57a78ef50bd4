"""YAML that knows where it was written: every error about a value names its file and line."""

import difflib
import io
import os
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, TextIO, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from components.core.errors import ConfigError, printable

MAX_DEPTH = 100
KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
"""What YAML's values are, by their tags."""

Location = tuple[int | str, ...]
"""Keys and indices that lead from the top of a document to a value."""


class StrictModel(BaseModel):
    """A part of a file: fields that are not declared are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


M = TypeVar("M", bound=StrictModel)


def job_only(reason: str, default: Any = None, **limits: Any) -> Any:
    """Declare a field that matters to the Job alone, and why the pipeline needs none."""
    return Field(default, description=f"Job only: {reason}", **limits)


def fault(problem: str, *at: int | str) -> PydanticCustomError:
    """A validator's error about the value at `at`, counted from the validator's model."""
    return PydanticCustomError("fault", "{problem}", {"problem": problem, "at": at})


class Loader(yaml.SafeLoader):
    """Makes values of nodes; refuses, with their places, those that no Kubernetes object holds."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag.removeprefix("tag:yaml.org,2002:") not in KINDS:
            raise ConfigError(
                f"{place(node)}: a value of the kind {node.tag} (allowed: {', '.join(KINDS)})"
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            problem = f"{printable(str(node.value)[:100])}: {error}"  # a date in a 13th month
            raise ConfigError(f"{place(node)}: {problem}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{place(key)}: a key that is not a text")
            if key.value in lines:
                first = lines[key.value]
                raise ConfigError(
                    f"{place(key)}: {key.value} is written twice, first in line {first}; keep one"
                )
            lines[key.value] = key.start_mark.line + 1
        # Not SafeLoader's, which merges what stands under the key <<.
        return yaml.constructor.BaseConstructor.construct_mapping(self, node, deep)


class Document:
    """One YAML document with the places of its values.

    Attributes:
        elsewhere: places of values that another file has set.
    """

    def __init__(self, node: yaml.Node) -> None:
        self.node = node
        self.elsewhere: dict[Location, str] = {}

    @cached_property
    def value(self) -> Any:
        return Loader("").construct_document(self.node)

    def get(self, *location: int | str) -> Any:
        """The value at a location, or None."""
        value = self.value
        for step in location:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def place(self, *location: int | str) -> str:
        """`file:line` of a value, or of what should hold it."""
        if location in self.elsewhere:
            return self.elsewhere[location]
        node = mark = self.node
        for step in location:
            if isinstance(node, yaml.MappingNode):
                pairs = {key.value: (key, value) for key, value in node.value}
            elif isinstance(node, yaml.SequenceNode):
                pairs = {str(index): (entry, entry) for index, entry in enumerate(node.value)}
            else:
                break
            if str(step) not in pairs:
                break
            mark, node = pairs[str(step)]
        return place(mark)


def place(node: yaml.Node) -> str:
    """`file:line` of a node."""
    return f"{shown(node.start_mark.name)}:{node.start_mark.line + 1}"


def shown(path: Path | str) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def read(path: Path) -> list[Document]:
    """Read the documents of a file; "-" is standard input.

    Raises:
        ConfigError: no such file, not YAML, or a key written twice; names file and line.
    """
    if str(path) == "-":
        return parse(sys.stdin)
    try:
        with path.open(encoding="utf-8") as stream:
            return parse(stream)
    except OSError as error:
        raise ConfigError(f"{shown(path)}: {error.strerror}") from None


class Text(io.StringIO):
    """Text with a name, which errors show as that of a file."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def parse(stream: TextIO) -> list[Document]:
    """Read the documents of an open file or of standard input."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    name = shown(stream.name)
    try:
        text = stream.read()
        _check_depth(yaml.parse(Text(text, stream.name), loader), name)
        documents = [Document(node) for node in yaml.compose_all(Text(text, stream.name), loader)]
        for document in documents:
            _ = document.value
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    return documents


def _check_depth(events: Iterable[yaml.Event], name: str) -> None:
    """Refuse what is nested too deeply before it is composed, which recurses (in C, to a crash)."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise ConfigError(f"{name}:{line}: nested more than {MAX_DEPTH} deep")


def validate(document: Document, model: type[M]) -> M:
    """Take a document as a model.

    Raises:
        ConfigError: lists every field that is wrong or unknown, each with file and line.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        errors = [_explain(document, model, detail) for detail in error.errors()]
    raise ConfigError("\n".join(dict.fromkeys(errors)))


def _explain(document: Document, model: type[StrictModel], error: Any) -> str:
    """One of pydantic's errors as `file:line: field: problem`."""
    location = (*error["loc"], *error.get("ctx", {}).get("at", ()))
    start = f"{document.place(*location)}: {'.'.join(map(str, location)) or 'the file'}"
    if error["type"] == "extra_forbidden":
        return f"{start}: not understood{_allowed_fields(model, location)}"
    if error["type"] == "missing":
        return f"{start}: is missing"
    if error["type"] in ("dict_type", "model_type"):
        return f"{start}: not a mapping of fields"
    problem = str(error["msg"]).removeprefix("Value error, ")
    value = f" {error['input']!r}" if isinstance(error["input"], str | int | float) else ""
    return f"{start}{value}: {problem}"


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean gpu?` for the known word that is most like one that is not; "" for none."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _allowed_fields(model: type[StrictModel], location: Location) -> str:
    """The fields that may stand where an unknown one stands."""
    for step in location[:-1]:
        if isinstance(step, str):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            inner = model_in(fields[step].annotation) if step in fields else None
            if inner is None:
                return ""
            model = inner
    known = [field.alias or name for name, field in model.model_fields.items()]
    return f" (allowed: {', '.join(known)}){meant(str(location[-1]), known)}"


def model_in(annotation: Any) -> type[StrictModel] | None:
    """The model that a field holds, or a list of; None where it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    if get_origin(annotation) in (list, Union, UnionType) or hasattr(annotation, "__metadata__"):
        return next(filter(None, map(model_in, get_args(annotation))), None)
    return None
