"""What the config classes of all stages have in common.

A stage's settings are one frozen pydantic class: the only place where a default, a range and a
help text are written. The command line, the KFP signature and docs/settings.md are made from it.
Values may arrive as text (Kubeflow hands every parameter over as text: `true`, `0.800000`,
`["a","b"]`), and are parsed here, nowhere else.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from components.core.errors import ConfigError
from components.core.locations import (
    INPUT,
    OUTPUT,
    RESUME,
    SCHEME,
    OutputLocation,
    ResumeLocation,
    check_apart,
    check_folder,
    each_location,
    keyed,
    map_locations,
    normalized,
    resume_dir,
    split_text,
)
from components.core.redaction import has_password, redact


def parse_json(value: object) -> object:
    """Accept JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


TextList = Annotated[tuple[str, ...], BeforeValidator(split_text)]
"""Words, written `a,b` or `["a","b"]`."""

NumberList = Annotated[
    tuple[int, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, int) else split_text(value)),
]
"""Whole numbers, written `0,2` or `[0, 2]`; one alone is a list of one."""

JsonObject = Annotated[dict[str, Any], BeforeValidator(parse_json)]
"""A JSON object, written `{"a": 1}`."""

ObjectList = Annotated[tuple[dict[str, Any], ...], BeforeValidator(parse_json)]
"""JSON objects, written `[{"a": 1}, {"a": 2}]`."""


def option(
    default: Any = ..., *, help: str, group: str, in_pipeline: bool = True, **limits: Any
) -> Any:
    """Declare one setting: its default, range, help text and the heading that `--help` gives it.

    Without a default it is a location or a name, and may not be empty. Where `in_pipeline` is
    false, it is no parameter of the stage's Kubeflow component.
    """
    if default is ...:
        limits.setdefault("min_length", 1)
    extra: dict[str, JsonValue] = {"group": group, "in_pipeline": in_pipeline}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def option_group(heading: str) -> Callable[..., Any]:
    """`option` for the settings below one heading of `--help`."""
    return partial(option, group=heading)


input_option = option_group("Inputs")
output_option = option_group("Output")
hardware_option = option_group("Hardware")


def group_of(field: FieldInfo) -> str:
    """The heading of a setting in `--help` and on the dashboard."""
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Other"


def in_pipeline(field: FieldInfo) -> bool:
    """Whether a setting is a parameter of the stage's Kubeflow component."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra["in_pipeline"])


class Options(BaseModel):
    """Settings of a command: flags are its fields, and `stage` is its name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    stage: ClassVar[str]

    @field_validator("*", mode="before")
    @classmethod
    def _without_password(cls, value: object) -> object:
        """Settings are kept in pod specs, pipelines and logs; keys come from the environment."""
        if isinstance(value, str) and has_password(value):
            raise ValueError("contains a user name or password, which a setting must not")
        return value

    @model_validator(mode="after")
    def _locations_are_apart(self) -> Self:
        locations: dict[str, list[tuple[str, str]]] = {INPUT: [], OUTPUT: [], RESUME: []}
        for name, field in type(self).model_fields.items():
            for kind in locations.keys() & set(map(str, field.metadata)):
                for location in each_location(getattr(self, name)):
                    locations[kind].append((flag(name), location))
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
            raise cls._refusal(error.errors()) from None

    @classmethod
    def parse_one(cls, name: str, value: object) -> Any:
        """Validate one setting without regard to the others; its value.

        Raises:
            ConfigError: as `parse`.
        """
        try:
            cls.model_validate({name: value})
        except ValidationError as error:
            if faults := [fault for fault in error.errors() if fault["loc"][:1] == (name,)]:
                raise cls._refusal(faults) from None
        field = cls.model_fields[name]
        kind: Any = Annotated[field.annotation, field]
        return TypeAdapter(kind).validate_python(value)

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of one setting."""
        return cls.model_fields[name].default

    @classmethod
    def resume_field(cls) -> str:
        """The stage's own setting that names where resume state is kept; "" if there is none."""
        fields = cls.model_fields.items()
        return next((name for name, f in fields if RESUME in f.metadata and name != "state"), "")

    @classmethod
    def _refusal(cls, faults: list[Any]) -> ConfigError:
        """The error about some values, without pydantic's own as its cause.

        --debug shows causes, and pydantic's error may contain half a password.
        """
        problem = "\n".join(map(cls._explain, faults))
        return ConfigError(problem, hint=f"raft {cls.stage} --help shows every flag.")

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
        return f"{flag(name)} {fault['input']!r}{describe_error(fault, cls.model_fields[name])}"


