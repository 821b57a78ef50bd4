"""kubectl renders every overlay, the pipeline follows each field, and faults are placed."""

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from components.core.errors import ConfigError
from components.core.hardware import GPU_STEPS, OVERRIDES
from pipelines import manifests
from pipelines.form import SECRETS
from pipelines.k8s import kustomize
from pipelines.k8s.job import Job
from pipelines.k8s.located import StrictModel
from pipelines.stages import GPU_TEACHER, JOBS, STAGES
from tests.pipelines.conftest import (
    as_started,
    compile_objects,
    form_values,
    job_of,
    kubectl_kustomize,
    leaves,
    sources,
    tasks_of,
)

OVERLAYS = {
    "a100-80gb", "compute-class", "cpu-smoke", "flex-start", "h100", "h200", "kueue", "l4", "spot",
}  # fmt: skip
SERVERS = [manifests.BASE / "serve"]


def by_name(objects: list[dict]) -> dict[tuple[str, str], dict]:
    found = {(entry["kind"], entry["metadata"]["name"]): entry for entry in objects}
    assert len(found) == len(objects)
    return found


def test_every_overlay_is_there() -> None:
    assert set(sources()) == OVERLAYS | {"base"}


@pytest.mark.parametrize("folder", [*sources().values(), *SERVERS], ids=lambda path: path.name)
def test_we_render_what_kubectl_renders(folder: Path) -> None:
    ours = by_name([document.value for document in kustomize.render(folder)])
    theirs = by_name(kubectl_kustomize(folder))
    assert ours == theirs
    assert len(ours) == {"serve": 3, "compute-class": 15}.get(folder.name, 14)


@pytest.mark.parametrize("name", sorted(OVERLAYS))
def test_an_overlay_only_patches_and_opens_with_its_commands(name: str) -> None:
    folder = manifests.OVERLAYS / name
    kustomization = yaml.safe_load((folder / kustomize.FILE).read_text())
    base, *own = kustomization["resources"]
    assert base == "../../base"
    patches = {patch["path"] for patch in kustomization["patches"]}
    files = {path.name for path in folder.iterdir()}
    assert files == patches | {*own, kustomize.FILE}
    for file in files:
        head = (folder / file).read_text().split("\napiVersion")[0]
        for word in ("apply", "check", "remove"):
            assert f"#   {word}" in head and "kubectl" in head, file
        assert f"kubectl apply -k k8s/overlays/{name}" in head, file


@pytest.mark.parametrize("name", sources())
def test_selecting_a_stage_selects_one_job(name: str, rendered: dict[str, list[dict]]) -> None:
    """`kubectl apply -k FOLDER -l app.kubernetes.io/component=train` must start train alone."""
    for stage in JOBS:
        chosen = [
            entry
            for entry in rendered[name]
            if entry["metadata"]["labels"]["app.kubernetes.io/component"] == stage
        ]
        assert [entry["kind"] for entry in chosen] == ["Job"]
        assert chosen[0]["metadata"]["name"] == f"raft-{stage}"


# A rendered Job and the compiled task, told apart by nothing but their spelling.


def asked_by_job(job: dict) -> dict[str, Any]:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sizes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    resources = container["resources"]
    return {
        "image": container["image"],
        "command": container["command"],
        "requests": {key: str(resources["requests"][key]) for key in ("cpu", "memory")},
        "limits": {key: str(resources["limits"][key]) for key in ("cpu", "memory")},
        "gpus": {str(amounts.get("nvidia.com/gpu", 0)) for amounts in resources.values()},
        "labels": job["spec"]["template"]["metadata"]["labels"],
        "selector": pod.get("nodeSelector", {}),
        "tolerations": pod.get("tolerations", []),
        "volumes": [
            {"mountPath": mount["mountPath"], "volumeName": mount["name"], **sizes[mount["name"]]}
            for mount in container["volumeMounts"]
        ],
        "environment": [
            [entry["name"], entry["valueFrom"]["secretKeyRef"]] for entry in container["env"]
        ],
        "user": {
            key: str(pod["securityContext"][key])
            for key in ("runAsUser", "runAsGroup", "runAsNonRoot")
        },
        "flags": {
            name.replace("-", "_"): value
            for name, _, value in (argument[2:].partition("=") for argument in container["args"])
            if "$" not in value
        },
    }


