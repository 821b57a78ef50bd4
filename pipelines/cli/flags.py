"""Commands whose flags are the fields of a config class.

A config class is read when its flags are first asked for. Every such flag takes a value as text
(`--flag true`), because that is how Kubeflow hands parameters over.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click
from pydantic.fields import FieldInfo

from components.core.config import INPUT, KEPT, OUTPUT, allowed_values, default_text, flag, group_of
from pipelines.stages import COMMANDS, EXECUTOR_INPUT, config_class, run_stage, run_step


class Command(click.Command):
    """A command with --debug that takes no flag twice: the last would win without a word."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        explain = "Show the traceback of an error."  # which ending.py does
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help=explain)
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(args=list(args))[2]
        for parameter, count in Counter(given).items():
            if count > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
                raise click.UsageError(f"{parameter.opts[0]} is given {count} times", ctx)
        return super().parse_args(ctx, args)


class StageCommand(Command):
    """A command of pipelines/stages.py: its flags are its settings."""

    def __init__(self, name: str) -> None:
        summary = COMMANDS[name].summary
        super().__init__(name, help=summary, short_help=summary)
        self.stage = name

    @cached_property
    def flags(self) -> list[click.Option]:
        fields = config_class(self.stage).model_fields
        executor_input = click.Option(
            [flag(EXECUTOR_INPUT), EXECUTOR_INPUT],
            metavar="JSON",
            help="Set by Kubeflow Pipelines; do not pass it yourself.",
        )
        return [*(_option(name, field) for name, field in fields.items()), executor_input]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*self.flags, *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        fields = config_class(self.stage).model_fields
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = group_of(fields[parameter.name]) if parameter.name in fields else "Other"
                sections.setdefault(group, []).append(record)
        for title in ("Output", "Other"):  # in this order at the end
            sections[title] = sections.pop(title)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write_text(COMMANDS[self.stage].example)

    def settings(self, ctx: click.Context) -> dict[str, object]:
        """The settings that flags were given for, as text and in the order of the config class."""
        given = ((name, ctx.params[name]) for name in config_class(self.stage).model_fields)
        return {name: value for name, value in given if value is not None}

    def invoke(self, ctx: click.Context) -> None:
        config, given = config_class(self.stage), self.settings(ctx)
        executor_input = ctx.params[EXECUTOR_INPUT]
        if executor_input:
            run_step(config, given, executor_input)
        else:
            run_stage(config.parse(given))


PLANNED = (
    "profile", "rank", "target_modules", "method", "epochs", "batch_size", "gradient_accumulation",
    "max_tokens", "load_in_4bit", "gradient_checkpointing", "dtype", "processes", "sharding",
    "prices",
)  # fmt: skip
"""The settings of train on which a plan depends."""


class PlanCommand(Command):
    """A command that also takes the flags of train on which a plan depends."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(parameter.name == PLANNED[0] for parameter in self.params):
            fields = config_class("train").model_fields
            self.params += [_option(name, fields[name], name == "profile") for name in PLANNED]
        return super().get_params(ctx)


def _option(name: str, field: FieldInfo, required: bool = False) -> click.Option:
    if required or KEPT in field.metadata:
        default = ""  # that of the latter depends on the output, as the field's own text says
    else:
        needed = field.is_required()
        default = "required" if needed else f"default: {default_text(field) or 'none'}"
    notes = "; ".join(filter(None, [default, allowed_values(field)]))
    return click.Option(
        [flag(name), name],
        required=required,
        # The config class checks values, so that one wording serves flags and KFP parameters.
        type=click.UNPROCESSED,
        metavar=_metavar(name, field),
        help=f"{field.description} [{notes}]" if notes else field.description,
    )


def _metavar(name: str, field: FieldInfo) -> str:
    if any(mark in (INPUT, OUTPUT, KEPT) for mark in field.metadata):
        return "MODEL" if name == "base_model" else "PATH"
    kinds: Mapping[object, str] = {
        int: "N",
        float: "X",
        bool: "BOOL",
        str: "TEXT",
        tuple[str, ...]: "A,B",
        tuple[int, ...]: "N,N",
        tuple[dict[str, Any], ...]: "JSON",
    }
    return kinds.get(field.annotation, "WORD")
