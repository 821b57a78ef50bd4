"""YAML that knows where it was written: every error about a value names its file and line."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from yaml.constructor import BaseConstructor, ConstructorError

from components.core.config import message
from components.core.errors import ConfigError

MAX_DEPTH = 100

ENTRY_KEYS = ("mountPath", "name", "key")
"""Fields that distinguish the entries of a list, in the order in which they are looked for."""

Location = tuple[int | str, ...]
"""Keys and indices that lead from the top of a document to a value."""


class StrictModel(BaseModel):
    """A part of a file: fields that are not declared are refused."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel)
    further: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Keys beside the fields, of a model that takes extra ones."""

    @model_validator(mode="before")
    @classmethod
    def _knows_the_fields(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, dict) else ():
            if key not in known and not cls.further.fullmatch(str(key)):
                allowed = f"(allowed: {', '.join(known)}){meant(str(key), known)}"
                raise fault(f"not understood {allowed}", key)
        return data


M = TypeVar("M", bound=StrictModel)


def job_only(reason: str, default: Any = None, **limits: Any) -> Any:
    """Declare a field that matters to the Job alone, and why the pipeline needs none."""
    return Field(default, description=f"Job only: {reason}", **limits)


def set_for(part: object, reason: str, *at: int | str) -> Iterator[Location]:
    """Where a part of a file sets a field that was declared with `job_only` and this reason."""
    if isinstance(part, StrictModel):
        for name, field in type(part).model_fields.items():
            value, place = getattr(part, name), (*at, field.alias or name)
            if field.description != f"Job only: {reason}":
                yield from set_for(value, reason, *place)
            elif value:
                yield place
    for index, entry in enumerate(part if isinstance(part, list) else ()):
        yield from set_for(entry, reason, *at, index)


def fault(problem: str, *at: int | str) -> PydanticCustomError:
    """A validator's error about the value at `at`, counted from the validator's model."""
    return PydanticCustomError("fault", "{problem}", {"problem": problem, "at": at})


class Loader(yaml.CSafeLoader):
    """Refuses keys that are written twice or are no text, and merges nothing under the key <<."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
            problem = f"{node.value:.100}: {error}"  # a date in a 13th month, say
            raise ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            problem = ""
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key that is not a text"
            elif key.value in lines:
                first = lines[key.value]
                problem = f"{key.value} is written twice, first in line {first}; keep one"
            if problem:
                raise ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        # Not SafeLoader's, which merges what is under the key <<.
        return BaseConstructor.construct_mapping(self, node, deep)


class Document:
    """One YAML document with the places of its values.

    Attributes:
        sources: the documents that kubectl made this one of, each patching those before it.
    """

    def __init__(self, name: str, node: yaml.Node, value: Any) -> None:
        self.name, self.node, self.value = name, node, value
        self.sources: Sequence[Document] = [self]

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
        """`file:line` of a value, where it was set last, or of what should hold it."""
        node: yaml.Node | None = self.node
        matches = [(source, source.node, source.node) for source in self.sources]
        for step in location:
            name = _name_of_entry(node, step)
            node = _entries(node).get(name, (None, None))[1]
            deeper = [
                (source, *entries[name])
                for source, _, inner in matches
                if name in (entries := _entries(inner))
            ]
            if not deeper:
                return matches[0][0]._place_of(matches[0][1])
            matches = deeper
        return matches[-1][0]._place_of(matches[-1][1])

    def _place_of(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """What a mapping or a list holds, by name: where each entry begins, and its value."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        names = (_name_of_entry(node, index) for index in range(len(node.value)))
        return {name: (entry, entry) for name, entry in zip(names, node.value, strict=True)}
    return {}


def _name_of_entry(node: yaml.Node | None, step: int | str) -> str:
    """How an entry is recognised in another document: in a list, as kubectl merges lists."""
    if not isinstance(node, yaml.SequenceNode) or not isinstance(step, int):
        return str(step)
    entry = node.value[step]
    if not isinstance(entry, yaml.MappingNode):
        return str(entry.value) if isinstance(entry, yaml.ScalarNode) else str(step)
    named = {
        key.value: name.value for key, name in entry.value if isinstance(name, yaml.ScalarNode)
    }
    return next((f"{key} {named[key]}" for key in ENTRY_KEYS if key in named), str(step))


def short_path(path: Path | str) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def read(path: Path) -> list[Document]:
    """Read the documents of a file.

    Raises:
        ConfigError: no such file, not YAML, or a key written twice; names file and line.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), short_path(path))
    except OSError as error:
        raise ConfigError(f"{short_path(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{short_path(path)}: not UTF-8 at byte {error.start}") from None


def parse(text: str, name: str) -> list[Document]:
    """The documents of a text; `name` is that of its file, for errors."""
    try:
        _check_depth(yaml.parse(text, Loader))
        return [
            Document(name, node, Loader("").construct_document(node))
            for node in yaml.compose_all(text, Loader)
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        syntax = "" if isinstance(error, ConstructorError) else "not YAML: "
        raise ConfigError(f"{name}{line}: {syntax}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


def _check_depth(events: Iterable[yaml.Event]) -> None:
    """Refuse what is nested too deeply before it is composed, which recurses (in C, to a crash)."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep"
            raise ConstructorError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


def validate(document: Document, model: type[M]) -> M:
    """Take a document as a model.

    Raises:
        ConfigError: lists every field that is wrong or unknown, each with file and line.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        errors = [_explain(document, detail) for detail in error.errors()]
    raise ConfigError("\n".join(dict.fromkeys(errors)))


def _explain(document: Document, error: Any) -> str:
    """One of pydantic's errors as `file:line: field: problem`."""
    location = (*error["loc"], *error.get("ctx", {}).get("at", ()))
    start = f"{document.place(*location)}: {'.'.join(map(str, location)) or 'the file'}"
    value = f" {error['input']!r}" if isinstance(error["input"], str | int | float) else ""
    return f"{start}{value}: {message(error)}"


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean gpu?` for the known word that is most like one that is not; "" for none."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