class Settings(Options):
    """Settings of a command that writes an artifact."""

    output: OutputLocation = output_option(
        help="Folder (local or gs://) that receives the artifact.", in_pipeline=False
    )

    @field_validator("output")
    @classmethod
    def _a_folder(cls, output: str) -> str:
        return check_folder(output)


class StageConfig(Settings):
    """Settings that every stage has; subclasses add their own."""

    not_part_of_identity: ClassVar[tuple[str, ...]] = ()
    """Settings on which the artifact does not depend."""

    resume_dir_for_local: ClassVar[bool] = False
    """Whether resume state is also kept next to a local output rather than inside it."""

    _recorded: dict[str, Any] = PrivateAttr(default_factory=dict)

    overwrite: bool = output_option(
        False,
        help="Replace a finished result in --output. Without it, the same settings do nothing and "
        "different settings are an error. Do not set it in a Kubernetes Job: a retry would start "
        "over.",
        in_pipeline=False,
    )

    seed: int = output_option(
        0, ge=0, le=2**32 - 1, help="Seed of everything random: same inputs, same bytes."
    )

    state: ResumeLocation = output_option(
        "",
        help="Folder (local or gs://) that outlives runs. It keeps, by content, what later runs "
        "need not pay for again: base models from the hub, responses of a teacher, checkpoints, "
        "generations. Empty: none; in a pipeline, state/ below the pipeline root.",
    )

    @model_validator(mode="before")
    @classmethod
    def _set_resume_dir(cls, values: Any) -> Any:
        """Derived here, because a stage is handed a local folder for a gs:// output."""
        field = cls.resume_field()
        if field and isinstance(values, dict) and not (values.get(field) or values.get("state")):
            output = str(values.get("output", ""))
            if output.startswith(SCHEME) or (output and cls.resume_dir_for_local):
                return values | {field: resume_dir(output, field)}
        return values

    def model_post_init(self, _context: Any, /) -> None:
        """Remember the settings as they were given: a copy may name local folders instead."""
        omitted = {"output", "overwrite", "fresh", "state", self.resume_field()}
        omitted |= {*self.not_part_of_identity}
        settings = self.model_dump(mode="json", exclude=omitted)
        for name, field in type(self).model_fields.items():
            if INPUT in field.metadata and name in settings:
                settings[name] = map_locations(settings[name], normalized)
        self._recorded = settings

    def resume_location(self, *content: object) -> str:
        """Where resume state is kept: what the setting for it names, or else a place in `state`.

        Args:
            content: all that the place in `state` depends on, as JSON has it.

        Returns:
            "" where it stays in the output.
        """
        field = self.resume_field()
        named: str = getattr(self, field)
        return named or (keyed(self.state, field, *content) if self.state else "")

    def recorded(self) -> dict[str, Any]:
        """All on which the artifact depends, as JSON and without secrets, for its manifest."""
        settings: dict[str, Any] = json.loads(redact(json.dumps(self._recorded)))
        return settings


def flag(name: str) -> str:
    """The command-line spelling of a field: `max_chunks` becomes `--max-chunks`."""
    return "--" + name.replace("_", "-")


def message(fault: Any) -> str:
    """The text of one of pydantic's errors."""
    return str(fault["msg"]).removeprefix("Value error, ")


def describe_error(fault: Any, field: FieldInfo) -> str:
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
    """What a field accepts, in words: `>= 0, <= 1`, `a | b`, `for example 64Gi`; "" if anything."""
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
    kinds: dict[object, list[str]] = {int: ["a whole number"], float: ["a number"]}
    return ", ".join([*kinds.get(field.annotation, []), *bounds])