def asked_by_task(pipeline: dict, stage: str, **given: object) -> dict[str, Any]:
    """What a step asks for in a run that is started with the defaults, but for `given`."""
    run = as_started(pipeline, **given)
    container = run["executors"][f"exec-{stage}"]["container"]
    platform = run["platforms"][f"exec-{stage}"]
    resources = container["resources"]
    accelerator = resources.get("accelerator", {})
    declared = pipeline["components"][f"comp-{stage}"]["inputDefinitions"]["parameters"]
    inputs = tasks_of(pipeline)[stage]["inputs"]["parameters"]
    form = form_values(pipeline, **given)
    values = {name: form[name] for name in inputs.keys() & form.keys()} | {
        name: source["runtimeValue"]["constant"]
        for name, source in inputs.items()
        if "runtimeValue" in source
    }
    assert accelerator.get("resourceType", "nvidia.com/gpu") == "nvidia.com/gpu"
    assert set(platform) <= {
        "emptyDirMounts", "nodeSelector", "podMetadata", "secretAsEnv", "securityContext",
        "tolerations",
    }  # fmt: skip
    return {
        "image": container["image"],
        "command": container["command"],
        "requests": {key: resources[f"resource{key.title()}Request"] for key in ("cpu", "memory")},
        "limits": {key: resources[f"resource{key.title()}Limit"] for key in ("cpu", "memory")},
        "gpus": {accelerator.get("resourceCount", "0")},
        "labels": platform["podMetadata"]["labels"],
        "selector": platform.get("nodeSelector", {}).get("labels", {}),
        "tolerations": platform.get("tolerations", []),
        "volumes": platform["emptyDirMounts"],
        "environment": [
            [
                entry["keyToEnv"][0]["envVar"],
                {
                    "name": entry["secretName"],
                    "key": entry["keyToEnv"][0]["secretKey"],
                    "optional": entry["optional"],
                },
            ]
            for entry in platform["secretAsEnv"]
        ],
        "user": {key: str(value) for key, value in platform["securityContext"].items()},
        "flags": {
            name: value if isinstance(value, str) else re.sub(r"\.0$", "", json.dumps(value))
            for name, value in values.items()
            if name in declared and value != declared[name].get("defaultValue", value)
        },
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", sources())
def test_the_task_asks_for_what_the_job_asks_for(
    name: str, stage: str, rendered: dict[str, list[dict]], pipelines: dict[str, dict]
) -> None:
    asked, found = (
        asked_by_job(job_of(rendered[name], stage)),
        asked_by_task(pipelines[name], stage),
    )
    if stage == "generate":  # which has the volumes and variables of its Job with GPUs as well
        with_gpus = asked_by_job(job_of(rendered[name], GPU_TEACHER))
        asked["volumes"] = with_gpus["volumes"]
        asked["environment"] = [*asked["environment"], *with_gpus["environment"]]
        asked["flags"] = {k: v for k, v in with_gpus["flags"].items() if k != "teacher"}
    assert found == asked


@pytest.mark.parametrize("name", sources())
def test_with_a_teacher_of_its_own_generate_asks_for_what_that_job_asks_for(
    name: str, rendered: dict[str, list[dict]], pipelines: dict[str, dict]
) -> None:
    asked = asked_by_job(job_of(rendered[name], GPU_TEACHER))
    found = asked_by_task(pipelines[name], "generate", teacher="vllm")
    same = ("image", "requests", "limits", "gpus", "selector", "tolerations", "volumes", "user")
    assert {key: found[key] for key in same} == {key: asked[key] for key in same}
    if name != "cpu-smoke":
        one = asked_by_task(pipelines[name], "generate", teacher="vllm", teacher_gpus="1")
        assert one["gpus"] == {"1"} and one["image"] == asked["image"]
        assert one["requests"] == {"cpu": "6000m", "memory": "65536Mi"}
        assert one["limits"] == {"cpu": "11000m", "memory": "65536Mi"}


def test_what_the_overlays_change(pipelines: dict[str, dict]) -> None:
    asked = {name: asked_by_task(pipeline, "train") for name, pipeline in pipelines.items()}
    gpu = "cloud.google.com/gke-accelerator"
    assert {name: job["selector"].get(gpu) for name, job in asked.items()} == {
        "base": "nvidia-tesla-a100",
        "a100-80gb": "nvidia-a100-80gb",
        "h100": "nvidia-h100-80gb",
        "h200": "nvidia-h200-141gb",
        "l4": "nvidia-l4",
        "spot": "nvidia-tesla-a100",
        "kueue": "nvidia-tesla-a100",
        "flex-start": "nvidia-tesla-a100",
        "compute-class": None,
        "cpu-smoke": None,
    }
    assert asked["spot"]["selector"]["cloud.google.com/gke-spot"] == "true"
    assert len(asked["spot"]["tolerations"]) == 2
    assert asked["flex-start"]["selector"]["cloud.google.com/gke-flex-start"] == "true"
    assert asked["compute-class"]["selector"] == {"cloud.google.com/compute-class": "raft-gpu"}
    assert len(asked["compute-class"]["tolerations"]) == 3
    assert asked["kueue"]["labels"]["kueue.x-k8s.io/queue-name"] == "raft"
    assert asked["cpu-smoke"]["gpus"] == {"0"}
    assert asked["cpu-smoke"]["tolerations"] == []
    assert asked["l4"]["flags"] == {
        "batch_size": "1", "max_tokens": "2048", "load_in_4bit": "true",
    }  # fmt: skip


@pytest.mark.parametrize("name", sources())
def test_piping_from_kubectl_gives_the_same_pipeline(
    name: str, pipelines: dict[str, dict], tmp_path: Path
) -> None:
    objects = kubectl_kustomize(sources()[name])
    assert compile_objects(objects, tmp_path / "objects.yaml") == pipelines[name]


# Every field that is understood, edited in every overlay.

EXECUTOR = "deploymentSpec.executors.exec-train.container"
PLATFORM = "platforms.kubernetes.deploymentSpec.executors.exec-train"
TASK = "components.comp-exit-handler-1.dag.tasks.train.inputs.parameters"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers"


@dataclass
class Edit:
    """Fields of the Job, a change of them, and the leaves of the pipeline that it must give."""

    fields: tuple[str, ...]
    change: Callable[[dict], None]
    """Gets the template of the pod."""
    leaves: dict[str, object]
    stages: tuple[str, ...] = ("train",)
    choosable: bool = False
    """Whether a run can be started with another value: the leaves are those of the run, then."""


def container_of(template: dict) -> dict:
    (container,) = template["spec"]["containers"]
    return container


def set_in(*path: Any) -> Callable[[dict], None]:
    """Set a value, the last of `path`, in the container (or, from "pod" on, in the pod)."""

    def change(template: dict) -> None:
        *keys, last, value = path
        target: Any = container_of(template)
        if keys and keys[0] == "pod":
            target, keys = template["spec"], keys[1:]
        for key in keys:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[last] = value

    return change


def label(kind: str) -> Callable[[dict], None]:
    def change(template: dict) -> None:
        template["metadata"].setdefault(kind, {})["example.com/team"] = "a"

    return change


def both_gpus(template: dict) -> None:
    for amounts in container_of(template)["resources"].values():
        amounts["nvidia.com/gpu"] = 3


def new_toleration(entry: dict) -> Callable[[dict], None]:
    return set_in("pod", "tolerations", [entry])


def named_volume(template: dict) -> None:
    template["spec"]["volumes"] = [
        entry | {"name": "scratch"} if entry["name"] == "tmp" else entry
        for entry in template["spec"]["volumes"]
    ]
    container_of(template)["volumeMounts"][0]["name"] = "scratch"


def volume(name: str, **changes: object) -> Callable[[dict], None]:
    def change(template: dict) -> None:
        (found,) = [entry for entry in template["spec"]["volumes"] if entry["name"] == name]
        found["emptyDir"] |= changes

    return change


def variable(template: dict) -> None:
    container_of(template)["env"].append({"name": "NCCL_DEBUG", "value": "WARN"})


def flag(template: dict) -> None:
    container_of(template)["args"].append("--dropout=0.25")


SECRET = f"{CONTAINER}.env.valueFrom.secretKeyRef"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def near(kind: str, terms: object) -> Edit:
    """Node affinity, all parts of which the step has in one JSON object."""
    place = f"{PLATFORM}.nodeAffinity.0.nodeAffinityJson.runtimeValue.constant"
    return Edit(
        (f"{POD}.affinity.nodeAffinity.{kind}",),
        set_in("pod", "affinity", {"nodeAffinity": {kind: terms}}),
        leaves({kind: terms}, place),
    )


TERM = {
    "matchExpressions": [{"key": "pool", "operator": "In", "values": ["a", "b"]}],
    "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n"]}],
}


