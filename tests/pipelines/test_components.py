"""Components and the compiled pipeline repeat the stages' configs: here they are held equal."""

import importlib
import inspect
import re
from typing import Literal, get_args, get_origin

import click
import pytest
import yaml

from components.core.config import Settings, flag, in_pipeline
from components.core.hardware import GPU_STEPS
from components.core.locations import INPUT, OUTPUT, resume_dir
from pipelines import component as factory
from pipelines.cli import raft
from pipelines.component import describe
from pipelines.stages import STAGES, config_class
from pipelines.trials import FIELDS, settings_of
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import render, tasks_of

KFP_TYPES = {int: "Integer", float: "Float", bool: "Boolean", str: "String", dict: "Dict"}

SHOWN = {"system.Metrics", "system.HTML", "system.Markdown"}


@pytest.fixture(params=["pipeline", "study"])
def each(request: pytest.FixtureRequest) -> dict:
    """Both compiled pipelines in turn."""
    found: dict = request.getfixturevalue(request.param)
    return found


def component_of(stage: str):
    if stage not in STAGES:
        return getattr(importlib.import_module("pipelines.light_steps"), stage)
    return factory.component(stage)


def parse(stage: str, arguments: list[str]) -> Settings:
    """Parse arguments as `raft <stage>` does, with its real command and config class."""
    context = raft.commands[stage].make_context(stage, list(arguments))
    given = {name: value for name, value in context.params.items() if value is not None}
    given.pop("executor_input", None)
    return config_class(stage).parse(given)


def executor(pipeline: dict, stage: str) -> dict:
    return pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]


def kfp_type(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "String"
    if get_origin(annotation) is dict:
        return "Dict"
    if get_origin(annotation) is tuple:
        return {str: "List[String]", int: "List[Integer]"}.get(get_args(annotation)[0], "List")
    return KFP_TYPES[get_origin(annotation) or annotation]


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_fields_with_the_same_type_and_default(stage: str) -> None:
    fields = config_class(stage).model_fields
    inputs = component_of(stage).component_spec.inputs
    assert set(inputs) == {name for name, field in fields.items() if in_pipeline(field)}
    parameters = {name: found for name, found in inputs.items() if "system." not in found.type}
    for name, declared in parameters.items():
        field = fields[name]
        assert declared.description == describe(field), name
        assert declared.type == kfp_type(field.annotation), name
        assert declared.optional is not field.is_required(), name
    for name in inputs.keys() - parameters.keys():
        assert INPUT in fields[name].metadata, name


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_flags_are_the_flags_of_the_command(stage: str, pipeline: dict) -> None:
    container = executor(pipeline, stage)
    component = pipeline["components"][f"comp-{stage}"]
    inputs = component["inputDefinitions"]
    flags = container["args"][::2]
    assert container["command"] == ["raft", stage]
    assert sorted(flags) == sorted(
        flag(name)
        for name in [
            *inputs["parameters"], *inputs.get("artifacts", {}), "output", "executor_input"
        ]
    )  # fmt: skip
    assert container["args"][-2:] == ["--executor-input", "{{$}}"]

    fields = config_class(stage).model_fields
    values = {
        name: parameter.get("defaultValue", f"gs://bucket/{name}")
        for name, parameter in inputs["parameters"].items()
    }
    if stage == "generate":
        values["teacher"] = "extractive"
    # protobuf keeps whole numbers as floats; the backend writes them without a fraction.
    for name, parameter in inputs["parameters"].items():
        if parameter["parameterType"] == "NUMBER_INTEGER":
            values[name] = int(values[name])
    config = parse(stage, render(container["args"], values))
    for name in inputs["parameters"]:
        expected = values[name] if fields[name].is_required() else fields[name].default
        if name == config.resume_field() and config.resume_dir_for_local:
            expected = resume_dir(config.output, name)
        assert getattr(config, name) == expected, name
    for name in inputs.get("artifacts", {}):
        assert getattr(config, name) == f"/artifacts/{name}"
    outputs = component["outputDefinitions"]["artifacts"]
    kinds = {name: found["artifactType"]["schemaTitle"] for name, found in outputs.items()}
    (folder,) = (name for name, kind in kinds.items() if kind not in SHOWN)
    assert config.output == f"/artifacts/{folder}"
    assert SHOWN & set(kinds.values()), "something to see on the run's page"


def test_every_parameter_reaches_the_stage(pipeline: dict) -> None:
    container = executor(pipeline, "train")
    changed = {
        "base_model": "org/model", "base_revision": "v2", "state": "gs://b/state",
        "rank": 8, "alpha": 16, "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"], "epochs": 0.5, "learning_rate": 0.000015,
        "warmup_ratio": 0.1, "batch_size": 2, "gradient_accumulation": 8, "max_tokens": 512,
        "gradient_checkpointing": False, "dtype": "float32", "seed": 7,
        "checkpoint_steps": 5, "checkpoint_minutes": 2.5,
        "max_too_long": 0.5, "batching": "grouped",
        "load_in_4bit": False, "gpu": "", "processes": 2, "method": "full", "sharding": "none",
        "allow_template_mismatch": True, "gpus": "2", "allow_cpu": True, "target": "answer",
        "keep_oracle": 0.5, "max_distractors": 2,
        "template_extra": {"enable_thinking": False}, "report_to": ["wandb"],
    }  # fmt: skip
    config = parse("train", render(container["args"], changed))
    changed |= {"target_modules": ("q_proj", "v_proj"), "report_to": ("wandb",)}
    assert {name: getattr(config, name) for name in changed} == changed


