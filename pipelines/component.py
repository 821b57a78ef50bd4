"""Makes Kubeflow components and pipeline parameters from the stages' config classes.

A setting is written once, in its config class: the parameter of the component with its type,
default and description, and the flag in the container's arguments follow from it. kfp reads
signatures and docstrings, so a function is given the ones that the config class implies.

    train = component("train")      # a kfp component: train(dataset=..., base_model=..., rank=64)
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from components.core.config import allowed_values, flag, group_of, in_pipeline
from components.core.declaration import Declaration

EMPTY = inspect.Parameter.empty
ANY_WAY = inspect.Parameter.POSITIONAL_OR_KEYWORD
PARAMETERS = {"text": str, "object": dict, "list": list}
"""Outputs that are no artifacts."""

Form = Mapping[str, Sequence[str]]
"""The settings that are parameters of a pipeline, each with the stages that have it."""


@cache
def declaration(stage: str) -> Declaration:
    """The declaration of a stage ("quantize-check"), or of the step `hardware`."""
    room = "core.hardware" if stage == "hardware" else f"{stage.replace('-', '_')}.component"
    module = importlib.import_module(f"components.{room}")
    declared: Declaration = module.DECLARATION
    return declared


def image(stage: str) -> str:
    """The image that a checkout builds; the Job manifest's `image:` replaces it in a pipeline."""
    return f"raft-{stage}:{version('raft-pipelines')}"


@cache
def component(stage: str) -> Any:
    """A stage, or the step `hardware`, as a KFP container component."""
    from kfp import dsl

    declared = declaration(stage)
    every = declared.config.model_fields.items()
    fields = {name: field for name, field in every if in_pipeline(field)}
    main = next(iter(declared.outputs))
    arguments: dict[str, tuple[Any, Any, str]] = {
        name: (kfp_type(field), _default(field), describe(field)) for name, field in fields.items()
    }
    for name, kind in declared.inputs.items():
        arguments[name] = (dsl.Input[getattr(dsl, kind)], EMPTY, describe(fields[name]))
    for name, output in declared.outputs.items():
        value = PARAMETERS.get(output.kind)
        place = dsl.OutputPath(value) if value else dsl.Output[getattr(dsl, output.kind)]
        arguments[name] = (place, EMPTY, output.description)

    @with_signature(stage.replace("-", "_"), declared.description, arguments)
    def build(**values: Any) -> dsl.ContainerSpec:
        flags: list[Any] = []
        for name in fields:
            flags += [flag(name), values[name].path if name in declared.inputs else values[name]]
        return dsl.ContainerSpec(
            image=image("generate" if stage == "hardware" else stage),
            command=["raft", stage],
            args=[
                *flags,
                *("--output", values[main].path),
                *("--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER),
            ],
        )

    return dsl.container_component(build)


Arguments = Mapping[str, tuple[Any, Any, str]]
"""Type, default (EMPTY for none) and description of each argument of a function."""


def with_signature(
    name: str, description: str, arguments: Arguments
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function of keywords the name, signature and docstring that kfp reads."""
    in_order = dict(sorted(arguments.items(), key=lambda item: item[1][1] is not EMPTY))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            return function(**dict(zip(in_order, values, strict=True)))

        call.__name__ = name
        lines = [f"    {key}: {text}" for key, (_, _, text) in in_order.items()]
        call.__doc__ = "\n".join([description, "", "Args:", *lines])
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(key, ANY_WAY, annotation=kind, default=default)
                for key, (kind, default, _) in in_order.items()
            ]
        )
        return call

    return decorate


def pipeline_arguments(form: Form, defaults: Mapping[str, Any]) -> Arguments:
    """The parameters of a pipeline, from the settings in its form.

    Args:
        form: the settings, in the order of the parameters.
        defaults: defaults that differ from the config class's, by name.
    """
    arguments: dict[str, tuple[Any, Any, str]] = {}
    for name, (stage, *_) in form.items():
        field = declaration(stage).config.model_fields[name]
        text = f"{group_of(field)}. {describe(field)}"
        arguments[name] = (kfp_type(field), defaults.get(name, _default(field)), text)
    return arguments


def describe(field: FieldInfo) -> str:
    """A setting's help, and what it may be."""
    allowed, text = allowed_values(field), str(field.description)
    return f"{text.rstrip('.')} (allowed: {allowed})." if allowed else text


def kfp_type(field: FieldInfo) -> Any:
    """The type of a parameter: KFP refuses Literal, and has no tuples."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is dict:
        return dict
    if get_origin(annotation) is tuple:
        (item, *_) = get_args(annotation)
        return list[item] if item in (str, int) else list  # type: ignore[valid-type]
    return annotation


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return EMPTY
    return list(field.default) if isinstance(field.default, tuple) else field.default
