"""What was seen on a real backend, held against what we compile, one test for each number.

The numbers are those of the notes on Kubeflow Pipelines 2.17.0 and 2.16.1. Facts about what the
server does are in test_kubeflow_server.py.
"""

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from components.core.kubeflow import Step
from pipelines.cluster import kubeflow
from pipelines.manifests import load_all
from tests.core.test_kubeflow import REPORT
from tests.pipelines.conftest import FAST_LOADER, INPUTS, PIPELINE, as_started
from tests.pipelines.kubeflow.server import API, KfpServer
from tests.pipelines.recorded_runs import NAMES, recording
from tests.pipelines.test_kubeflow_server import GPU, committed, pods, raft

# ---- K16: each hop takes about ten seconds -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "graphs"),
    [
        ("raft", {"root", "comp-exit-handler-1", "comp-condition-2"}),
        ("study", {"root", "comp-exit-handler-1", "comp-for-loop-2"}),
    ],
)
def test_k16_a_graph_within_a_graph_only_where_kfp_needs_one(name: str, graphs: set[str]) -> None:
    specification = committed(name)[0]
    components = {"root": specification["root"], **specification["components"]}
    assert {key for key, component in components.items() if "dag" in component} == graphs


def test_k16_a_run_has_no_more_hops_than_steps_and_graphs() -> None:
    """A driver and an executor for each of the six steps, and a driver for each of three graphs."""
    run = raft().to_the_end()
    hops = [node.display_name for node in run.nodes.by_name.values() if node.kind == "Pod"]
    assert len(hops) == 6 * 2 + 3, hops
    recorded = [name for name, kind, *_ in recording("e1s")["nodes"] if kind == "Pod"]
    assert len(recorded) == 5 * 2 + 4, "without the hardware step, but with a pipeline for the gate"


# ---- K18: artifacts, and what a step says of them ----------------------------------------------

RUN = re.compile(r"(?P<root>gs://bucket/kfp|minio://mlpipeline/v2/artifacts)/[\w-]+/[0-9a-f-]{36}")
ARTIFACT = re.compile(rf"{RUN.pattern}/(?P<step>[\w-]+)/[0-9a-f-]{{36}}/(?P<name>[\w-]+)")


OWN = {"generate": "dataset", "train": "adapter", "quantize-check": "quantization",
       "eval": "evaluation", "summary": "account", "compare": "comparison"}  # fmt: skip
"""The artifact that each step writes; what shows it, and the launcher's log, come beside it."""


def as_handed(value: Any, root: str) -> str:
    """A recorded executor input on another root, with UUIDs where the recording has numbers."""
    run = f"{root}/raft/{uuid.uuid4()}"
    folder = "/" + run.replace("gs://", "gcs/").replace("://", "/")
    text = json.dumps(value).replace('"/RUN/', f'"{folder}/').replace('"RUN/', f'"{run}/')
    return re.sub(r"(?<=/)(\d\d)(?=/)", r"\g<1>000000-0000-4000-8000-000000000000", text)


@pytest.mark.parametrize("root", ["gs://bucket/kfp", "minio://mlpipeline/v2/artifacts"])
@pytest.mark.parametrize("name", NAMES)
def test_k18_a_step_finds_its_artifacts_and_its_run(name: str, root: str) -> None:
    for task, recorded in recording(name)["executor_inputs"].items():
        text = as_handed(recorded, root)
        step = Step.parse(text)
        uri, folder = step.place
        match = ARTIFACT.fullmatch(uri)
        assert match and (match["step"], match["name"]) == (task, OWN[task])
        top = f"/{'gcs' if root.startswith('gs') else 'minio'}/{root.partition('://')[2]}/"
        assert folder.startswith(top) and folder.endswith(f"/{match['name']}"), "below the mount"
        assert step.output_file == f"{folder.rpartition('/')[0]}/output_metadata.json"
        assert RUN.fullmatch(step.run_folder) and uri.startswith(step.run_folder)
        assert step.state(task) == (f"{root}/state" if root.startswith("gs://") else "")
        read = step.folders_to_read(task)
        if inputs := json.loads(text)["inputs"].get("artifacts"):
            assert len(read) == sum(len(entry["artifacts"]) for entry in inputs.values())
            assert all(
                place.startswith("gs://" if root.startswith("gs") else top) for place in read
            )
        else:
            assert read == [step.run_folder]


def test_k18_metadata_goes_into_the_file_that_the_launcher_reads(tmp_path: Path) -> None:
    recorded = recording("e1s")["executor_inputs"]["quantize-check"]
    text = as_handed(recorded, "gs://bucket/kfp").replace('"/gcs/', f'"{tmp_path}/gcs/')
    text = text.replace('"/tmp/kfp/', f'"{tmp_path}/kfp/').replace('"gs://', f'"{tmp_path}/gcs/')
    Step.parse(text).announce(REPORT, tmp_path / "nothing")
    (file,) = tmp_path.rglob("output_metadata.json")
    announced = json.loads(file.read_text(encoding="utf-8"))
    outputs = json.loads(text)["outputs"]["artifacts"]
    assert announced["artifacts"].keys() == outputs.keys(), "one that is left out has no metadata"
    for key, entry in announced["artifacts"].items():
        (artifact,), (handed,) = entry["artifacts"], outputs[key]["artifacts"]
        assert (artifact["name"], artifact["uri"]) == (handed["name"], handed["uri"])
        assert artifact["metadata"]["memory_ratio"] == REPORT.memory_ratio
    assert (tmp_path / "kfp" / "outputs" / "decision").read_text(encoding="utf-8") == "stop"


# ---- K20: pods ---------------------------------------------------------------------------------