def claim(template: dict) -> None:
    template["spec"]["volumes"].append(
        {"name": "data", "persistentVolumeClaim": {"claimName": "docs"}}
    )
    container_of(template)["volumeMounts"].append(
        {"name": "data", "mountPath": "/data", "subPath": "a"}
    )


EDITS = {
    "label": Edit(
        ("spec.template.metadata.labels",),
        label("labels"),
        {f"{PLATFORM}.podMetadata.labels.example.com/team": "a"},
    ),
    "annotation": Edit(
        ("spec.template.metadata.annotations",),
        label("annotations"),
        {f"{PLATFORM}.podMetadata.annotations.example.com/team": "a"},
    ),
    "image": Edit(
        (f"{CONTAINER}.image",),
        set_in("image", "registry.example/team/raft-train:2"),
        {f"{EXECUTOR}.image": "registry.example/team/raft-train:2"},
    ),
    "pull policy": Edit(
        (f"{CONTAINER}.imagePullPolicy",),
        set_in("imagePullPolicy", "Always"),
        {f"{PLATFORM}.imagePullPolicy": "Always"},
    ),
    "pull secret": Edit(
        (f"{POD}.imagePullSecrets.name",),
        set_in("pod", "imagePullSecrets", [{"name": "registry"}]),
        {
            f"{PLATFORM}.imagePullSecret.0.secretName": "registry",
            f"{PLATFORM}.imagePullSecret.0.secretNameParameter.runtimeValue.constant": "registry",
        },
    ),
    "cpu request": Edit(
        (f"{CONTAINER}.resources.requests.cpu",),
        set_in("resources", "requests", "cpu", "1500m"),
        {"requests.cpu": "1500m"},
        choosable=True,
    ),
    "cpu limit": Edit(
        (f"{CONTAINER}.resources.limits.cpu",),
        set_in("resources", "limits", "cpu", "30"),
        {"limits.cpu": "30"},
        choosable=True,
    ),
    "memory request": Edit(
        (f"{CONTAINER}.resources.requests.memory",),
        set_in("resources", "requests", "memory", "512Mi"),
        {"requests.memory": "512Mi"},
        choosable=True,
    ),
    "memory limit": Edit(
        (f"{CONTAINER}.resources.limits.memory",),
        set_in("resources", "limits", "memory", "300G"),
        {"limits.memory": "300G"},
        choosable=True,
    ),
    "GPUs": Edit(
        (
            f"{CONTAINER}.resources.requests.nvidia.com/gpu",
            f"{CONTAINER}.resources.limits.nvidia.com/gpu",
        ),
        both_gpus,
        {"gpus": "3"},
        choosable=True,
    ),
    "accelerator": Edit(
        (f"{POD}.nodeSelector",),
        set_in("pod", "nodeSelector", "cloud.google.com/gke-accelerator", "nvidia-b200"),
        {"selector.cloud.google.com/gke-accelerator": "nvidia-b200"},
        choosable=True,
    ),
    "node pool": Edit(
        (f"{POD}.nodeSelector",),
        set_in("pod", "nodeSelector", "pool", "research"),
        {"selector.pool": "research"},
        choosable=True,
    ),
    "toleration": Edit(
        tuple(f"{POD}.tolerations.{key}" for key in ("key", "operator", "value", "effect")),
        new_toleration(
            {"key": "a", "operator": "Equal", "value": "b", "effect": "PreferNoSchedule"}
        ),
        {
            "tolerations.0.key": "a",
            "tolerations.0.operator": "Equal",
            "tolerations.0.value": "b",
            "tolerations.0.effect": "PreferNoSchedule",
        },
        choosable=True,
    ),
    "toleration for a while": Edit(
        (f"{POD}.tolerations.tolerationSeconds",),
        new_toleration(
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        ),
        {
            "tolerations.0.key": "a",
            "tolerations.0.operator": "Exists",
            "tolerations.0.effect": "NoExecute",
            "tolerations.0.tolerationSeconds": 60,
        },
        choosable=True,
    ),
    "variable": Edit(
        (f"{CONTAINER}.env.name", f"{CONTAINER}.env.value"),
        variable,
        {f"{EXECUTOR}.env.0.name": "NCCL_DEBUG", f"{EXECUTOR}.env.0.value": "WARN"},
    ),
    "variable of a secret": Edit(
        (f"{CONTAINER}.env.name",),
        set_in("env", 0, "name", "HUGGING_FACE_HUB_TOKEN"),
        {"environment.0.0": "HUGGING_FACE_HUB_TOKEN"},
        choosable=True,
    ),
    "secret": Edit(
        (f"{SECRET}.name",),
        set_in("env", 0, "valueFrom", "secretKeyRef", "name", "team"),
        {"environment.0.1.name": "team"},
        (*GPU_STEPS, GPU_TEACHER),
        choosable=True,
    ),
    "key of the secret": Edit(
        (f"{SECRET}.key",),
        set_in("env", 0, "valueFrom", "secretKeyRef", "key", "hf"),
        {f"{PLATFORM}.secretAsEnv.0.keyToEnv.0.secretKey": "hf"},
    ),
    "secret that must exist": Edit(
        (f"{SECRET}.optional",),
        set_in("env", 0, "valueFrom", "secretKeyRef", "optional", False),
        {f"{PLATFORM}.secretAsEnv.0.optional": False},
    ),
    "volume's size": Edit(
        (f"{POD}.volumes.emptyDir.sizeLimit",),
        volume("tmp", sizeLimit="7Gi"),
        {f"{PLATFORM}.emptyDirMounts.0.sizeLimit": "7Gi"},
    ),
    "volume's medium": Edit(
        (f"{POD}.volumes.emptyDir.medium",),
        volume("tmp", medium="Memory"),
        {f"{PLATFORM}.emptyDirMounts.0.medium": "Memory"},
    ),
    "volume's name": Edit(
        (f"{POD}.volumes.name", f"{CONTAINER}.volumeMounts.name"),
        named_volume,
        {f"{PLATFORM}.emptyDirMounts.0.volumeName": "scratch"},
    ),
    "volume's place": Edit(
        (f"{CONTAINER}.volumeMounts.mountPath",),
        set_in("volumeMounts", 0, "mountPath", "/scratch"),
        {f"{PLATFORM}.emptyDirMounts.0.mountPath": "/scratch"},
    ),
    "deadline of an attempt": Edit(
        (f"{POD}.activeDeadlineSeconds",),
        set_in("pod", "activeDeadlineSeconds", 3600),
        {f"{PLATFORM}.activeDeadlineSeconds": "3600"},
    ),
    "user": Edit(
        (f"{POD}.securityContext.runAsUser",),
        set_in("pod", "securityContext", "runAsUser", 20002),
        {f"{PLATFORM}.securityContext.runAsUser": "20002"},
    ),
    "group": Edit(
        (f"{POD}.securityContext.runAsGroup",),
        set_in("pod", "securityContext", "runAsGroup", 20002),
        {f"{PLATFORM}.securityContext.runAsGroup": "20002"},
    ),
    "root": Edit(
        (f"{POD}.securityContext.runAsNonRoot",),
        set_in("pod", "securityContext", "runAsNonRoot", False),
        {f"{PLATFORM}.securityContext.runAsNonRoot": False},
    ),
    "claim": Edit(
        (f"{POD}.volumes.persistentVolumeClaim.claimName", f"{CONTAINER}.volumeMounts.subPath"),
        claim,
        leaves(
            {
                "constant": "docs",
                "mountPath": "/data",
                "pvcNameParameter": {"runtimeValue": {"constant": "docs"}},
                "subPath": "a",
            },
            f"{PLATFORM}.pvcMount.0",
        ),
    ),
    "required node": near(REQUIRED, {"nodeSelectorTerms": [TERM]}),
    "preferred node": near(PREFERRED, [{"weight": 7, "preference": TERM}]),
    "flag": Edit((f"{CONTAINER}.args",), flag, {f"{TASK}.dropout.runtimeValue.constant": 0.25}),
}

