"""`raft check` finds what a cluster would refuse or let wait for ever, with file and line."""

import copy
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from components.core.gpus import gke_labels
from pipelines.k8s import values
from pipelines.manifests import check_manifests
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY, Raft
from tests.pipelines.conftest import FAST_DUMPER, FAST_LOADER

K8S = REPOSITORY / "k8s"


def mutate(path: Path, old: str, new: str, blamed: str | None) -> int:
    """Replace a text once; returns the line to blame.

    That is the first line that changed, or the nearest one in which `blamed` begins: where a field
    is missing, the error stands at what should hold it.
    """
    text = path.read_text()
    assert old in text, old
    changed = text.replace(old, new, 1)
    path.write_text(changed)
    at = next(i for i, pair in enumerate(zip(text, changed, strict=False)) if len(set(pair)) == 2)
    if blamed is not None:
        found = [match.start() for match in re.finditer(re.escape(blamed), changed)]
        at = min(found, key=lambda start: abs(start - at))
    return changed[:at].count("\n") + 1


def assert_blamed(errors: list[str], path: Path, line: int, problem: str) -> None:
    """Some error names the line and the problem, and all of them name a line."""
    start = f"{path}:{line}: "
    assert any(entry.startswith(start) and problem in entry for entry in errors), errors
    for entry in errors:
        assert entry.split(": ")[0].rpartition(":")[2].isdigit(), entry


# Manifests. A fault is (what to replace, with what, what is said of it).

MEMORY = "              memory: 64Gi\n"
GPU = "              nvidia.com/gpu: 1\n"
LARGE = f'{MEMORY}{GPU}            limits:\n              cpu: "12"\n{MEMORY}'
SELECTOR = "        cloud.google.com/gke-accelerator: nvidia-tesla-a100\n"
MOUNT = "            - name: shm\n              mountPath: /dev/shm\n"
IMAGE = "image: raft-train:0.1.0"

OUTPUT = "            - --output=$(RAFT_RUN)/adapter\n"

