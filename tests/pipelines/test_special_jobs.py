"""Jobs with volumes, affinity, a runtime class, ephemeral storage, or slices of a GPU.

The pipeline's step follows what kfp-kubernetes can express; of the rest a note tells where it is.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from components.core.gpus import RESOURCE
from components.core.hardware import HardwareConfig
from pipelines import manifests
from pipelines.cluster.job import job_body
from pipelines.compile import compiled
from pipelines.manifests import check_manifests
from pipelines.overrides import override_jobs
from pipelines.parameters import check_parameters, load
from tests.pipelines.conftest import INPUTS, Leave, line_of, parse_pipeline
from tests.pipelines.kubernetes_server import KubernetesServer, kubeconfig, recorded, serving

ZONES = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}
NO_SPOT = {"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
NEAR = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}

Change = Callable[[dict[str, Any], dict[str, Any]], object]
"""Gets the pod and its container."""


def mounted(claim: str, **mount: object) -> Change:
    def change(pod: dict[str, Any], container: dict[str, Any]) -> None:
        pod["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": "data", "mountPath": "/data", **mount})

    return change


def asked(resource: str, amount: object, *, instead: str = "") -> Change:
    def change(_: dict[str, Any], container: dict[str, Any]) -> None:
        for amounts in container["resources"].values():
            amounts.pop(instead, None)
            amounts[resource] = amount

    return change


def affinity(kind: str, **terms: object) -> Change:
    return lambda pod, _: pod.setdefault("affinity", {}).update({kind: terms})


def runtime(name: str) -> Change:
    return lambda pod, _: pod.update(runtimeClassName=name)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(manifests.BASE, tmp_path / "base"))


def edited(base: Path, stage: str, change: Change) -> Path:
    """The manifest of a stage after a change."""
    path = base / f"{stage}.yaml"
    job = yaml.safe_load(path.read_text())
    pod = job["spec"]["template"]["spec"]
    change(pod, pod["containers"][0])
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def pvc(claim: str, **more: object) -> dict[str, Any]:
    name = {"pvcNameParameter": {"runtimeValue": {"constant": claim}}}
    return {"pvcMount": [{"constant": claim, "mountPath": "/data", **name, **more}]}


def near(**terms: object) -> dict[str, Any]:
    return {"nodeAffinity": [{"nodeAffinityJson": {"runtimeValue": {"constant": terms}}}]}


TERM = {"nodeSelectorTerms": [{"matchExpressions": [ZONES]}, {"matchExpressions": [NO_SPOT]}]}
WISH = [{"weight": 7, "preference": {"matchExpressions": [NO_SPOT], "matchFields": [
    {"key": "metadata.name", "operator": "NotIn", "values": ["gke-a100-1"]}]}}]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "change", "expected"),
    [
        ("generate", mounted("documents"), pvc("documents")),
        ("train", mounted("datasets", subPath="a/b"), pvc("datasets", subPath="a/b")),
        ("train", affinity("nodeAffinity", **{REQUIRED: TERM}), near(**{REQUIRED: TERM})),
        ("eval", affinity("nodeAffinity", **{PREFERRED: WISH}), near(**{PREFERRED: WISH})),
    ],
    ids=["claim", "part of a claim", "required", "preferred"],
)
def test_volumes_and_node_affinity_are_followed(
    stage: str, change: Change, expected: dict[str, Any], base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = edited(base, stage, change)
    before, after = (
        parse_pipeline(compiled(folder))["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for folder in (manifests.BASE, base)
    )
    assert after[f"exec-{stage}"] == before[f"exec-{stage}"] | expected
    light = ("exec-hardware", "exec-summary")
    assert all("pvcMount" not in after[name] for name in light), "they read small files alone"
    assert (
        job_body(manifests.load_all(base)[stage], "raft")["spec"]["template"]
        == (yaml.safe_load(path.read_text())["spec"]["template"])
    )
    check_manifests([str(base)])
    assert "the pipeline's step runs without it" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "resource", "count"),
    [("train", "nvidia.com/mig-3g.20gb", 1), ("eval", "nvidia.com/mig-1g.10gb.me", 2)],
)
def test_slices_of_a_gpu_are_followed(stage: str, resource: str, count: int, base: Path) -> None:
    edited(base, stage, asked(resource, count, instead=RESOURCE))
    pipeline = parse_pipeline(compiled(base))
    for name in ("train", "eval"):
        resources = pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"][
            "resources"
        ]
        kind = resource if name == stage else RESOURCE
        assert resources["accelerator"]["resourceType"] == kind
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    hardware = tasks["hardware"]["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"]
    settings = {"compiled": hardware, "output": "-"}
    name = f"{stage.replace('-', '_')}_gpu_count"
    assert getattr(HardwareConfig.parse(settings).outputs(), name) == str(count)
    with pytest.raises(ConfigError, match=f"the manifest of {stage} asks for {resource}, a slice"):
        HardwareConfig.parse(settings | {"gpu": "h100"})
    jobs = override_jobs(manifests.load_all(base), {"memory": "48Gi"}, hardware)
    limits = jobs[stage].container.resources.limits
    assert (limits.accelerator, limits.memory) == ((resource, count), "48Gi")


@pytest.mark.parametrize(
    ("stage", "change", "field"),
    [
        ("train", runtime("nvidia"), "runtimeClassName"),
        ("generate", runtime("gvisor"), "runtimeClassName"),
        ("train", asked("ephemeral-storage", "100Gi"), "ephemeral-storage"),
        ("eval", asked("ephemeral-storage", "500M"), "ephemeral-storage"),
        ("train", affinity("podAffinity", **{REQUIRED: [NEAR]}), "podAffinity"),
        ("eval", affinity("podAntiAffinity", **{REQUIRED: [NEAR]}), "podAntiAffinity"),
        ("generate", mounted("documents", readOnly=True), "readOnly"),
        ("train", mounted("datasets", readOnly=True), "readOnly"),
    ],
)
def test_what_a_step_lacks_is_told_and_the_job_has_it(
    stage: str, change: Change, field: str, base: Path, leave: Leave
) -> None:
    path = edited(base, stage, change)
    line = line_of(path, f"{field}:")
    note = f"  {path}:{line}: {field}: the pipeline's step runs without it, because KFP"
    for words in (("check", base), ("compile", "--overlay", base, "--output", base / "raft.yaml")):
        code, _, err = leave(*words)
        assert code == 0, err
        assert note in err
    assert (
        job_body(manifests.load_all(base)[stage], "raft")["spec"]["template"]
        == (yaml.safe_load(path.read_text())["spec"]["template"])
    )


@pytest.mark.parametrize(
    ("change", "blamed", "problem"),
    [
        (affinity("nodeAffinity", required={}), "required:", "not understood (allowed: required"),
        (affinity("nodeAfinity"), "nodeAfinity", "did you mean nodeAffinity?"),
        (asked("nvidia.com/mig-3g20gb", 1, instead=RESOURCE), "nvidia.com/mig-3g20gb",
         "not understood"),
        (asked("nvidia.com/mig-3g.20gb", 0.5, instead=RESOURCE), "nvidia.com/mig-3g.20gb",
         "0.5: not whole slices"),
        (asked("nvidia.com/mig-3g.20gb", 1), "nvidia.com/mig-3g.20gb", "beside another kind"),
        (asked("ephemeral-storage", "5GB"), "ephemeral-storage", "not a quantity"),
        (lambda pod, _: pod["volumes"].append({"name": "data"}), "- name: data", "not one of"),
        (lambda _, container: container["volumeMounts"][0].update(subPath="a"), "subPath",
         "only of a persistentVolumeClaim"),
    ],
)  # fmt: skip
def test_a_fault_in_one_of_them_is_found_in_its_line(
    change: Change, blamed: str, problem: str, base: Path
) -> None:
    path = edited(base, "train", change)
    with pytest.raises(ConfigError) as caught:
        check_manifests([str(base)])
    starts = f"{path}:{line_of(path, blamed)}: "
    assert any(
        line.startswith(starts) and problem in line for line in str(caught.value).splitlines()
    ), caught.value


def test_a_location_on_a_mounted_volume_is_allowed(base: Path, tmp_path: Path) -> None:
    edited(base, "generate", mounted("documents"))
    path = tmp_path / "raft.yaml"
    path.write_text(compiled(base))
    for place, allowed in (("/data/docs", True), ("/database", False)):
        given = INPUTS | {"documents": place}
        if allowed:
            assert check_parameters(load(path), given, {}) == given
        else:
            with pytest.raises(ConfigError, match="documents '/database': the cluster cannot"):
                check_parameters(load(path), given, {})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (mounted("documents"), "missing      volume claim documents: "),
        (affinity("nodeAffinity", **{REQUIRED: TERM}),
         "ok           node for train: gke-a100-1 (its affinity is left to the scheduler)"),
        (asked("nvidia.com/mig-3g.20gb", 1, instead=RESOURCE),
         "missing      node for train: gke-a100-1 offers 0 of nvidia.com/mig-3g.20gb, not 1"),
    ],
    ids=["claim", "affinity", "slice"],
)  # fmt: skip
def test_preflight_looks_for_them(
    change: Change, line: str, base: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(base, "train", change)
    cluster = KubernetesServer(answers=recorded("good"))
    with serving(cluster):
        path = kubeconfig(cluster.url, base / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(path))
        _, out, _ = leave("preflight", "--overlay", base)
    assert any(printed.startswith(line) for printed in out.splitlines()), out
