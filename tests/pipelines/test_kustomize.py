"""Reading a folder of manifests: base as it is, overlays by kubectl; every fault has its line."""

import shutil
import stat
import sys
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.k8s import kustomize
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import edit, job_of, line_of


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """The overlay h100, with the base, in a folder of its own."""
    shutil.copytree(REPOSITORY / "k8s", tmp_path / "k8s")
    return tmp_path / "k8s" / "overlays" / "h100"


def rendered_job(folder: Path, stage: str = "train") -> dict:
    return job_of([document.value for document in kustomize.render(folder)], stage)


# Mistakes in a patch: what to replace with what, the text whose line is blamed, and the problem.

SPEC = "    spec:\n      nodeSelector:"
VOLUMES = "      volumes:\n"

FAULTS: dict[str, tuple[str, str, str, str]] = {
    "64GB": ("memory: 160Gi", "memory: 160GB", "160GB",
             "spec.template.spec.containers.0.resources.requests.memory '160GB': not a quantity"),
    "more memory than the machine": ("memory: 160Gi", "memory: 300Gi", "300Gi", "more than"),
    "GPU request that is no limit": ('cpu: "16"\n', 'cpu: "16"\n              nvidia.com/gpu: 2\n',
                                     "nvidia.com/gpu: 2", "not equal to the limit, which is 1"),
    "fractional GPU": ('cpu: "16"\n', 'cpu: "16"\n              nvidia.com/gpu: 0.5\n',
                       "nvidia.com/gpu: 0.5", "whole GPUs"),
    "nvidia.com/gpuu": ('cpu: "16"\n', 'cpu: "16"\n              nvidia.com/gpuu: 1\n',
                        "nvidia.com/gpuu", "did you mean nvidia.com/gpu?"),
    "GPU misspelt": ("nvidia-h100-80gb", "nvidia-h100-80g", "gke-accelerator",
                     "did you mean nvidia-h100-80gb?"),
    "unknown field": (SPEC, "    spec:\n      hostNetwrk: true\n      nodeSelector:",
                      "hostNetwrk", "hostNetwrk: not understood (allowed: "),
    "toleration effect": (VOLUMES, "      tolerations:\n        - key: nvidia.com/gpu\n"
                          "          operator: Exists\n          effect: NoSched\n" + VOLUMES,
                          "effect: NoSched", "'NoSchedule'"),
    "missing volume": (VOLUMES, "          volumeMounts:\n            - name: shn\n"
                       "              mountPath: /cache\n" + VOLUMES,
                       "name: shn", "volumes has no such entry"),
    "volume without a source": (VOLUMES, VOLUMES + "        - name: cache\n", "- name: cache",
                                "cache: not one of emptyDir and persistentVolumeClaim"),
    "bad label": ("    spec:\n", "    metadata: {labels: {team: a!}}\n    spec:\n", "team: a!",
                  "String should match pattern"),
    "no such variable": ("          resources:", "          args:\n"
                         "            - --dataset=$(RAFT_RAN)/x\n          resources:",
                         "$(RAFT_RAN)", "no such variable"),
    "no such flag": ("          resources:", "          args:\n            - --datasets=x\n"
                     "          resources:", "--datasets", "did you mean --dataset?"),
    "key written twice": ("memory: 160Gi", "memory: 160Gi\n              memory: 161Gi",
                          "161Gi", "memory is written twice"),
    "not YAML": ("    spec:\n", "    spec:\n\t", "\t", "not YAML"),
    "no container's name": ("        - name: train\n", "        - image: x:1\n", "containers:",
                            "containers: List should have at least 1 item"),
    "another Job": ("name: raft-train", "name: raft-trian", "apiVersion",
                    "patches Job raft-trian (batch/v1, namespace raft), which no resource is"),
    "another namespace": ("namespace: raft", "namespace: other", "apiVersion",
                          "which no resource is"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_patch_has_its_line(name: str, overlay: Path) -> None:
    old, new, blamed, problem = FAULTS[name]
    path = overlay / "train.yaml"
    edit(path, old, new)
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(overlay)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{path}:{line_of(path, blamed)}: ") and problem in first


@pytest.mark.parametrize(
    ("old", "new", "blamed", "problem"),
    [
        ("patches:\n", "namePrefix: my-\npatches:\n", "namePrefix",
         "namePrefix: not understood (allowed: apiVersion, kind, resources, images, patches)"),
        ("patches:\n", "images: [{name: raft-train, tag: x}]\npatches:\n", "images",
         "images.0.tag: not understood (allowed: name, newName, newTag, digest)"),
        ("- path: train.yaml", "- path: train.yaml\n    target: {name: raft-(}", "target",
         "valid regular expression"),
        ("- path: train.yaml", "- patch: x", "- patch", "patches.0.patch: not understood"),
    ],
)  # fmt: skip
def test_a_fault_in_a_kustomization_has_its_line(
    old: str, new: str, blamed: str, problem: str, overlay: Path
) -> None:
    path = overlay / kustomize.FILE
    edit(path, old, new)
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(overlay)
    assert f"{path}:{line_of(path, blamed)}: " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("path: train.yaml", "path: trian.yaml", "trian.yaml: No such file"),
        ("- ../../base", "- ../../bass", "bass: No such file"),
        ("path: train.yaml", "path: train.yaml\n    target: {kind: Job, name: train}",
         'patches {"kind":"Job","name":"train"}, which no resource is'),
    ],
)  # fmt: skip
def test_a_kustomization_names_what_is_not_there(
    old: str, new: str, problem: str, overlay: Path
) -> None:
    edit(overlay / kustomize.FILE, old, new)
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(overlay)
    assert problem in str(caught.value)