IDENTITY = {"apiVersion", "kind", "metadata.name", f"{CONTAINER}.name", f"{CONTAINER}.command"}
"""Fields that say what the Job is; another value is refused."""


def model_in(annotation: Any) -> type[StrictModel] | None:
    """The model that a field holds, or a list of; None where it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def fields(model: type[StrictModel], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every field of a model and its parts by dotted path, and whether it is the Job's alone."""
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}".lstrip(".")
        inner = model_in(field.annotation)
        if (field.description or "").startswith("Job only: "):
            yield here, True
        elif inner is not None:
            yield from fields(inner, here)
        else:
            yield here, False


def test_every_field_that_is_understood_is_edited_below() -> None:
    understood = {path for path, job_only in fields(Job) if not job_only}
    edited = {path for edit in EDITS.values() for path in edit.fields}
    assert edited == understood - IDENTITY
    assert (len(edited), len(EDITS), len(sources())) == (36, 31, 10)
    assert {name for name, _ in where_edited()} == {*sources()}


def where_edited() -> list[tuple[str, str]]:
    """Every edit in the base and in one overlay; all overlays have some of the edits."""
    names = itertools.cycle(sorted(OVERLAYS))
    return [(name, edit) for edit in EDITS for name in ("base", next(names))]


@pytest.mark.parametrize(("name", "edit"), where_edited())
def test_an_edit_changes_exactly_that(
    name: str,
    edit: str,
    rendered: dict[str, list[dict]],
    pipelines: dict[str, dict],
    tmp_path: Path,
) -> None:
    objects = copy.deepcopy(rendered[name])
    for stage in EDITS[edit].stages:
        EDITS[edit].change(job_of(objects, stage)["spec"]["template"])
    edited = compile_objects(objects, tmp_path / "objects.yaml")
    before, after, expected = pipelines[name], edited, EDITS[edit].leaves
    if EDITS[edit].choosable:
        before, after = (asked_of_all(pipeline) for pipeline in (before, after))
        leaves_of_train = expected.items()
        expected = {f"{s}.{key}": leaf for s in EDITS[edit].stages for key, leaf in leaves_of_train}
        # After generate's own.
        if (of_teacher := f"{GPU_TEACHER}.environment.0.1.name") in expected:
            expected["generate.environment.1.1.name"] = expected.pop(of_teacher)
    found, changed = leaves(before), leaves(after)
    # The first step asks the hub with the variables of train.
    of_hardware = {
        key.replace("exec-train", "exec-hardware"): leaf
        for key, leaf in expected.items()
        if ".env." in key or ".secretAsEnv." in key
    }
    expected = expected | of_hardware
    expected = {key: leaf for key, leaf in expected.items() if found.get(key) != leaf}
    assert expected
    assert {key: leaf for key, leaf in changed.items() if found.get(key) != leaf} == expected
    allowed = "train.tolerations" if "toleration" in edit else "nothing"
    assert all(key.startswith(allowed) for key in found.keys() - changed.keys())