def source_of(task: dict, name: str) -> str:
    """The pipeline parameter behind a task's input, through nested graphs."""
    found = task["inputs"]["parameters"][name].get("componentInputParameter", "")
    return found.removeprefix("pipelinechannel--")


WITHOUT_DEFAULT = {("hardware", name) for name in ("base_model", "teacher", "trials")}
"""What the first step reads if it is given; the pipelines have defaults of their own, or none."""


def test_pipeline_parameters_default_to_the_stages_defaults(each: dict) -> None:
    parameters = each["root"]["inputDefinitions"]["parameters"]
    used = set()
    for stage, task in tasks_of(each).items():
        component = each["components"][f"comp-{stage}"]
        of_stage = component.get("inputDefinitions", {}).get("parameters", {})
        for flag_name, definition in of_stage.items():
            source = source_of(task, flag_name) if flag_name in task["inputs"]["parameters"] else ""
            if source not in parameters:
                continue
            used.add(source)
            expected = {"eval_questions": "questions"}.get(flag_name, flag_name)
            assert source == expected, "the questions of eval are what generate keeps out"
            assert parameters[source]["parameterType"] == definition["parameterType"]
            if "defaultValue" in definition and (stage, flag_name) not in WITHOUT_DEFAULT:
                assert parameters[source]["defaultValue"] == definition["defaultValue"]
    assert used | {"trials"} >= set(parameters)
    required = {name for name, found in parameters.items() if "defaultValue" not in found}
    assert required == {"documents", "teacher"}


@pytest.mark.parametrize(("name", "most"), [("pipeline", 32), ("study", 25)])
def test_the_form_is_short_and_explains_every_field(
    name: str, most: int, request: pytest.FixtureRequest
) -> None:
    pipeline = request.getfixturevalue(name)
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= most
    for field, found in parameters.items():
        heading, _, sentence = found["description"].partition(". ")
        assert heading and (sentence or field == "seed"), f"{field}: a group, then what it is"
        assert found["parameterType"] in {
            "STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST", "STRUCT",
        }, field  # fmt: skip


def test_the_description_lists_the_fields_in_the_order_of_a_persons_thoughts(each: dict) -> None:
    """The dashboard has them in alphabetical order, without a word."""
    parameters = each["root"]["inputDefinitions"]["parameters"]
    table = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*) \|$", each["pipelineInfo"]["description"], re.M
    )
    order = [field for field, _, _ in table]
    assert sorted(order) == sorted(parameters)
    assert order[:2] == ["documents", "questions"]
    assert order.index("teacher") < order.index("max_tokens") < order.index("max_questions")
    assert order.index("max_questions") < order.index("gpu") < order.index("train_gpus")
    cells = {field: (default, text) for field, default, text in table}
    assert cells["documents"] == ("required", cells["documents"][1])
    assert cells["max_chunks"][0] == "300"
    for field, (_, text) in cells.items():
        assert parameters[field]["description"].endswith(text.replace("\\|", "|")), field
    page = (REPOSITORY / "docs" / "kubeflow.md").read_text()
    assert all(f"{default} | {text} |" in page for default, text in cells.values())