FAULTS: dict[str, tuple[str, str, str]] = {
    # The list that offline validators missed.
    "GPU request without limit": (f"{MEMORY}{GPU}          securityContext",
                                  f"{MEMORY}          securityContext", "which is none"),
    "fractional GPU": (GPU, GPU.replace("1", "0.5"), "whole GPUs"),
    "request over limit": ('cpu: "8"', 'cpu: "16"', "more than the limit of 12"),
    "memory request over limit": (MEMORY, MEMORY.replace("64", "65"), "more than the limit"),
    "unknown field": ("      restartPolicy", "      hostNetwrk: true\n      restartPolicy",
                      "hostNetwrk: not understood (allowed: "),
    "64GB": (MEMORY, MEMORY.replace("Gi", "GB"), "'64GB': not a quantity (allowed: bytes such as"),
    "toleration effect": ("effect: NoSchedule", "effect: NoSched", "'NoSchedule'"),
    "restartPolicy": ("restartPolicy: Never", "restartPolicy: Always", "'Never'"),
    "undomained resource": (GPU, GPU.replace("nvidia.com/", ""),
                            "gpu: not understood (allowed: cpu, memory, nvidia.com/gpu,"),
    "missing volume": (MOUNT, MOUNT.replace("shm\n", "shn\n", 1), "volumes has no such entry"),
    "bad label": ("name: raft\n    app", "name: raft!\n    app",
                  "'raft!': String should match pattern"),
    "GPU request over limit": (GPU, GPU.replace("1", "2"), "not equal to the limit, which is 1"),
    "nvidia.com/gpuu": (GPU, GPU.replace("gpu", "gpuu"), "did you mean nvidia.com/gpu?"),
    # Pods that would wait for ever.
    "selector misspelt": (SELECTOR, SELECTOR.replace("accel", "acel"),
                          "did you mean cloud.google.com/gke-accelerator? (allowed: "),
    "GPU misspelt": (SELECTOR, SELECTOR.replace("nvidia-tesla-a100", "nvidia-a100-80g"),
                     "did you mean nvidia-a100-80gb? (allowed: "),
    "toleration misspelt": ("- key: nvidia.com/gpu\n", "- key: nvidia.com/gpus\n",
                            "did you mean nvidia.com/gpu?"),
    "toleration in capitals": ("- key: nvidia.com/gpu\n", "- key: nvidia.com/GPU\n",
                               "did you mean nvidia.com/gpu?"),
    "more memory than the machine": (LARGE, LARGE.replace("64", "200"),
                                     "with 1 nvidia-tesla-a100 does not have (a2-highgpu-1g: 85Gi"),
    "every CPU of the machine": ('cpu: "8"', 'cpu: "12"', "a2-highgpu-1g: 12, of which it keeps"),
    # More of the kind.
    "GPU limit over request": (f"{GPU}          securityContext",
                               GPU.replace("1", "2") + "          securityContext", ""),
    "no GPU at all": (GPU, GPU.replace("1", "0"), "at least 1"),
    "GPU that is true": (GPU, GPU.replace("1", "true"), "whole GPUs"),
    "negative memory": (MEMORY, MEMORY.replace("64", "-64"), "not a quantity"),
    "cpu in percent": ('cpu: "8"', "cpu: 80%", "cores such as 8"),
    "no restartPolicy": ("      restartPolicy: Never\n", "", "restartPolicy: Field required"),
    "flag given twice": (OUTPUT, f"{OUTPUT}            - --output=gs://b/x\n",
                         "--output is given twice"),
    "key written twice": (MEMORY, MEMORY + MEMORY, "memory is written twice, first in line"),
    "GPU unknown to GKE": (SELECTOR, SELECTOR.replace("tesla-", ""), "is no GPU of GKE; did you "),
    "selector that is true": (SELECTOR, f"{SELECTOR}        cloud.google.com/gke-spot: true\n",
                              "valid string"),
    "selector's value": (SELECTOR, f"{SELECTOR}        pool: a b\n", "String should match pattern"),
    "operator": ("operator: Equal", "operator: Equals", "'Equal' or 'Exists'"),
    "misspelt field": ("tolerations:", "tolerationz:", "did you mean tolerations?"),
    "latest": (IMAGE, "image: raft-train:latest", "never latest"),
    "no tag": (IMAGE, "image: raft-train", "name:version"),
    "no image": (f"          {IMAGE}\n", "", "image: Field required"),
    "capital image": (IMAGE, "image: Raft-Train:1", "not a pinned image"),
    "another command": ("command: [raft, train]", "command: [raft, eval]", "['raft', 'train']"),
    "no such flag": ("--dataset=", "--datasets=", "did you mean --dataset?"),
    "value out of range": ("- --output=$(RAFT_RUN)/adapter\n",
                           "- --output=$(RAFT_RUN)/adapter\n            - --rank=0\n", "--rank"),
    "no such variable": ("--dataset=$(RAFT_RUN)", "--dataset=$(RAFT_RAN)",
                         "$(RAFT_RAN): no such variable (allowed: HF_TOKEN, RAFT_BASE_MODEL"),
    "number as value": ("          env:\n", "          env:\n            - name: A\n"
                        "              value: 1\n", "valid string"),
    "no secret's key": ("                  key: token\n", "", "key: Field required"),
    "medium": ("medium: Memory", "medium: RAM", "'Memory'"),
    "size of a volume": ("sizeLimit: 8Gi", "sizeLimit: 8GB", "not a quantity"),
    "unknown volume": ("emptyDir:\n            sizeLimit: 80Gi",
                       "hostPath:\n            path: /data", "hostPath: not understood"),
    "no stage": ("name: raft-train\n  namespace", "name: raft-trains\n  namespace",
                 "not the Job of a stage"),
    "user's name": ("runAsUser: 10001", "runAsUser: raft", "valid integer"),
    "backoffLimit": ("backoffLimit: 3", "backoffLimit: -1", "greater than or equal to 0"),
    "apiVersion": ("apiVersion: batch/v1", "apiVersion: batch/v1beta1", "'batch/v1'"),
    "tab": ("    spec:\n", "    spec:\n\t", "not YAML"),
}  # fmt: skip

