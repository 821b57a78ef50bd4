"""Commands whose flags are the fields of a config class.

A config class is read when its flags are first asked for. Every such flag takes a value as text
(`--flag true`), because that is how Kubeflow hands parameters over.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import click
from pydantic.fields import FieldInfo

from components.core.config import allowed_values, default_text, flag, group_of
from components.core.locations import INPUT, OUTPUT, RESUME
from pipelines.stages import (
    COMMANDS,
    EXECUTOR_INPUT,
    USES,
    config_class,
    options_class,
    run_stage,
    run_step,
    use,
)

Decorator = Callable[[Any], Any]


def text_flag(name: str, description: str, metavar: str = "TEXT") -> Decorator:
    """A flag that takes a text, which is empty where the flag is not given."""
    return click.option(name, default="", metavar=metavar, help=description)


def typed_flag(name: str, default: object, kind: Any, description: str) -> Decorator:
    """A flag that takes a value of a kind."""
    return click.option(name, default=default, type=kind, show_default=True, help=description)


SET = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE",
    help="A parameter; wins over the file. May be given many times.",
)  # fmt: skip
OVERLAY = text_flag(
    "--overlay",
    "Take Job manifests, and the hardware of steps, from k8s/overlays/NAME, or from a "
    "folder/of/your/own. [default: k8s/base]",
    "NAME",
)


class Command(click.Command):
    """A command with --debug that takes no flag twice: the last would win without a word."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        explain = "Show the traceback of an error."  # which ending.py does
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help=explain)
        )

    @cached_property
    def flags(self) -> list[click.Option]:
        """The flags that are settings."""
        return []

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self.flags]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        parameters = self.make_parser(ctx).parse_args(args=list(args))[2]
        for parameter, count in Counter(parameters).items():
            if count > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
                raise click.UsageError(f"{parameter.opts[0]} is given {count} times", ctx)
        return super().parse_args(ctx, args)


class SettingsCommand(Command):
    """A command of pipelines/stages.py: its flags are its settings.

    Args:
        name: of the command.
        argument: a setting that is given without its flag; required: whether it must be.
    """

    def __init__(self, name: str, argument: str = "", *, required: bool = False) -> None:
        entry = (COMMANDS | USES)[name]
        text = f"{entry.summary}\n\n\b\nExample:\n  {entry.example}"
        super().__init__(name, help=text, short_help=entry.summary)
        self.stage, self.argument = name, argument
        if argument:
            kind = click.Argument([argument], required=required, type=click.UNPROCESSED)
            self.params.append(kind)

    @cached_property
    def flags(self) -> list[click.Option]:
        fields = options_class(self.stage).model_fields
        # A person types --run; a step of Kubeflow passes every value.
        bare = self.stage in USES
        return [
            _option(name, field, bare) for name, field in fields.items() if name != self.argument
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        fields = options_class(self.stage).model_fields
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = group_of(fields[parameter.name]) if parameter.name in fields else "Other"
                sections.setdefault(group, []).append(record)
        for title in ("Output", "Other"):  # in this order at the end
            if title in sections:
                sections[title] = sections.pop(title)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def settings(self, ctx: click.Context) -> dict[str, object]:
        """The settings that flags were given for, as text and in the order of the config class."""
        values = ((name, ctx.params[name]) for name in options_class(self.stage).model_fields)
        return {name: value for name, value in values if value is not None}

    def invoke(self, ctx: click.Context) -> None:
        use(options_class(self.stage).parse(self.settings(ctx)))


class StageCommand(SettingsCommand):
    """A command that writes an artifact, and may be a step of Kubeflow."""

    @cached_property
    def flags(self) -> list[click.Option]:
        executor_input = click.Option(
            [flag(EXECUTOR_INPUT), EXECUTOR_INPUT],
            metavar="JSON",
            help="Set by Kubeflow Pipelines; do not pass it yourself.",
        )
        return [*super().flags, executor_input]

    def invoke(self, ctx: click.Context) -> None:
        config, settings = config_class(self.stage), self.settings(ctx)
        executor_input = ctx.params[EXECUTOR_INPUT]
        if executor_input:
            run_step(config, settings, executor_input)
        else:
            run_stage(config.parse(settings))


PLANNED = (
    "rank", "target_modules", "method", "epochs", "batch_size", "gradient_accumulation",
    "max_tokens", "load_in_4bit", "gradient_checkpointing", "dtype", "processes", "sharding",
)  # fmt: skip
"""The settings of train on which a plan depends."""


class PlanCommand(Command):
    """A command that also takes the flags of train on which a plan depends."""

    @cached_property
    def flags(self) -> list[click.Option]:
        fields = config_class("train").model_fields
        return [_option(name, fields[name]) for name in PLANNED]


def _option(name: str, field: FieldInfo, bare: bool = False) -> click.Option:
    """The flag of a setting; with `bare`, one that is true or false may come without a value."""
    default = "required" if field.is_required() else f"default: {default_text(field) or 'none'}"
    if RESUME in field.metadata:
        default = ""  # it depends on the output, as the field's own text says
    notes = "; ".join(filter(None, [default, allowed_values(field)]))
    is_bare = bare and field.annotation is bool
    value: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_bare else {}
    is_location = any(mark in (INPUT, OUTPUT, RESUME) for mark in field.metadata)
    return click.Option(
        [flag(name), name],
        # The config class checks values, so that one wording serves flags and KFP parameters.
        type=click.UNPROCESSED,
        metavar="PATH" if is_location else "VALUE",
        help=f"{field.description} [{notes}]" if notes else field.description,
        **value,
    )
