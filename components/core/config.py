"""What the config classes of all stages have in common.

A stage's settings are one frozen pydantic class: the only place where a default, a range and a
help text are written. The command line, the KFP signature and the README's tables are read from
it. Values may arrive as text (Kubeflow hands every parameter over as text: `true`, `0.800000`,
`["a","b"]`), and are parsed here, nowhere else.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from components.core.errors import ConfigError
from components.core.redaction import has_password, redact

SCHEME = "gs://"
INPUT = "input"
OUTPUT = "output"
KEPT = "kept"


def beside(output: str, name: str) -> str:
    """Where a stage keeps what an interrupted run has done: next to its output, `OUTPUT-name`."""
    place = output.rstrip("/") if output.startswith(SCHEME) else Path(output).resolve()
    return f"{place}-{name}"


def check_location(value: str) -> str:
    """Refuse what is neither a local path nor a name that Cloud Storage can have.

    Raises:
        ValueError: says what is wrong, and what is allowed.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value)
    if scheme is None:
        return value
    if scheme[0] != SCHEME:
        raise ValueError(f"{scheme[0]} is not read here (allowed: a local path, gs://BUCKET/PATH)")
    bucket, _, path = value[len(scheme[0]) :].partition("/")
    if not bucket:
        raise ValueError("no bucket named; write gs://BUCKET/PATH")
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", bucket):
        raise ValueError(
            f"no bucket is called {bucket!r} (allowed: small letters, digits, and - _ . between)"
        )
    if not path.isprintable():
        raise ValueError("a path on gs:// with a line end, or another character that is not seen")
    if any(part in ("", ".", "..") for part in path.removesuffix("/").split("/") if path):
        raise ValueError("a path on gs:// has no empty part, no . and no ..")
    return value


Location = Annotated[str, AfterValidator(check_location)]
"""A local path or a `gs://` URI ("" = not given)."""

InputLocation = Annotated[Location, INPUT]
"""One that exists before the stage starts."""

OutputLocation = Annotated[Location, OUTPUT]
"""One that the stage writes, and that holds nothing else."""

KeptLocation = Annotated[Location, KEPT]
"""One that keeps what an interrupted run has done."""


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


InputLocations = Annotated[tuple[Location, ...], BeforeValidator(_split_text), INPUT]
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
        mode = None if output.startswith(SCHEME) else _mode(output)
        if mode is not None and not stat.S_ISDIR(mode):
            raise ValueError("is a file, not a folder")
        return output

    @model_validator(mode="after")
    def _locations_are_sound(self) -> Self:
        """What is read must not be written: a stage clears its output before it begins.

        And nothing is read that may never end, such as a pipe or a device.
        """
        places: dict[str, list[tuple[str, str]]] = {INPUT: [], OUTPUT: [], KEPT: []}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            for kind in places.keys() & set(map(str, field.metadata)):
                given = value if isinstance(value, tuple) else (value,)
                places[kind] += [(name, str(location)) for location in given if location]
        for name, source in places[INPUT]:
            if not source.startswith(SCHEME):
                mode = _mode(source)
                if mode is None:  # a model of the hub lies nowhere
                    continue
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise ValueError(f"{flag(name)} {source}: neither a file nor a folder")
            for other, target in places[OUTPUT] + places[KEPT]:
                cleared = (other, target) in places[OUTPUT]
                if (cleared and _holds(target, source)) or _holds(source, target):
                    raise ValueError(
                        f"{flag(other)} {target} and {flag(name)} {source} lie in each other; "
                        f"give {flag(other)} a folder of its own"
                    )
        for name, kept in places[KEPT]:
            for other, target in places[OUTPUT]:
                if _holds(target, kept):
                    raise ValueError(
                        f"{flag(name)} {kept} lies in {flag(other)} {target}, all of which becomes "
                        f"the artifact; leave {flag(name)} out, or give a folder elsewhere"
                    )
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
        """The default of one setting, for those who repeat the signature (the KFP components)."""
        return cls.model_fields[name].default

    @classmethod
    def kept(cls) -> str:
        """The setting that says where an interrupted attempt is kept; "" if there is none."""
        return next((name for name, f in cls.model_fields.items() if KEPT in f.metadata), "")

    @classmethod
    def _explain(cls, fault: Any) -> str:
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if name not in cls.model_fields:
            return f"{flag(name)}: unknown flag" if name else message(fault)
        if fault["type"] == "missing":
            return f"{flag(name)} is missing: {cls.model_fields[name].description}"
        return f"{flag(name)} {fault['input']!r}{complaint(fault, cls.model_fields[name])}"


class ArtifactSettings(Settings):
    """Settings of a command whose artifact is not made anew without being asked to."""

    not_part_of_identity: ClassVar[tuple[str, ...]] = ()
    """Settings on which what is made does not depend."""

    _recorded: dict[str, Any] = PrivateAttr(default_factory=dict)

    overwrite: bool = option(
        False,
        help="Make the artifact anew where --output holds a finished one; else the same settings "
        "leave it as it is, and others are refused. Not for Jobs, which would begin again.",
        group="Output",
    )

    def model_post_init(self, _context: Any, /) -> None:
        """Keep the settings as they were given: a copy may have others, such as local folders."""
        left_out = {
            "output",
            "overwrite",
            "prices",
            "fresh",
            self.kept(),
            *self.not_part_of_identity,
        }
        settings = self.model_dump(mode="json", exclude=left_out)
        for name, field in type(self).model_fields.items():
            if name in settings and INPUT in field.metadata:
                value = settings[name]
                one = isinstance(value, str)
                settings[name] = _spelled(value) if one else [*map(_spelled, value)]
        self._recorded = settings

    def recorded(self) -> dict[str, Any]:
        """All on which the artifact depends, as JSON and without secrets, for its manifest."""
        found: dict[str, Any] = json.loads(redact(json.dumps(self._recorded)))
        return found


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
    )

    kept_beside_local: ClassVar[bool] = False
    """Whether that of an interrupted attempt is kept beside a local output, too, not in it."""

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


def _spelled(location: str) -> str:
    """A location as it is compared: `docs/` is `docs`."""
    if not location or location.startswith(SCHEME):
        return location.rstrip("/")
    return os.path.normpath(location)


def _mode(path: str) -> int | None:
    """What lies at a path, as `stat` says it; None if nothing does."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return None


def _holds(folder: str, location: str) -> bool:
    """Whether a location is a folder or lies in it."""
    if folder.startswith(SCHEME) or location.startswith(SCHEME):
        return (location.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")
    outer, inner = Path(folder).resolve(), Path(location).resolve()
    return outer in (inner, *inner.parents)


def flag(name: str) -> str:
    """The command-line spelling of a field: `max_chunks` becomes `--max-chunks`."""
    return "--" + name.replace("_", "-")


def message(fault: Any) -> str:
    """What one of pydantic's errors says."""
    return str(fault["msg"]).removeprefix("Value error, ")


def complaint(fault: Any, field: FieldInfo) -> str:
    """What stands behind a wrong value: ` (allowed: a | b)`, `: no such arm (allowed: a | b)`."""
    allowed = allowed_values(field)
    if not allowed:
        return f": {message(fault)}"
    # pydantic itself only says once more, in other words, what is allowed.
    own = f": {message(fault)}" if fault["type"] == "value_error" else ""
    return f"{own} (allowed: {allowed})"


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