def test_the_defaults_of_the_study_are_settings_of_train(study: dict) -> None:
    trials = study["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    assert len(trials) == 4
    for trial in trials:
        assert trial.keys() == FIELDS.keys()
        config_class("train").parse({"dataset": "d", "output": "o", **settings_of(trial, "train")})


def test_everything_on_the_dashboard_is_explained(each: dict) -> None:
    found = list(each["root"]["inputDefinitions"]["parameters"].items())
    for component in each["components"].values():
        if "executorLabel" in component:  # a graph's inputs carry what is explained outside
            inputs = component.get("inputDefinitions", {})
            found += [entry for kind in inputs.values() for entry in kind.items()]
    assert len(found) > 60
    for field, definition in found:
        if definition.get("parameterType") != "TASK_FINAL_STATUS":  # KFP drops its description
            assert definition.get("description", "").endswith("."), field


@pytest.mark.parametrize("stage", [*STAGES, "summary", "compare"])
def test_docstrings_explain_every_output(stage: str) -> None:
    """The compiler drops the words about outputs, but they are what a reader of the code has."""
    component = component_of(stage)
    text = inspect.getdoc(component.pipeline_func)
    assert component.component_spec.outputs
    for name in component.component_spec.outputs:
        assert re.search(rf"^ +{name}: \w.*", text or "", re.MULTILINE), name


def test_every_task_passes_every_parameter_of_its_component(each: dict) -> None:
    """Kubeflow Pipelines 2.17.0 ends a run at a task that relies on a default."""
    constants = 0
    for step, task in tasks_of(each).items():
        component = each["components"][task["componentRef"]["name"]]
        declared = component.get("inputDefinitions", {}).get("parameters", {})
        passed = task.get("inputs", {}).get("parameters", {})
        assert declared.keys() <= passed.keys(), step
        for key, definition in declared.items():
            if "runtimeValue" in passed[key] and step in STAGES:
                assert passed[key]["runtimeValue"]["constant"] == definition["defaultValue"], key
                constants += 1
    assert constants > 40


def test_gpu_counts_are_text(each: dict) -> None:
    """From a parameter of another type the driver reads no count, and the pod has no GPU."""
    count = executor(each, "train")["resources"]["accelerator"]["resourceCount"]
    (output,) = re.findall(r"pipelinechannel--hardware-(\w+)", count)
    outputs = each["components"]["comp-hardware"]["outputDefinitions"]["parameters"]
    assert outputs[output]["parameterType"] == "STRING"
    form = each["root"]["inputDefinitions"]["parameters"]
    assert form["train_gpus"]["parameterType"] == "STRING"


@pytest.mark.parametrize("stage", GPU_STEPS)
def test_a_step_knows_how_many_gpus_it_asks_for(stage: str, each: dict) -> None:
    count = executor(each, stage)["resources"]["accelerator"]["resourceCount"]
    (channel,) = re.findall(r"parameters\['(.+)'\]", count)
    given = tasks_of(each)[stage]["inputs"]["parameters"]
    assert given["gpus"] == given[channel]


def test_every_step_is_retried_for_days_and_none_is_cached(each: dict) -> None:
    tasks = tasks_of(each)
    assert set(STAGES) < tasks.keys()
    for step, task in tasks.items():
        assert task["retryPolicy"]["maxRetryCount"] == 3, step
        assert "enableCache" not in task["cachingOptions"], step
        if step in STAGES:
            # From the first attempt's start; the default hour would end retries of a long step.
            assert task["retryPolicy"]["backoffMaxDuration"] == "172800s", step


def test_the_exit_step_runs_whatever_happened(pipeline: dict) -> None:
    (task,) = (task for name, task in pipeline["root"]["dag"]["tasks"].items() if name == "summary")
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert task["inputs"]["parameters"]["status"]["taskFinalStatus"]
    container = executor(pipeline, "summary")
    assert container["command"] == ["raft", "summary"]
    assert container["image"] == executor(pipeline, "hardware")["image"], "no image of its own"
    assert "raft-generate:" in container["image"]
    assert "accelerator" not in container["resources"]


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
    for name, field in config_class(stage).model_fields.items():
        if field.is_required() and name not in ("base_model", "teacher"):
            assert getattr(config, name).startswith("gs://"), name
        if OUTPUT in field.metadata:
            assert getattr(config, name).startswith(settings["RAFT_RUN"])


def test_an_unknown_flag_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse("train", ["--ranks", "8"])