def test_a_fault_of_the_base_keeps_its_line_in_an_overlay(overlay: Path) -> None:
    path = overlay.parents[1] / "base" / "eval.yaml"
    edit(path, "effect: NoSchedule", "effect: NoSched")
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(overlay)
    assert f"{path}:{line_of(path, 'effect: NoSched')}: " in str(caught.value)


def test_the_last_of_two_patches_is_blamed(overlay: Path) -> None:
    """Also where an overlay stands on another one."""
    mine = overlay.with_name("mine")
    shutil.copytree(overlay.with_name("spot"), mine)
    edit(mine / kustomize.FILE, "../../base", "../h100")
    assert rendered_job(mine)["spec"]["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    edit(overlay / "train.yaml", "memory: 160Gi", "memory: 160GB")
    edit(mine / "gpu.yaml", 'gke-spot: "true"', 'gke-spot: "tr ue"')
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(mine)
    errors = str(caught.value)
    line = line_of(overlay / "train.yaml", "160GB")
    assert f"{overlay / 'train.yaml'}:{line}: spec.template.spec.containers.0" in errors
    line = line_of(mine / "gpu.yaml", '"tr ue"')
    assert f"{mine / 'gpu.yaml'}:{line}: spec.template.spec.nodeSelector" in errors


def test_a_refusal_of_kubectl_is_an_error_with_its_message(overlay: Path) -> None:
    edit(overlay / kustomize.FILE, "- ../../base", "- ../../base\n  - ../../base")
    with pytest.raises(
        ConfigError, match="h100: kubectl refuses it: .*already registered"
    ) as caught:
        manifests.load_all(overlay)
    assert caught.value.hint == f"kubectl kustomize {overlay}"


def test_without_kubectl_the_base_is_read_and_an_overlay_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(manifests.load_all()) == 5
    with pytest.raises(ConfigError, match="kubectl is not installed") as caught:
        manifests.load_all(manifests.OVERLAYS / "h100")
    assert "make .venv/.installed" in caught.value.hint
    for folder in ("bin", "."):  # beside Python wins over PATH
        program = tmp_path / folder / "kubectl"
        program.parent.mkdir(exist_ok=True)
        program.touch(stat.S_IRWXU)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert kustomize.kubectl() == str(program)


def test_a_fault_in_an_image_is_blamed_on_its_entry(overlay: Path) -> None:
    path = overlay / kustomize.FILE
    with path.open("a") as file:
        file.write("images:\n  - name: raft-eval\n    newTag: '1'\n  - name: raft-train\n")
        file.write("    newTag: latest\n")
    with pytest.raises(ConfigError) as caught:
        manifests.load_all(overlay)
    line = line_of(path, "- name: raft-train")
    assert str(caught.value).startswith(f"{path}:{line}: images.1: 'raft-train:latest' is")
    edit(path, "latest", "'2'")
    assert manifests.load_all(overlay)["train"].container.image == "raft-train:2"
    assert manifests.load_all(overlay)["eval"].container.image == "raft-eval:1"