def asked_of_all(pipeline: dict, **given: object) -> dict[str, Any]:
    """What every step asks for, in a run of this pipeline."""
    asked = {stage: asked_by_task(pipeline, stage, **given) for stage in STAGES}
    return {stage: found | {"gpus": min(found["gpus"])} for stage, found in asked.items()}


CHOSEN: dict[str, tuple[Any, dict[str, str]]] = {
    "gpu": (
        "h200",
        {"train.flags.gpu": "h200"}
        | {
            f"{stage}.{key}": value
            for stage in GPU_STEPS
            for key, value in {
                "gpus": "1",
                "requests.cpu": "20",
                "limits.cpu": "26",
                "requests.memory": "240Gi",
                "limits.memory": "240Gi",
                "selector.cloud.google.com/gke-accelerator": "nvidia-h200-141gb",
            }.items()
        },
    ),
    "huggingface_secret": (
        "team",
        {f"{stage}.environment.0.1.name": "team" for stage in GPU_STEPS}
        | {"generate.environment.1.1.name": "team"},
    ),
    "teacher_secret": ("team", {"generate.environment.0.1.name": "team"}),
    "train_gpus": ("4", {"train.gpus": "4"}),
    "teacher_gpus": ("2", {}),  # of a teacher that has GPUs alone
    "memory": (
        "999Gi",
        {f"{stage}.{end}.memory": "999Gi" for stage in GPU_STEPS for end in ("requests", "limits")},
    ),
    "node_selector": (
        {"cloud.google.com/gke-accelerator": "nvidia-b200"},
        {
            f"{stage}.selector.cloud.google.com/gke-accelerator": "nvidia-b200"
            for stage in GPU_STEPS
        },
    ),
    "tolerations": (
        [{"key": "a", "operator": "Exists"}],
        {
            f"{stage}.tolerations.0.{key}": value
            for stage in GPU_STEPS
            for key, value in (("key", "a"), ("operator", "Exists"))
        },
    ),
}


