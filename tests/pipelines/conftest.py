"""What the tests of the pipeline share: the compiled YAML, and Kubeflow's way with values."""

import copy
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from components.core.hardware import HardwareConfig, Placement, output_name
from pipelines import manifests
from pipelines.compile import compiled
from pipelines.k8s import kustomize
from pipelines.k8s.located import read

# libyaml's parser where it is there: hundreds of pipelines are read.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FAST_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

PLACEHOLDER = re.compile(
    r"\{\{\$\.(?:inputs|outputs)\.(parameters|artifacts)\['(\w+)'\](?:\.path)?\}\}"
)


def parse_pipeline(text: str) -> dict:
    """Both documents of a compiled pipeline: the specification and the Kubernetes settings."""
    specification, platforms = yaml.load_all(text, FAST_LOADER)
    return specification | platforms


def as_kubeflow(value: object) -> str:
    """A parameter's value as the backend writes it into a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:f}"
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def render(arguments: list[str], values: dict[str, object]) -> list[str]:
    """Fill placeholders: parameters from `values`, artifacts with a path of their name."""

    def fill(match: re.Match[str]) -> str:
        kind, name = match.groups()
        return as_kubeflow(values[name]) if kind == "parameters" else f"/artifacts/{name}"

    return [PLACEHOLDER.sub(fill, argument) for argument in arguments]


def tasks_of(pipeline: dict) -> dict[str, dict]:
    """Every container task by name, however deep it is nested."""
    dags = [pipeline["root"], *pipeline["components"].values()]
    return {
        name: task
        for component in dags
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if "dag" not in pipeline["components"][task["componentRef"]["name"]]
    }


CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['pipelinechannel--(?:hardware-)?(\w+)'\]\}\}")


def as_started(pipeline: dict, **given: object) -> dict:
    """The deployment of a run: what each step asks for once the hardware step has answered.

    Without the older spelling of amounts, which kfp writes beside the other for constants.
    """
    older = {"cpuLimit", "cpuRequest", "memoryLimit", "memoryRequest", "count", "type"}
    compiled = tasks_of(pipeline)["hardware"]["inputs"]["parameters"]["compiled"]
    settings = {"compiled": compiled["runtimeValue"]["constant"], "output": "-", **given}
    resolved = HardwareConfig.parse(settings).placements()

    def filled(value: object, stage: str) -> object:
        if isinstance(value, dict):
            return {key: filled(entry, stage) for key, entry in value.items() if key not in older}
        if isinstance(value, str) and (match := CHANNEL.fullmatch(value)):
            return of_hardware(match[1], stage)
        return value

    def of_hardware(name: str, stage: str) -> object:
        # Behind the gate the outputs are parameters of the nested pipeline, without the stage.
        return getattr(resolved, name if name not in FIELDS else output_name(stage, name))

    executors: dict = copy.deepcopy(pipeline["deploymentSpec"]["executors"])
    for name, executor in executors.items():
        resources = executor["container"].get("resources", {})
        executor["container"]["resources"] = filled(resources, name.removeprefix("exec-"))
    platforms = copy.deepcopy(pipeline["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    for name, settings in platforms.items():
        stage = name.removeprefix("exec-")
        selector, tolerations = settings.get("nodeSelector", {}), settings.get("tolerations", [])
        if "nodeSelectorJson" in selector:
            selector["labels"] = of_hardware(source_of(selector.pop("nodeSelectorJson")), stage)
        if tolerations and "tolerationJson" in tolerations[0]:
            settings["tolerations"] = list(
                of_hardware(source_of(tolerations[0]["tolerationJson"]), stage)
            )
    return {"executors": executors, "platforms": platforms}


FIELDS = set(Placement.model_fields)


def source_of(channel: dict) -> str:
    """The name of the parameter or output that a value comes from."""
    if "taskOutputParameter" in channel:
        return channel["taskOutputParameter"]["outputParameterKey"]
    name = channel["componentInputParameter"].removeprefix("pipelinechannel--")
    return name.removeprefix("hardware-")


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every scalar of nested data by its dotted path."""
    if isinstance(value, dict):
        items = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list):
        items = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        return {path: value}
    return {
        place: leaf
        for key, entry in items
        for place, leaf in leaves(entry, f"{path}.{key}" if path else key).items()
    }


def sources() -> dict[str, Path]:
    """Every folder that the pipeline can be compiled from, by its name."""
    overlays = sorted(path for path in manifests.OVERLAYS.iterdir() if path.is_dir())
    return {"base": manifests.BASE} | {path.name: path for path in overlays}


def compile_objects(objects: list[dict], path: Path) -> dict:
    """The pipeline compiled from objects as they come from `kubectl kustomize`.

    As `compiled` does it, but without writing YAML, and in a thread: kfp looks at the whole stack
    again and again, which is short there. Both halve the time of the many tests that compile.
    """
    from google.protobuf.json_format import MessageToDict

    from pipelines.raft import pipeline

    path.write_text(yaml.dump_all(objects, Dumper=FAST_DUMPER))
    jobs = manifests.all_jobs(read(path), path.name)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(pipeline, jobs).result()
    return MessageToDict(found.pipeline_spec) | MessageToDict(found.platform_spec)


def kubectl_kustomize(folder: Path) -> list[dict]:
    """The objects that kubectl itself prints for a folder."""
    command = [kustomize.kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.load_all(done.stdout, FAST_LOADER))


def job_of(objects: list[dict], stage: str) -> dict:
    (job,) = [found for found in objects if found["metadata"]["name"] == f"raft-{stage}"]
    return job


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[dict]]:
    """The objects of every source, as plain data."""
    return {
        name: [document.value for document in kustomize.render(folder)]
        for name, folder in sources().items()
    }


@pytest.fixture(scope="session")
def pipelines() -> dict[str, dict]:
    """The pipeline compiled from every source."""
    return {name: parse_pipeline(compiled(folder)) for name, folder in sources().items()}


@pytest.fixture(scope="session")
def compiled_text() -> str:
    return compiled()


@pytest.fixture(scope="session")
def pipeline(compiled_text: str) -> dict:
    return parse_pipeline(compiled_text)


@pytest.fixture(scope="session")
def study() -> dict:
    from pipelines.compile import compiled

    return parse_pipeline(compiled(name="study"))
