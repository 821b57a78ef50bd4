"""Declare a setting, parse its value from text, and describe it in words: default, allowed values.

Values may arrive as text (Kubeflow hands every parameter over as text: `true`, `0.800000`,
`["a","b"]`), and are parsed here, nowhere else.
"""

import json
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, JsonValue
from pydantic.fields import FieldInfo


def split_text(value: object) -> object:
    """Accept a list as JSON (Kubeflow) or as comma-separated words (a person at a terminal)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _parse_json(value: object, empty: str) -> object:
    """Accept JSON as text; an empty text stands for `empty`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or empty)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None


TextList = Annotated[tuple[str, ...], BeforeValidator(split_text)]
"""Words, written `a,b` or `["a","b"]`."""


def _split_numbers(value: object) -> object:
    """Accept one number, too: a list of one."""
    return (value,) if isinstance(value, int) else split_text(value)


NumberList = Annotated[tuple[int, ...], BeforeValidator(_split_numbers)]
"""Whole numbers, written `0,2` or `[0, 2]`; one alone is a list of one."""

JsonObject = Annotated[dict[str, Any], BeforeValidator(lambda value: _parse_json(value, "{}"))]
"""A JSON object, written `{"a": 1}`."""

ObjectList = Annotated[
    tuple[dict[str, Any], ...], BeforeValidator(lambda value: _parse_json(value, "[]"))
]
"""JSON objects, written `[{"a": 1}, {"a": 2}]`."""


def option(
    default: Any = ..., *, help: str, group: str, in_pipeline: bool = True, **limits: Any
) -> Any:
    """Declare one setting: its default, range, help text and the heading that `--help` gives it.

    Every setting is also a parameter of the stage's Kubeflow component, unless `in_pipeline` is
    false: for what Kubeflow decides itself, and what makes no sense in a step.

    A setting without a default is a location or a name, and may not be empty.
    """
    if default is ...:
        limits.setdefault("min_length", 1)
    extra: dict[str, JsonValue] = {"group": group, "in_pipeline": in_pipeline}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def group_of(field: FieldInfo) -> str:
    """The heading of a setting in `--help` and on the dashboard."""
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Other"


def in_pipeline(field: FieldInfo) -> bool:
    """Whether a setting is a parameter of the stage's Kubeflow component."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra["in_pipeline"])


def flag(name: str) -> str:
    """The command-line spelling of a field: `max_chunks` becomes `--max-chunks`."""
    return "--" + name.replace("_", "-")


def message(fault: Any) -> str:
    """The text of one of pydantic's errors."""
    return str(fault["msg"]).removeprefix("Value error, ")


def complaint(fault: Any, field: FieldInfo) -> str:
    """The text after a wrong value: ` (allowed: a | b)`, `: no such arm (allowed: a | b)`."""
    allowed = allowed_values(field)
    if not allowed:
        return f": {message(fault)}"
    # pydantic's own messages would only repeat the allowed values in other words.
    own = f": {message(fault)}" if fault["type"] == "value_error" else ""
    return f"{own} (allowed: {allowed})"


def default_text(field: FieldInfo) -> str:
    """A setting's default as one would type it; `required` where there is none."""
    if field.is_required():
        return "required"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default))
    return str(field.default)


def allowed_values(field: FieldInfo) -> str:
    """What a field accepts, in words: `>= 0, <= 1`, `a | b`, `as 2/8`; "" if anything."""
    if get_origin(field.annotation) is Literal:
        return " | ".join(str(value) for value in get_args(field.annotation) if value)
    if field.examples:
        return f"as {field.examples[0]}"
    if field.annotation is bool:
        return "true | false"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    kinds: dict[object, str] = {int: "a whole number", float: "a number"}
    kind = kinds.get(field.annotation, "")
    return ", ".join([kind, *bounds] if kind else bounds)