@pytest.mark.parametrize("field", CHOSEN)
@pytest.mark.parametrize("name", sources())
def test_a_run_can_be_started_on_other_hardware(
    name: str, field: str, pipelines: dict[str, dict]
) -> None:
    value, expected = CHOSEN[field]
    before = leaves(asked_of_all(pipelines[name]))
    after = leaves(asked_of_all(pipelines[name], **{field: value}))
    expected = {key: leaf for key, leaf in expected.items() if before.get(key) != leaf}
    assert {key: leaf for key, leaf in after.items() if before.get(key) != leaf} == expected
    gone = before.keys() - after.keys()
    assert all(key.split(".")[1] in ("selector", "tolerations") for key in gone)
    assert CHOSEN.keys() == {*OVERRIDES, *SECRETS.values()}


def test_a_step_keeps_its_own_manifest_until_a_run_overrides_it(
    rendered: dict[str, list[dict]], pipelines: dict[str, dict], tmp_path: Path
) -> None:
    objects = copy.deepcopy(rendered["base"])
    container = container_of(job_of(objects, "eval")["spec"]["template"])
    for amounts in container["resources"].values():
        amounts["memory"] = "32Gi"
    pipeline = compile_objects(objects, tmp_path / "objects.yaml")
    asked = asked_of_all(pipeline)
    assert {stage: found["limits"]["memory"] for stage, found in asked.items()} == {
        "generate": "8Gi", "train": "64Gi", "quantize-check": "64Gi", "eval": "32Gi",
    }  # fmt: skip
    asked = asked_of_all(pipeline, memory="999Gi")
    assert {stage: found["limits"]["memory"] for stage, found in asked.items()} == {
        "generate": "8Gi", "train": "999Gi", "quantize-check": "999Gi", "eval": "999Gi",
    }  # fmt: skip


