"""Components and the compiled pipeline repeat the stages' configs: here they are held equal."""

import importlib
import re
from typing import Literal, get_origin

import click
import pytest
import yaml

from components.config import INPUT, OUTPUT, StageConfig, flag
from pipelines.cli import STAGES, raft
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import render

KFP_TYPES = {int: "Integer", float: "Float", bool: "Boolean", str: "String"}

# Not in any signature, on purpose: the folder comes from Kubeflow, the rest from the image.
NOT_EXPOSED = {"output", "prices"}


def config_of(stage: str) -> type[StageConfig]:
    package, class_name, _ = STAGES[stage]
    return getattr(importlib.import_module(f"{package}.config"), class_name)


def component_of(stage: str):
    package = STAGES[stage][0]
    module = importlib.import_module(f"{package}.component")
    return getattr(module, package.rpartition(".")[2])


def parse(stage: str, arguments: list[str]) -> StageConfig:
    """Parse arguments as `raft <stage>` does, with its real command and config class."""
    context = raft.commands[stage].make_context(stage, list(arguments))
    given = {name: value for name, value in context.params.items() if value is not None}
    given.pop("debug", None)
    return config_of(stage).parse(given)


def executor(pipeline: dict, stage: str) -> dict:
    return pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]


def kfp_type(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "String"
    return "List[String]" if annotation == tuple[str, ...] else KFP_TYPES[annotation]


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_fields_with_the_same_type_and_default(stage: str) -> None:
    fields = config_of(stage).model_fields
    inputs = component_of(stage).component_spec.inputs
    for name, declared in inputs.items():
        field = fields[name]
        assert declared.description, name
        if declared.type.startswith("system."):
            assert INPUT in field.metadata, name
            continue
        assert declared.type == kfp_type(field.annotation), name
        assert declared.optional is not field.is_required(), name
        if declared.optional:
            default = field.default
            assert declared.default == (list(default) if isinstance(default, tuple) else default)
    assert set(fields) - set(inputs) == NOT_EXPOSED


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_flags_are_the_flags_of_the_command(stage: str, pipeline: dict) -> None:
    container = executor(pipeline, stage)
    component = pipeline["components"][f"comp-{stage}"]
    inputs = component["inputDefinitions"]
    flags = container["args"][::2]
    assert container["command"] == ["raft", stage]
    assert sorted(flags) == sorted(
        flag(name) for name in [*inputs["parameters"], *inputs.get("artifacts", {}), "output"]
    )

    fields = config_of(stage).model_fields
    values = {
        name: parameter.get("defaultValue", f"gs://bucket/{name}")
        for name, parameter in inputs["parameters"].items()
    }
    # protobuf keeps whole numbers as floats; the backend writes them without a fraction.
    for name, parameter in inputs["parameters"].items():
        if parameter["parameterType"] == "NUMBER_INTEGER":
            values[name] = int(values[name])
    config = parse(stage, render(container["args"], values))
    for name in inputs["parameters"]:
        expected = values[name] if fields[name].is_required() else fields[name].default
        assert getattr(config, name) == expected, name
    for name in inputs.get("artifacts", {}):
        assert getattr(config, name) == f"/artifacts/{name}"
    (artifact,) = component["outputDefinitions"]["artifacts"]
    assert config.output == f"/artifacts/{artifact}"


def test_every_parameter_reaches_the_stage(pipeline: dict) -> None:
    container = executor(pipeline, "train")
    changed = {
        "base_model": "org/model", "rank": 8, "alpha": 16, "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"], "epochs": 0.5, "learning_rate": 0.000015,
        "warmup_ratio": 0.1, "batch_size": 2, "gradient_accumulation": 8, "max_tokens": 512,
        "gradient_checkpointing": False, "dtype": "float32", "seed": 7,
    }  # fmt: skip
    config = parse("train", render(container["args"], changed))
    changed["target_modules"] = ("q_proj", "v_proj")
    assert {name: getattr(config, name) for name in changed} == changed


def test_pipeline_parameters_default_to_the_stages_defaults(pipeline: dict) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    used = set()
    for stage, task in pipeline["root"]["dag"]["tasks"].items():
        of_stage = pipeline["components"][f"comp-{stage}"]["inputDefinitions"]["parameters"]
        for name, source in task["inputs"]["parameters"].items():
            parameter = source["componentInputParameter"]
            used.add(parameter)
            assert parameter == name
            assert parameters[parameter]["parameterType"] == of_stage[name]["parameterType"]
            if "defaultValue" in of_stage[name]:
                assert parameters[parameter]["defaultValue"] == of_stage[name]["defaultValue"]
    assert used == set(parameters)
    assert {name for name, found in parameters.items() if "defaultValue" not in found} == {
        "documents",
        "questions",
    }


def test_every_parameter_is_explained(pipeline: dict) -> None:
    found = [
        *pipeline["root"]["inputDefinitions"]["parameters"].items(),
        *(
            entry
            for component in pipeline["components"].values()
            for kind in component["inputDefinitions"].values()
            for entry in kind.items()
        ),
    ]
    assert len(found) > 60
    for name, definition in found:
        assert definition.get("description", "").endswith("."), name


@pytest.mark.parametrize("stage", STAGES)
def test_job_arguments_are_the_commands(stage: str) -> None:
    base = REPOSITORY / "k8s" / "base"
    settings = yaml.safe_load((base / "settings.yaml").read_text())["data"]
    job = yaml.safe_load((base / f"{stage}.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], argument)
        for argument in container["args"]
    ]
    config = parse(stage, arguments)
    for name, field in config_of(stage).model_fields.items():
        if field.is_required() and name != "base_model":
            assert getattr(config, name).startswith("gs://"), name
        if OUTPUT in field.metadata:
            assert getattr(config, name).startswith(settings["RAFT_RUN"])


def test_an_unknown_flag_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse("train", ["--ranks", "8"])
