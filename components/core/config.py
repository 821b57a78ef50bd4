"""The base classes of the stages' settings.

A stage's settings are one frozen pydantic class: the only place where a default, a range and a
help text are written. The command line, the KFP signature and docs/settings.md are made from it.
A config class needs nothing but this module: the types of `locations` and `options` are here too.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from components.core.errors import ConfigError
from components.core.locations import (
    INPUT,
    KEPT,
    OUTPUT,
    SCHEME,
    InputLocation,
    InputLocations,
    KeptLocation,
    Location,
    OutputLocation,
    beside,
    check_apart,
    check_folder,
    check_location,
    normalized,
)
from components.core.options import (
    JsonObject,
    NumberList,
    ObjectList,
    TextList,
    allowed_values,
    complaint,
    default_text,
    flag,
    group_of,
    in_pipeline,
    message,
    option,
)
from components.core.redaction import has_password, redact

__all__ = [
    "INPUT", "KEPT", "OUTPUT", "SCHEME", "ArtifactSettings", "InputLocation", "InputLocations",
    "JsonObject", "KeptLocation", "Location", "NumberList", "ObjectList", "OutputLocation",
    "Settings", "StageConfig", "TextList", "allowed_values", "beside", "check_location",
    "complaint", "default_text", "flag", "group_of", "in_pipeline", "message", "option",
]  # fmt: skip


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
                locations[kind] += [(name, str(location)) for location in values if location]
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
        if fault["type"] == "missing":
            return f"{flag(name)} is missing: {cls.model_fields[name].description}"
        return f"{flag(name)} {fault['input']!r}{complaint(fault, cls.model_fields[name])}"


class ArtifactSettings(Settings):
    """Settings of a command that replaces a finished artifact only where `overwrite` is set."""

    without_effect: ClassVar[tuple[str, ...]] = ()
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
        left_out = {"output", "overwrite", "prices", "fresh", self.kept(), *self.without_effect}
        settings = self.model_dump(mode="json", exclude=left_out)
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