JOB_ONLY: dict[str, tuple[tuple[Any, ...], Any]] = {
    "metadata.namespace": (("metadata", "namespace"), "other"),
    "metadata.labels": (("metadata", "labels", "team"), "a"),
    "spec.backoffLimit": (("spec", "backoffLimit"), 9),
    "spec.podFailurePolicy": (("spec", "podFailurePolicy"), {"rules": []}),
    "spec.activeDeadlineSeconds": (("spec", "activeDeadlineSeconds"), 60),
    "spec.suspend": (("spec", "suspend"), True),
    "spec.ttlSecondsAfterFinished": (("spec", "ttlSecondsAfterFinished"), 60),
    f"{POD}.serviceAccountName": (("POD", "serviceAccountName"), "other"),
    f"{POD}.priorityClassName": (("POD", "priorityClassName"), "other"),
    f"{POD}.runtimeClassName": (("POD", "runtimeClassName"), "nvidia"),
    f"{POD}.affinity.podAffinity": (("POD", "affinity"), {"podAffinity": {}}),
    f"{POD}.affinity.podAntiAffinity": (("POD", "affinity"), {"podAntiAffinity": {}}),
    f"{POD}.terminationGracePeriodSeconds": (("POD", "terminationGracePeriodSeconds"), 5),
    f"{POD}.securityContext.fsGroup": (("POD", "securityContext", "fsGroup"), 5),
    f"{POD}.securityContext.seccompProfile": (
        ("POD", "securityContext", "seccompProfile"), {"type": "Unconfined"},
    ),
    f"{POD}.restartPolicy": (("POD", "restartPolicy"), "Never"),  # the only value
    **{
        f"{CONTAINER}.resources.{kind}.ephemeral-storage": (
            ("CONTAINER", "resources", kind, "ephemeral-storage"), "9Gi"
        )
        for kind in ("requests", "limits")
    },
    f"{CONTAINER}.volumeMounts.readOnly": (("CONTAINER", "volumeMounts", 0, "readOnly"), True),
    f"{CONTAINER}.envFrom": (("CONTAINER", "envFrom"), [{"configMapRef": {"name": "other"}}]),
    f"{CONTAINER}.securityContext": (
        ("CONTAINER", "securityContext", "capabilities"), {"drop": ["KILL"]},
    ),
}  # fmt: skip


