"""What the config classes of all stages have in common.

A stage's settings are one frozen pydantic class: the only place where a default, a range and a
help text are written. The command line, the KFP signature and docs/settings.md are made from it.
Values may arrive as text (Kubeflow hands every parameter over as text: `true`, `0.800000`,
`["a","b"]`), and are parsed here, nowhere else.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from components.core.errors import ConfigError
from components.core.locations import (
    INPUT,
    KEPT,
    OUTPUT,
    SCHEME,
    InputLocation,
    InputLocations,
    KeptLocation,
    OutputLocation,
    beside,
    check_apart,
    check_folder,
    check_location,
    normalized,
    split_text,
)
from components.core.redaction import has_password, redact

__all__ = [
    "INPUT", "KEPT", "OUTPUT", "SCHEME", "ArtifactSettings", "InputLocation", "InputLocations",
    "JsonObject", "KeptLocation", "NumberList", "ObjectList", "Settings", "StageConfig", "TextList",
    "allowed_values", "beside", "check_location", "complaint", "default_text", "flag", "group_of",
    "in_pipeline", "message", "option",
]  # fmt: skip


def parse_json(value: object, empty: str) -> object:
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
    """Accept a single number, as a list of one."""
    return (value,) if isinstance(value, int) else split_text(value)


NumberList = Annotated[tuple[int, ...], BeforeValidator(_split_numbers)]
"""Whole numbers, written `0,2` or `[0, 2]`; one alone is a list of one."""

JsonObject = Annotated[dict[str, Any], BeforeValidator(lambda value: parse_json(value, "{}"))]
"""A JSON object, written `{"a": 1}`."""

ObjectList = Annotated[
    tuple[dict[str, Any], ...], BeforeValidator(lambda value: parse_json(value, "[]"))
]
"""JSON objects, written `[{"a": 1}, {"a": 2}]`."""


def option(
    default: Any = ..., *, help: str, group: str, in_pipeline: bool = True, **limits: Any
) -> Any:
    """Declare one setting: its default, range, help text and the heading that `--help` gives it.

    Every setting is also a parameter of the stage's Kubeflow component, unless `in_pipeline` is
    false because Kubeflow decides it, or because it makes no sense in a step.

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


class Settings(BaseModel):
    """Settings of a command: flags are its fields, and `stage` is its name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    stage: ClassVar[str]

    output: OutputLocation = option(
        help="Folder (local or gs://) that receives the artifact.",
        group="Output",
        in_pipeline=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _without_password(cls, value: object) -> object:
        """Settings are kept in pod specs, pipelines and logs; keys come from the environment."""
        if isinstance(value, str) and has_password(value):
            raise ValueError("holds a user name or password, which a setting must not")
        return value

    @field_validator("output")
    @classmethod
    def _a_folder(cls, output: str) -> str:
        return check_folder(output)

    @model_validator(mode="after")
    def _locations_are_apart(self) -> Self:
        locations: dict[str, list[tuple[str, str]]] = {INPUT: [], OUTPUT: [], KEPT: []}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            for kind in locations.keys() & set(map(str, field.metadata)):
                values = value if isinstance(value, tuple) else (value,)
                locations[kind] += [(flag(name), str(location)) for location in values if location]
        check_apart(locations)
        return self

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
        """The default of one setting."""
        return cls.model_fields[name].default

    @classmethod
    def kept(cls) -> str:
        """The setting that names where resume state is kept; "" if there is none."""
        return next((name for name, f in cls.model_fields.items() if KEPT in f.metadata), "")

    @classmethod
    def _explain(cls, fault: Any) -> str:
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if name not in cls.model_fields:
            return f"{flag(name)}: unknown flag" if name else message(fault)
        if len(fault["loc"]) > 1 and isinstance(fault["loc"][1], str):  # a field of an object
            inner = ".".join(map(str, fault["loc"][1:]))
            return f"{flag(name)}: {inner}: {message(fault)}"
        if fault["type"] == "missing":
            return f"{flag(name)} is missing: {cls.model_fields[name].description}"
        return f"{flag(name)} {fault['input']!r}{complaint(fault, cls.model_fields[name])}"


class ArtifactSettings(Settings):
    """Settings of a command that replaces a finished artifact only where `overwrite` is set."""

    not_part_of_identity: ClassVar[tuple[str, ...]] = ()
    """Settings on which the artifact does not depend."""

    _recorded: dict[str, Any] = PrivateAttr(default_factory=dict)

    overwrite: bool = option(
        False,
        help="Replace a finished result in --output. Without it, the same settings do nothing and "
        "different settings are an error. Do not set it in a Kubernetes Job: a retry would start "
        "over.",
        group="Output",
        in_pipeline=False,
    )

    def model_post_init(self, _context: Any, /) -> None:
        """Remember the settings as they were given: a copy may name local folders instead."""
        omitted = {
            "output",
            "overwrite",
            "prices",
            "fresh",
            self.kept(),
            *self.not_part_of_identity,
        }
        settings = self.model_dump(mode="json", exclude=omitted)
        for name, field in type(self).model_fields.items():
            if name in settings and INPUT in field.metadata:
                value = settings[name]
                one = isinstance(value, str)
                settings[name] = normalized(value) if one else [*map(normalized, value)]
        self._recorded = settings

    def recorded(self) -> dict[str, Any]:
        """All on which the artifact depends, as JSON and without secrets, for its manifest."""
        settings: dict[str, Any] = json.loads(redact(json.dumps(self._recorded)))
        return settings


class StageConfig(ArtifactSettings):
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
        in_pipeline=False,
    )

    kept_beside_local: ClassVar[bool] = False
    """Whether resume state is also kept next to a local output rather than inside it."""

    @model_validator(mode="before")
    @classmethod
    def _kept_beside_the_output(cls, values: Any) -> Any:
        """Derived here, because a stage is handed a local folder for a gs:// output."""
        kept = cls.kept()
        if kept and isinstance(values, dict) and not values.get(kept):
            output = str(values.get("output", ""))
            if output.startswith(SCHEME) or (output and cls.kept_beside_local):
                return values | {kept: beside(output, kept)}
        return values


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
    """What a field accepts, in words: `>= 0, <= 1`, `a | b`, `for example 2/8`; "" if anything."""
    if get_origin(field.annotation) is Literal:
        return " | ".join(str(value) for value in get_args(field.annotation) if value)
    if field.examples:
        return f"for example {field.examples[0]}"
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