def asked_for(platform: dict[str, Any]) -> dict[str, Any]:
    """What a compiled step asks of its pod, in the form of the recorded pods."""
    user = platform["securityContext"]
    return {
        "labels": platform["podMetadata"]["labels"],
        "secrets": [
            {"name": key["envVar"], "valueFrom": {"secretKeyRef": {
                "key": key["secretKey"], "name": secret["secretName"],
                "optional": secret["optional"]}}}
            for secret in platform.get("secretAsEnv", [])
            for key in secret["keyToEnv"]
        ],
        "mounts": {one["mountPath"]: one["volumeName"] for one in platform["emptyDirMounts"]},
        "user": {"runAsUser": int(user["runAsUser"]), "runAsGroup": int(user["runAsGroup"]),
                 "runAsNonRoot": user["runAsNonRoot"]},
    }  # fmt: skip


@pytest.mark.parametrize("task", ["generate", "train", "quantize-check", "eval", "summary"])
def test_k20_the_compiled_step_asks_for_the_recorded_pod(task: str, pipeline: dict) -> None:
    recorded = recording("e1s")
    fields = recorded["pod_fields"][task]
    started = as_started(pipeline, memory="4Gi", train_gpus="1")
    platform = started["platforms"][f"exec-{task}"]
    asked = asked_for(platform)
    assert asked["labels"] == fields["labels"]
    if task == "summary":
        assert asked["secrets"] == [], "it read the teacher's without need"
    else:
        # generate reads the hub's too since then, for a teacher with GPUs of its own.
        assert all(secret in asked["secrets"] for secret in fields["secrets"])
    assert all(secret["valueFrom"]["secretKeyRef"]["optional"] for secret in asked["secrets"])
    assert fields["mounts"].items() <= asked["mounts"].items()
    assert asked["user"].items() <= fields["security_context"].items()
    (pod,) = [pod for pod in recorded["pods"] if pod["step"] == task]
    assert platform.get("nodeSelector", {}).get("labels", {}) == pod["node_selector"]
    assert platform.get("tolerations", []) == pod["tolerations"]
    run = raft(memory="4Gi", train_gpus="1").to_the_end()
    (started_pod,) = pods(run, task)
    limits = started_pod.resources["limits"]
    assert {name: amount for name, amount in limits.items() if amount != "0"} == pod["limits"]
    assert (GPU in pod["limits"]) is (task in ("train", "quantize-check", "eval"))


def test_k20_the_backend_gives_steps_the_security_that_the_jobs_ask_for() -> None:
    """It sets capabilities and seccomp by itself; kfp has no way to ask for them."""
    jobs = load_all()
    for task, fields in recording("e1s")["pod_fields"].items():
        job = jobs["generate" if task == "summary" else task]
        context = fields["security_context"]
        assert context["seccompProfile"] == job.pod.security_context.seccomp_profile
        wanted = {key: job.container.security_context[key]
                  for key in ("allowPrivilegeEscalation", "capabilities")}  # fmt: skip
        assert wanted.items() <= context.items()
        assert fields["restart_policy"] == job.pod.restart_policy


# ---- K21: two documents in one file ------------------------------------------------------------


def toleration_keys(server: KfpServer) -> list[str]:
    """Of train's pod, which only the second document of the pipeline gives any."""
    (run,) = server.runs.values()
    (train,) = pods(run.to_the_end(), "train")
    return [toleration["key"] for toleration in train.tolerations]


def test_k21_the_upload_form_takes_both_documents(server: KfpServer) -> None:
    """As a browser sends it, then a run of the version that is there."""
    with PIPELINE.open("rb") as file:
        answer = requests.post(
            f"{server.url}{API}/pipelines/upload?name=raft", files={"uploadfile": file}, timeout=60
        )
    assert answer.status_code == 200, answer.text
    (version,) = server.versions
    assert version["pipeline_spec"].keys() == {"pipeline_spec", "platform_spec"}
    client = kubeflow.connect(server.url)
    client.run_pipeline(
        client.create_experiment("raft").experiment_id, "run", params=INPUTS,
        pipeline_id=version["pipeline_id"], version_id=version["pipeline_version_id"],
    )  # fmt: skip
    assert toleration_keys(server) == [GPU]


def test_k21_the_client_takes_both_documents(server: KfpServer) -> None:
    client = kubeflow.connect(server.url)
    client.create_run_from_pipeline_package(str(PIPELINE), INPUTS)
    (run,) = server.runs.values()
    assert run.documents == list(yaml.load_all(PIPELINE.read_text(encoding="utf-8"), FAST_LOADER))
    assert toleration_keys(server) == [GPU]


# ---- K25: the form is alphabetical, and shows names and types alone ----------------------------


@pytest.mark.parametrize("name", ["raft", "study"])
def test_k25_the_description_has_a_row_for_each_field(name: str) -> None:
    specification = committed(name)[0]
    fields = specification["root"]["inputDefinitions"]["parameters"]
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.+) \|$", specification["pipelineInfo"]["description"], re.M
    )
    assert sorted(field for field, _, _ in rows) == sorted(fields)
    for field, default, meaning in rows:
        assert (default == "required") is ("defaultValue" not in fields[field]), field
        assert meaning[0].isupper() and meaning.rstrip("|").endswith((".", ")")), field


@pytest.mark.parametrize(
    ("name", "things"), [("raft", ("teacher", "base")), ("study", ("teacher",))]
)
def test_k25_fields_of_one_thing_are_side_by_side(name: str, things: tuple[str, ...]) -> None:
    """What a field is about comes first in its name; capitals would be sorted before all others."""
    fields = sorted(committed(name)[0]["root"]["inputDefinitions"]["parameters"])
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", field) for field in fields)
    for thing in things:
        about = [field for field in fields if thing in field.split("_")]
        assert len(about) > 1
        assert all(field.split("_")[0] == thing for field in about), about
