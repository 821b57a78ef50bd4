"""What the test server refuses of pipelines and parameters, and the dashboard's way to a run."""

import copy
import re
from collections.abc import Callable

import pytest
import yaml

from pipelines.cluster import kubeflow
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import INPUTS, PIPELINE
from tests.pipelines.kubeflow.run import Run
from tests.pipelines.kubeflow.server import KfpServer, serving
from tests.pipelines.kubeflow.specification import Refused, check_parameters, check_pipeline


def test_the_dashboards_way_upload_then_run_a_version() -> None:
    with serving(KfpServer()) as server, kubeflow.explained(server.url):
        client = kubeflow.connect(server.url)
        pipeline = client.upload_pipeline(str(PIPELINE), "raft")
        version = client.upload_pipeline_version(
            str(PIPELINE), "second", pipeline_id=pipeline.pipeline_id
        )
        home = client.create_experiment("raft")
        run = client.run_pipeline(
            home.experiment_id, "run", pipeline_id=pipeline.pipeline_id,
            version_id=version.pipeline_version_id, params=INPUTS,
        )  # fmt: skip
        assert client.get_pipeline_id("raft") == pipeline.pipeline_id
    assert server.runs[run.run_id].documents == list(yaml.safe_load_all(PIPELINE.read_text()))


def test_the_form_of_the_docs_starts_a_run_that_succeeds() -> None:
    """The page's picture of the form, filled in as it says."""
    page = (REPOSITORY / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    block = page.split("Run parameters\n")[1].split("…")[0]
    lines = [line.split() for line in block.splitlines() if line.strip()]
    fields = [(name, kind, " ".join(value)) for name, kind, *value in lines]
    assert [name for name, _, _ in fields] == sorted(name for name, _, _ in fields)
    documents = list(yaml.safe_load_all(PIPELINE.read_text(encoding="utf-8")))
    declared = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert {name: kind for name, kind, _ in fields} == {
        name: declared[name]["parameterType"] for name, _, _ in fields
    }
    values = {name: value for name, _, value in fields}
    check_parameters(documents[0], values)
    (root,) = re.findall(r"Pipeline root +(\S+)", page)
    request = {"runtime_config": {"parameters": values, "pipeline_root": root}}
    run = Run(request, documents).to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    (train,) = [pod for pod in run.tasks.pods if pod.task == "train"]
    assert train.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


def tasks_around(pipeline: dict, name: str) -> dict:
    """The graph, at whatever depth, that holds a task."""
    graphs = [pipeline["root"], *(c for c in pipeline["components"].values() if "dag" in c)]
    (tasks,) = [graph["dag"]["tasks"] for graph in graphs if name in graph["dag"]["tasks"]]
    assert isinstance(tasks, dict)
    return tasks


def container_of(pipeline: dict, name: str) -> dict:
    container: dict = pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return container


DAMAGES: list[tuple[Callable[[dict], object], str]] = [
    (lambda p: p.update(nonsense=1), "nonsense"),
    (lambda p: p["pipelineInfo"].update(name="Raft!"), "invalid pipeline name"),
    (lambda p: p["components"].pop("comp-train"), "unknown component"),
    (lambda p: container_of(p, "train").update(image=""), "no image"),
    (lambda p: container_of(p, "train")["args"].append("{{$.inputs.parameters['nothing']}}"),
     "placeholder of unknown inputs 'nothing'"),
    (lambda p: tasks_around(p, "train")["generate"].update(dependentTasks=["train"]), "cycle"),
    (lambda p: tasks_around(p, "generate")["generate"]["inputs"].pop("parameters"),
     "lacks required input 'documents'"),
    (lambda p: p["root"]["inputDefinitions"]["parameters"]["rank"].update(parameterType="STRING"),
     "is STRING, not NUMBER_INTEGER"),
    (lambda p: tasks_around(p, "quantize-check")["quantize-check"]["inputs"]["artifacts"][
        "adapter"]["taskOutputArtifact"].update(outputArtifactKey="model"),
     "has no output 'model'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES, ids=[text for _, text in DAMAGES])
def test_the_server_refuses_what_the_backend_refuses(
    damage: Callable[[dict], object], complaint: str
) -> None:
    documents = list(yaml.safe_load_all(PIPELINE.read_text()))
    check_pipeline(copy.deepcopy(documents))
    damage(documents[0])
    with pytest.raises(Refused, match=complaint):
        check_pipeline(documents)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"documents": "d"}, "teacher is required"),
        ({**INPUTS, "rank": "8"}, "requires type NUMBER_INTEGER"),
        ({**INPUTS, "rank": 8.5}, "requires an integer"),
        ({**INPUTS, "colour": "red"}, "colour is not defined"),
    ],
)
def test_the_server_refuses_parameters(parameters: dict, complaint: str) -> None:
    specification = next(yaml.safe_load_all(PIPELINE.read_text()))
    with pytest.raises(Refused, match=complaint):
        check_parameters(specification, parameters)