def test_fields_of_the_job_alone_change_nothing(
    rendered: dict[str, list[dict]], pipelines: dict[str, dict], tmp_path: Path
) -> None:
    assert set(JOB_ONLY) == {path for path, job_only in fields(Job) if job_only}
    assert len(JOB_ONLY) == 21
    for path, (keys, value) in JOB_ONLY.items():
        objects = copy.deepcopy(rendered["base"])
        job = job_of(objects, "train")
        pod = job["spec"]["template"]["spec"]
        target: Any = {"POD": pod, "CONTAINER": pod["containers"][0]}.get(keys[0], job)
        steps = keys[1:] if keys[0].isupper() else keys
        for step in steps[:-1]:
            target = target[step]
        target[steps[-1]] = value
        found = compile_objects(objects, tmp_path / "objects.yaml")
        assert found == pipelines["base"], path


def test_a_flag_is_the_default_of_the_forms_field(
    rendered: dict[str, list[dict]], tmp_path: Path
) -> None:
    """Of its own stage's field: eval has a setting of the name of a field of generate."""
    objects = copy.deepcopy(rendered["base"])
    train, evaluation = (
        container_of(job_of(objects, stage)["spec"]["template"])["args"]
        for stage in ("train", "eval")
    )
    train += ["--epochs=1", "--seed=7"]
    evaluation += ["--distractors=4", "--seed=7"]
    pipeline = compile_objects(objects, tmp_path / "objects.yaml")
    form = form_values(pipeline)
    assert (form["epochs"], form["seed"], form["distractors"]) == (1, 7, 3)
    inputs = tasks_of(pipeline)["eval"]["inputs"]["parameters"]
    assert inputs["distractors"]["runtimeValue"]["constant"] == [4]
    evaluation[-1] = "--seed=8"
    with pytest.raises(ConfigError, match="seed is 8, and 7 in another Job"):
        compile_objects(objects, tmp_path / "objects.yaml")


def test_two_secrets_for_one_field_are_refused(
    rendered: dict[str, list[dict]], tmp_path: Path
) -> None:
    objects = copy.deepcopy(rendered["base"])
    EDITS["secret"].change(job_of(objects, "eval")["spec"]["template"])
    with pytest.raises(ConfigError, match="is 'team', and 'raft-huggingface' in another Job"):
        compile_objects(objects, tmp_path / "objects.yaml")


def test_a_flag_that_is_no_parameter_of_the_component_is_refused(
    rendered: dict[str, list[dict]], tmp_path: Path
) -> None:
    objects = copy.deepcopy(rendered["base"])
    template = job_of(objects, "train")["spec"]["template"]
    container_of(template)["args"].append("--overwrite=true")
    with pytest.raises(ConfigError, match="overwrite is no parameter of the component"):
        compile_objects(objects, tmp_path / "objects.yaml")
