"""An edit of a Job manifest changes the pipeline alike, or is refused."""

import shutil
from pathlib import Path

import pytest

from components.errors import ConfigError
from pipelines import manifests
from pipelines.compile import compiled
from tests.pipelines.conftest import parse_pipeline

EXECUTOR = "deploymentSpec.executors.exec-train.container"
PLATFORM = "platforms.kubernetes.deploymentSpec.executors.exec-train"
SELECTOR = "labels.cloud.google.com/gke-accelerator"


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(manifests.BASE, tmp_path / "base"))


def edit(jobs: Path, old: str, new: str) -> None:
    path = jobs / "train.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


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


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (
            "nvidia.com/gpu: 1",
            "nvidia.com/gpu: 2",
            {
                f"{EXECUTOR}.resources.accelerator.count": "2",
                f"{EXECUTOR}.resources.accelerator.resourceCount": "2",
            },
        ),
        (
            "memory: 64Gi",
            "memory: 128Gi",
            {
                f"{EXECUTOR}.resources.memoryLimit": 137.438953472,
                f"{EXECUTOR}.resources.memoryRequest": 137.438953472,
                f"{EXECUTOR}.resources.resourceMemoryLimit": "128Gi",
                f"{EXECUTOR}.resources.resourceMemoryRequest": "128Gi",
            },
        ),
        (
            'cpu: "8"',
            "cpu: 7500m",
            {
                f"{EXECUTOR}.resources.cpuRequest": 7.5,
                f"{EXECUTOR}.resources.resourceCpuRequest": "7500m",
            },
        ),
        (
            'cpu: "12"',
            "cpu: 16",
            {
                f"{EXECUTOR}.resources.cpuLimit": 16.0,
                f"{EXECUTOR}.resources.resourceCpuLimit": "16",
            },
        ),
        (
            "image: raft-train:",
            "image: registry.example/team/raft-train:",
            {f"{EXECUTOR}.image": "registry.example/team/raft-train:0.1.0"},
        ),
        (
            "gke-accelerator: nvidia-tesla-a100",
            "gke-accelerator: nvidia-a100-80gb",
            {f"{PLATFORM}.nodeSelector.{SELECTOR}": "nvidia-a100-80gb"},
        ),
        (
            "nodeSelector:\n",
            'nodeSelector:\n        cloud.google.com/gke-spot: "true"\n',
            {f"{PLATFORM}.nodeSelector.labels.cloud.google.com/gke-spot": "true"},
        ),
        (
            "effect: NoSchedule",
            "effect: NoExecute\n          tolerationSeconds: 60",
            {
                f"{PLATFORM}.tolerations.0.effect": "NoExecute",
                f"{PLATFORM}.tolerations.0.tolerationSeconds": "60",
            },
        ),
        (
            "sizeLimit: 8Gi",
            "sizeLimit: 16Gi",
            {f"{PLATFORM}.emptyDirMounts.1.sizeLimit": "16Gi"},
        ),
        (
            "runAsUser: 10001",
            "runAsUser: 20002",
            {f"{PLATFORM}.securityContext.runAsUser": "20002"},
        ),
        (
            "name: raft-huggingface",
            "name: team-token",
            {
                f"{PLATFORM}.secretAsEnv.0.secretName": "team-token",
                f"{PLATFORM}.secretAsEnv.0.secretNameParameter.runtimeValue.constant": "team-token",
            },
        ),
        (
            "          env:\n",
            "          env:\n            - name: NCCL_DEBUG\n              value: WARN\n",
            {f"{EXECUTOR}.env.0.name": "NCCL_DEBUG", f"{EXECUTOR}.env.0.value": "WARN"},
        ),
        (
            "  template:\n    metadata:\n      labels:\n",
            "  template:\n    metadata:\n      annotations:\n        team: a\n      labels:\n",
            {f"{PLATFORM}.podMetadata.annotations.team": "a"},
        ),
        ("backoffLimit: 3", "backoffLimit: 9", {}),
        ("serviceAccountName: raft", "serviceAccountName: other", {}),
    ],
)
def test_an_edit_changes_exactly_that(
    old: str, new: str, changes: dict[str, object], jobs: Path, pipeline: dict
) -> None:
    edit(jobs, old, new)
    before, after = leaves(pipeline), leaves(parse_pipeline(compiled(jobs)))
    assert before.keys() <= after.keys()
    assert {key: leaf for key, leaf in after.items() if before.get(key) != leaf} == changes


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        ("restartPolicy: Never", "hostNetwork: true", "spec.hostNetwork", "not understood"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", "spec.restartPolicy", "'Never'"),
        ("effect: NoSchedule", "effect: NoSched", "tolerations.0.effect", "'NoSchedule'"),
        ("effect: NoSchedule", "efect: NoSchedule", "tolerations.0.efect", "not understood"),
        ("memory: 64Gi", "memory: 64GB", "limits.memory", "64GB"),
        ("nvidia.com/gpu: 1", "nvidia.com/gpuu: 1", "limits.nvidia.com/gpuu", "not understood"),
        ("nvidia.com/gpu: 1", "nvidia.com/gpu: 0.5", "limits.nvidia.com/gpu", "0.5"),
        (
            "64Gi\n              nvidia.com/gpu: 1\n            limits",
            "64Gi\n              nvidia.com/gpu: 2\n            limits",
            "containers.0.resources",
            "requests 2 and limits 1",
        ),
        ("medium: Memory", "medium: RAM", "emptyDir.medium", "'Memory'"),
        ("sizeLimit: 8Gi", "sizeLimit: 8GB", "emptyDir.sizeLimit", "8GB"),
        (
            "emptyDir:\n            sizeLimit: 80Gi",
            "persistentVolumeClaim:\n            claimName: x",
            "volumes.0.persistentVolumeClaim",
            "not understood",
        ),
        ("- name: shm\n              mount", "- name: sm\n              mount", "spec", "'sm'"),
        ("optional: true", "optional: true\n                value: x", "value", "not understood"),
        ("command: [raft, train]", "command: [raft, eval]", "command", "['raft', 'train']"),
        ("kind: Job", "kind: Deployment", "kind", "'Job'"),
    ],
)
def test_what_the_pipeline_cannot_follow_is_an_error(
    old: str, new: str, field: str, problem: str, jobs: Path
) -> None:
    edit(jobs, old, new)
    with pytest.raises(ConfigError) as caught:
        compiled(jobs)
    lines = [line for line in str(caught.value).splitlines() if field in line and problem in line]
    assert lines, str(caught.value)
    assert lines[0].startswith(f"{jobs / 'train.yaml'}: ")


def test_a_variable_with_two_sources_is_an_error(jobs: Path) -> None:
    edit(jobs, "- name: HF_TOKEN\n", "- name: HF_TOKEN\n              value: x\n")
    with pytest.raises(ConfigError, match="HF_TOKEN has a value and a valueFrom"):
        manifests.load("train", jobs)


def test_a_missing_or_broken_file_is_an_error(jobs: Path) -> None:
    (jobs / "train.yaml").write_text("kind: [")
    with pytest.raises(ConfigError, match=r"train\.yaml: not YAML: .*line 1"):
        manifests.load("train", jobs)
    (jobs / "train.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"train\.yaml: the file"):
        manifests.load("train", jobs)
    (jobs / "train.yaml").unlink()
    with pytest.raises(ConfigError, match=r"train\.yaml: No such file"):
        manifests.load("train", jobs)
