"""What the tests of the pipeline share: the compiled YAML, and Kubeflow's way with values."""

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from components.core.hardware import HardwareConfig
from components.core.progress import console
from pipelines import manifests
from pipelines.cli import main
from pipelines.cluster import connection, kubeflow, watch
from pipelines.compile import compiled
from pipelines.k8s import kustomize
from pipelines.k8s.located import read
from tests.conftest import REPOSITORY
from tests.gcs import Emulator
from tests.pipelines.kubeflow.server import KfpServer, serving

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


def form_values(pipeline: dict, **given: object) -> dict[str, object]:
    """The pipeline's parameters in a run: what it is given, or their defaults."""
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    return {name: entry.get("defaultValue") for name, entry in declared.items()} | given


CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['pipelinechannel--hardware-(\w+)'\]\}\}")


def as_started(pipeline: dict, **given: object) -> dict:
    """The deployment of a run: what each step asks for once the hardware step has answered.

    Without the older spelling of amounts, which kfp writes beside the other for constants.
    """
    older = {"cpuLimit", "cpuRequest", "memoryLimit", "memoryRequest", "count", "type"}
    compiled = tasks_of(pipeline)["hardware"]["inputs"]["parameters"]["compiled"]
    values = form_values(pipeline, **given)
    known = {name: value for name, value in values.items() if value is not None}
    fields = {name: known[name] for name in HardwareConfig.model_fields.keys() & known.keys()}
    settings = {"compiled": compiled["runtimeValue"]["constant"], "output": "-", **fields}
    resolved = HardwareConfig.parse(settings).outputs()

    def filled(value: object) -> object:
        if isinstance(value, dict):
            return {key: filled(entry) for key, entry in value.items() if key not in older}
        if isinstance(value, str) and (match := CHANNEL.fullmatch(value)):
            return getattr(resolved, match[1])
        return value

    executors: dict = copy.deepcopy(pipeline["deploymentSpec"]["executors"])
    for executor in executors.values():
        container = executor["container"]
        container["resources"] = filled(container.get("resources", {}))
        container["image"] = filled(container["image"])
    platforms = copy.deepcopy(pipeline["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    for settings in platforms.values():
        for secret in settings.get("secretAsEnv", []):
            source = secret["secretNameParameter"]
            if "componentInputParameter" in source:
                secret["secretName"] = values[source_of(source)]
        selector, tolerations = settings.get("nodeSelector", {}), settings.get("tolerations", [])
        if "nodeSelectorJson" in selector:
            selector["labels"] = getattr(resolved, source_of(selector.pop("nodeSelectorJson")))
        if tolerations and "tolerationJson" in tolerations[0]:
            source = source_of(tolerations[0]["tolerationJson"])
            settings["tolerations"] = list(getattr(resolved, source))
    return {"executors": executors, "platforms": platforms}


def source_of(channel: dict) -> str:
    """The name of the parameter or output that a value comes from."""
    if "taskOutputParameter" in channel:
        return channel["taskOutputParameter"]["outputParameterKey"]
    name = channel["componentInputParameter"].removeprefix("pipelinechannel--")
    return name.removeprefix("hardware-")


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first place of a text in a file."""
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def line_of(path: Path, text: str) -> int:
    """The line in which a text first begins."""
    return path.read_text().split(text)[0].count("\n") + 1


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
    jobs = manifests.jobs_among(read(path))
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


Leave = Callable[..., tuple[int, str, str]]


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str]) -> Leave:
    """Exit code, standard output and standard error of a command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        console.cache_clear()  # it keeps the standard error of an earlier test
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(left.value.code or 0), out, err

    return run


PIPELINE = REPOSITORY / "pipelines" / "raft.yaml"
INPUTS = {
    "documents": "gs://bucket/documents",
    "questions": "gs://bucket/questions.json",
    "teacher": "extractive",
}


@pytest.fixture
def server(gcs: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    """A Kubeflow server that is asked without pauses."""
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(watch, "SECONDS_BEFORE_RETRY", 0.01)
    monkeypatch.setitem(connection.RETRIES, "backoff_factor", 0.01)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    for name in (kubeflow.TOKEN, kubeflow.COOKIES, "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with serving(KfpServer()) as kfp:
        yield kfp


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump(INPUTS), encoding="utf-8")
    return path


@pytest.fixture
def submitted(leave: Leave, server: KfpServer, parameters: Path) -> Leave:
    """The same of `raft submit` with parameters and the server."""
    words = ("submit", "--pipeline", PIPELINE, "--parameters", parameters, "--host", server.url)
    return lambda *more: leave(*words, *more)


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
