"""An edit of a Job manifest changes the pipeline alike, or is refused."""

import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.compile import compiled
from pipelines.k8s.values import amount
from tests.pipelines.conftest import as_started, leaves, parse_pipeline

EXECUTOR = "executors.exec-train.container"
PLATFORM = "platforms.exec-train"
SELECTOR = "labels.cloud.google.com/gke-accelerator"


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(manifests.BASE, tmp_path / "base"))


def edit(jobs: Path, old: str, new: str) -> None:
    path = jobs / "train.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (
            "nvidia.com/gpu: 1",
            "nvidia.com/gpu: 2",
            {
                f"{EXECUTOR}.resources.accelerator.resourceCount": "2",
            },
        ),
        (
            "memory: 64Gi",
            "memory: 72Gi",
            {
                f"{EXECUTOR}.resources.resourceMemoryLimit": "72Gi",
                f"{EXECUTOR}.resources.resourceMemoryRequest": "72Gi",
            },
        ),
        (
            'cpu: "8"',
            "cpu: 7500m",
            {
                f"{EXECUTOR}.resources.resourceCpuRequest": "7500m",
            },
        ),
        (
            'cpu: "12"',
            "cpu: 16",
            {
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
                f"{PLATFORM}.tolerations.0.tolerationSeconds": 60.0,
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
    before, after = leaves(as_started(pipeline)), leaves(as_started(parse_pipeline(compiled(jobs))))
    assert before.keys() <= after.keys()
    assert {key: leaf for key, leaf in after.items() if before.get(key) != leaf} == changes


def test_a_missing_or_broken_file_is_an_error(jobs: Path) -> None:
    path = jobs / "train.yaml"
    path.write_text("a: 1\nkind: [\n")
    with pytest.raises(ConfigError, match=r"train\.yaml:3: not YAML"):
        manifests.load_all(jobs)
    path.write_text("")
    with pytest.raises(ConfigError, match="no Job named raft-train"):
        manifests.load_all(jobs)
    path.write_bytes(b"kind: \xff")
    with pytest.raises(ConfigError, match=r"train\.yaml: not UTF-8"):
        manifests.load_all(jobs)
    path.unlink()
    with pytest.raises(ConfigError, match=r"train\.yaml: No such file"):
        manifests.load_all(jobs)
    with pytest.raises(ConfigError, match=r"no kustomization\.yaml there"):
        manifests.load_all(jobs / "nowhere")


def test_a_fault_stops_the_compiler_with_file_and_line(jobs: Path) -> None:
    edit(jobs, "restartPolicy: Never", "hostNetwork: true")
    with pytest.raises(ConfigError) as caught:
        compiled(jobs)
    line = (jobs / "train.yaml").read_text().split("hostNetwork")[0].count("\n") + 1
    place = f"{jobs / 'train.yaml'}:{line}: spec.template.spec.hostNetwork: not understood"
    assert str(caught.value).splitlines()[-1].startswith(place)
    assert "allowed: serviceAccountName, priorityClassName" in str(caught.value)


def test_jobs_that_are_missing_twice_there_or_of_no_stage(jobs: Path) -> None:
    text = (jobs / "train.yaml").read_text()
    (jobs / "train.yaml").write_text(f"{text}---\n{text}")
    with pytest.raises(ConfigError, match=r"train\.yaml:\d+: a second Job raft-train"):
        manifests.load_all(jobs)
    (jobs / "train.yaml").write_text(text.replace("name: raft-train", "name: raft-trian"))
    with pytest.raises(ConfigError, match=r"train\.yaml:\d+: metadata\.name: 'raft-trian'"):
        manifests.load_all(jobs)


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("8", "8"), ("0.5", "0.5"), ("500m", "0.5"), ("1Ki", "1024"), ("64Gi", "68719476736"),
     ("2G", "2000000000"), ("1Ti", "1099511627776"), ("3M", "3000000")],
)  # fmt: skip
def test_amounts(quantity: str, number: str) -> None:
    assert amount(quantity) == Decimal(number)


@pytest.mark.parametrize(
    ("pipeline", "flag"), [("raft", "--epochs=5"), ("study", "--target-modules=q_proj")]
)
def test_a_flag_that_is_a_parameter_of_the_pipeline_is_refused(
    pipeline: str, flag: str, jobs: Path
) -> None:
    output = "            - --output=$(RAFT_RUN)/adapter\n"
    edit(jobs, output, f"{output}            - {flag}\n")
    with pytest.raises(ConfigError) as caught:
        compiled(jobs, pipeline)
    path, name = jobs / "train.yaml", flag.partition("=")[0]
    line = path.read_text().split(flag)[0].count("\n") + 1
    assert str(caught.value) == (
        f"{path}:{line}: {name} has a value here, but in the pipeline it is a parameter"
    )
