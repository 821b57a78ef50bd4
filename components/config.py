"""What the config classes of all stages have in common.

A stage's settings are one frozen pydantic class: the only place where a default, a range and a
help text are written. The command line, the KFP signature and the README's tables are read from
it. Values may arrive as text (Kubeflow hands every parameter over as text: `true`, `0.800000`,
`["a","b"]`), and are parsed here, nowhere else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from components.errors import ConfigError

INPUT = "input"
OUTPUT = "output"


def beside(output: str, name: str) -> str:
    """Where a stage keeps what an interrupted run has done: next to its output, `OUTPUT-name`."""
    place = output.rstrip("/") if output.startswith("gs://") else Path(output).resolve()
    return f"{place}-{name}"


InputLocation = Annotated[str, INPUT]
"""A local path or a `gs://` URI that exists before the stage starts ("" = not given)."""

OutputLocation = Annotated[str, OUTPUT]
"""A local path or a `gs://` URI that the stage writes."""


def _split_text(value: object) -> object:
    """Accept a list as JSON (Kubeflow) or as comma-separated words (a person at a terminal)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _parse_objects(value: object) -> object:
    """Accept a list of JSON objects as text; an empty text is an empty list."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "[]")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None


InputLocations = Annotated[tuple[str, ...], BeforeValidator(_split_text), INPUT]
"""Several of them, given as `a,b` or `["a","b"]`."""

TextList = Annotated[tuple[str, ...], BeforeValidator(_split_text)]
"""Words, given as `a,b` or `["a","b"]`."""


def _split_numbers(value: object) -> object:
    """Accept one number, too: a list of one."""
    return (value,) if isinstance(value, int) else _split_text(value)


NumberList = Annotated[tuple[int, ...], BeforeValidator(_split_numbers)]
"""Whole numbers, given as `0,2` or `[0, 2]`; one alone is a list of one."""

ObjectList = Annotated[tuple[dict[str, Any], ...], BeforeValidator(_parse_objects)]
"""JSON objects, given as `[{"a": 1}, {"a": 2}]`."""


def option(default: Any = ..., *, help: str, group: str, **limits: Any) -> Any:
    """Declare one setting: its default, range, help text and the heading that `--help` gives it.

    A setting without a default is a location or a name, and may not be empty.
    """
    if default is ...:
        limits.setdefault("min_length", 1)
    return Field(default, description=help, json_schema_extra={"group": group}, **limits)


class Settings(BaseModel):
    """Settings of a command: flags are its fields, and `stage` is its name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    stage: ClassVar[str]

    output: OutputLocation = option(
        help="Folder (local or gs://) that receives the artifact.", group="Output"
    )

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Validate flags (by field name, text or typed).

        Raises:
            ConfigError: names the flag, the value, what is allowed and the help to type.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(
                "\n".join(cls._explain(fault) for fault in error.errors()),
                hint=f"raft {cls.stage} --help shows every flag.",
            ) from None

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of one setting, for those who repeat the signature (the KFP components)."""
        return cls.model_fields[name].default

    @classmethod
    def _explain(cls, fault: Any) -> str:
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if name not in cls.model_fields:
            message = str(fault["msg"]).removeprefix("Value error, ")
            return f"{flag(name)}: unknown flag" if name else message
        if fault["type"] == "missing":
            return f"{flag(name)} is missing: {cls.model_fields[name].description}"
        message = str(fault["msg"]).removeprefix("Value error, ")
        allowed = allowed_values(cls.model_fields[name])
        return f"{flag(name)} {fault['input']!r}: {message}" + (
            f" (allowed: {allowed})" if allowed else ""
        )


class StageConfig(Settings):
    """Settings that every stage has; subclasses add their own."""

    seed: int = option(
        0,
        ge=0,
        le=2**32 - 1,
        help="Seed of everything random: same inputs, same bytes.",
        group="Output",
    )
    prices: InputLocation = option(
        "",
        help="JSON price table that replaces the built-in, dated one in the ledger.",
        group="Output",
    )

    kept: ClassVar[str] = ""
    """The setting that says where a stage keeps what an interrupted attempt has done, if any."""

    @model_validator(mode="before")
    @classmethod
    def _kept_beside_the_output(cls, values: Any) -> Any:
        """Derived here, because a stage is handed a local folder for a gs:// output."""
        if cls.kept and isinstance(values, dict) and not values.get(cls.kept):
            output = str(values.get("output", ""))
            if output.startswith("gs://"):
                return values | {cls.kept: beside(output, cls.kept)}
        return values


def flag(name: str) -> str:
    """The command-line spelling of a field: `max_chunks` becomes `--max-chunks`."""
    return "--" + name.replace("_", "-")


def allowed_values(field: FieldInfo) -> str:
    """What a field accepts, in words: `>= 0, <= 1`, `a | b`, `true | false`; "" if anything."""
    if get_origin(field.annotation) is Literal:
        return " | ".join(str(value) for value in get_args(field.annotation))
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