# Where the error stands in another line than the first changed one: at what should hold the
# missing field, or at the other half of a pair.
BLAMED = {
    "GPU request without limit": "nvidia.com/gpu: 1",
    "GPU limit over request": "nvidia.com/gpu: 1",
    "no restartPolicy": "    spec:",
    "no image": "- name: train",
    "no secret's key": "secretKeyRef:",
    "number as value": "value: 1",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_job_is_found_in_its_line(name: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    path = base / "train.yaml"
    old, new, problem = FAULTS[name]
    line = mutate(path, old, new, BLAMED.get(name))
    with pytest.raises(ConfigError) as caught:
        check_manifests([str(base)])
    assert_blamed(str(caught.value).splitlines(), path, line, problem)


def test_so_many_faults_are_tried() -> None:
    assert len(FAULTS) == 50


def test_a_new_accelerator_needs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    mutate(base / "train.yaml", SELECTOR, SELECTOR.replace("tesla-a100", "z1000"), None)
    with pytest.raises(ConfigError, match="a line in components/core/gpus.yaml"):
        check_manifests([str(base)])
    monkeypatch.setattr(values, "gke_labels", lambda: [*gke_labels(), "nvidia-z1000"])
    check_manifests([str(base)])


def test_what_is_committed_has_no_fault(raft: Raft) -> None:
    done = raft("check")
    assert (done.returncode, done.stderr) == (0, "10 checked, nothing to fix\n")


@pytest.mark.parametrize("stage", STAGES)
def test_one_file_can_be_checked(stage: str) -> None:
    check_manifests([str(K8S / "base" / f"{stage}.yaml")])


def test_all_faults_of_all_files_are_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    mutate(base / "train.yaml", "64Gi", "64GB", None)
    mutate(base / "eval.yaml", "effect: NoSchedule", "effect: No", None)
    with pytest.raises(SystemExit) as leave:
        main(["check", str(base), str(base), str(tmp_path / "nowhere.yaml")])
    assert leave.value.code == 2
    errors = capsys.readouterr().err
    for words in ("train.yaml:", "eval.yaml:", "nowhere.yaml: No such file"):
        assert words in errors
    assert len(errors.splitlines()) == len(set(errors.splitlines()))


ROUNDS = 60


@pytest.mark.parametrize("stage", STAGES)
def test_no_damage_ends_in_a_traceback(stage: str, tmp_path: Path) -> None:
    """Any value taken out or replaced by another kind: an error or none, never a traceback."""
    (job,) = yaml.load_all((K8S / "base" / f"{stage}.yaml").read_text(), FAST_LOADER)
    chance = random.Random(stage)
    refused = 0
    for round_ in range(ROUNDS):
        damaged = [copy.deepcopy(job)]
        target: Any = damaged
        key: Any = 0
        while isinstance(target[key], dict | list) and target[key] and chance.random() < 0.85:
            target = target[key]
            key = chance.choice(list(target if isinstance(target, dict) else range(len(target))))
        if round_ % 6 == 0 and isinstance(target, dict):
            del target[key]
        else:
            target[key] = chance.choice([None, 7, "x", "", [], {}, [None], {"x": {"y": [1]}}, True])
        path = tmp_path / "damaged.yaml"
        path.write_text(yaml.dump_all(damaged, Dumper=FAST_DUMPER))
        try:
            check_manifests([str(path)])
        except ConfigError:
            refused += 1
    assert refused > ROUNDS / 2
