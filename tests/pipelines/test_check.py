"""`raft check` catches what a cluster or the Kubeflow backend would refuse, with file and line."""

import copy
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl

from pipelines import check
from pipelines.k8s import values
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY, Raft
from tests.pipelines.conftest import FAST_DUMPER, FAST_LOADER

K8S = REPOSITORY / "k8s"
# A pipeline without nested graphs, compiled once: the faults below are placed by its lines.
COMPILED = Path(__file__).with_name("flat.yaml")


def mutate(path: Path, old: str, new: str, blamed: str | None) -> int:
    """Replace a text once; returns the line to blame.

    That is the first line that changed, or the nearest one in which `blamed` begins: where a field
    is missing, the complaint stands at what should hold it.
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


def assert_blamed(found: list[str], path: Path, line: int, problem: str) -> None:
    """Some complaint names the line and the problem, and all of them name a line."""
    start = f"{path}:{line}: "
    assert any(entry.startswith(start) and problem in entry for entry in found), found
    for entry in found:
        assert entry.split(": ")[0].rpartition(":")[2].isdigit(), entry


# Manifests. A fault is (what to replace, with what, what is said of it).

MEMORY = "              memory: 64Gi\n"
GPU = "              nvidia.com/gpu: 1\n"
LARGE = f'{MEMORY}{GPU}            limits:\n              cpu: "12"\n{MEMORY}'
SELECTOR = "        cloud.google.com/gke-accelerator: nvidia-tesla-a100\n"
TOLERATION = "          operator: Equal\n          value: present\n          effect: NoSchedule\n"
MOUNT = "            - name: shm\n              mountPath: /dev/shm\n"
IMAGE = "image: raft-train:0.1.0"

OUTPUT = "            - --output=$(RAFT_RUN)/adapter\n"

FAULTS: dict[str, tuple[str, str, str]] = {
    # The list that offline validators missed.
    "GPU request without limit": (f"{MEMORY}{GPU}          securityContext",
                                  f"{MEMORY}          securityContext", "limits none"),
    "fractional GPU": (GPU, GPU.replace("1", "0.5"), "whole GPUs"),
    "request over limit": ('cpu: "8"', 'cpu: "16"', "more than the limit of 12"),
    "memory request over limit": (MEMORY, MEMORY.replace("64", "65"), "more than the limit"),
    "unknown field": ("      restartPolicy", "      hostNetwrk: true\n      restartPolicy",
                      "hostNetwrk: not understood (allowed: "),
    "64GB": (MEMORY, MEMORY.replace("Gi", "GB"), "'64GB': not a quantity (allowed: bytes such as"),
    "toleration effect": ("effect: NoSchedule", "effect: NoSched", "'NoSchedule'"),
    "restartPolicy": ("restartPolicy: Never", "restartPolicy: Always", "'Never'"),
    "undomained resource": (GPU, GPU.replace("nvidia.com/", ""),
                            "gpu: not understood (allowed: cpu, memory, nvidia.com/gpu)"),
    "missing volume": (MOUNT, MOUNT.replace("shm\n", "shn\n", 1), "volumes has no such entry"),
    "bad label": ("name: raft\n    app", "name: raft!\n    app", "is not a label's value"),
    "GPU request over limit": (GPU, GPU.replace("1", "2"), "Kubernetes allows only equal ones"),
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
    "no restartPolicy": ("      restartPolicy: Never\n", "", "restartPolicy: is missing"),
    "flag given twice": (OUTPUT, f"{OUTPUT}            - --output=gs://b/x\n",
                         "--output is given twice"),
    "key written twice": (MEMORY, MEMORY + MEMORY, "memory is written twice, first in line"),
    "GPU unknown to GKE": (SELECTOR, SELECTOR.replace("tesla-", ""), "is no GPU of GKE; did you "),
    "selector that is true": (SELECTOR, f"{SELECTOR}        cloud.google.com/gke-spot: true\n",
                              "valid string"),
    "selector's key": (SELECTOR, f'{SELECTOR}        "a/b/c": x\n', "is not a key"),
    "Exists with a value": ("operator: Equal", "operator: Exists", "Exists takes no value"),
    "operator": ("operator: Equal", "operator: Equals", "'Equal' or 'Exists'"),
    "seconds without NoExecute": (TOLERATION, f"{TOLERATION}          tolerationSeconds: 5\n",
                                  "needs the effect NoExecute"),
    "no operator's key": ("- key: nvidia.com/gpu\n          operator", "- operator",
                          "the operator must be Exists"),
    "misspelt field": ("tolerations:", "tolerationz:", "did you mean tolerations?"),
    "latest": (IMAGE, "image: raft-train:latest", "never latest"),
    "no tag": (IMAGE, "image: raft-train", "name:version"),
    "no image": (f"          {IMAGE}\n", "", "image: is missing"),
    "capital image": (IMAGE, "image: Raft-Train:1", "not a pinned image"),
    "another command": ("command: [raft, train]", "command: [raft, eval]", "['raft', 'train']"),
    "no such flag": ("--dataset=", "--datasets=", "did you mean --dataset?"),
    "value out of range": ("- --output=$(RAFT_RUN)/adapter\n",
                           "- --output=$(RAFT_RUN)/adapter\n            - --rank=0\n", "--rank"),
    "no such variable": ("--dataset=$(RAFT_RUN)", "--dataset=$(RAFT_RAN)",
                         "$(RAFT_RAN): no such variable (allowed: HF_TOKEN, RAFT_BASE_MODEL"),
    "variable's name": ("- name: HF_TOKEN", "- name: HF-TOKEN", "not a variable's name"),
    "number as value": ("          env:\n", "          env:\n            - name: A\n"
                        "              value: 1\n", "valid string"),
    "two sources": ("- name: HF_TOKEN\n", "- name: HF_TOKEN\n              value: x\n",
                    "may have only one"),
    "secret's name": ("name: raft-huggingface\n                  key",
                      "name: Raft_HF\n                  key", "not a name"),
    "no secret's key": ("                  key: token\n", "", "key: is missing"),
    "medium": ("medium: Memory", "medium: RAM", "'Memory'"),
    "size of a volume": ("sizeLimit: 8Gi", "sizeLimit: 8GB", "not a quantity"),
    "unknown volume": ("emptyDir:\n            sizeLimit: 80Gi",
                       "hostPath:\n            path: /data", "hostPath: not understood"),
    "two volumes of a name": ("        - name: shm\n          empty",
                              "        - name: tmp\n          empty", "stands twice"),
    "two mounts at a path": ("mountPath: /dev/shm", "mountPath: /tmp", "stands twice"),
    "relative mount": ("mountPath: /dev/shm", "mountPath: dev/shm", "not an absolute path"),
    "name": ("name: raft-train\n  namespace", "name: Raft_Train\n  namespace", "not a name"),
    "no stage": ("name: raft-train\n  namespace", "name: raft-trains\n  namespace",
                 "not the Job of a stage"),
    "namespace": ("namespace: raft", "namespace: raft/x", "not a name"),
    "root": ("runAsUser: 10001", "runAsUser: 0", "which runAsNonRoot forbids"),
    "user's name": ("runAsUser: 10001", "runAsUser: raft", "valid integer"),
    "privileges": ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true",
                   "the namespace refuses such pods"),
    "capabilities": ("drop: [ALL]", "drop: [KILL]", "the namespace refuses such pods"),
    "seccomp": ("type: RuntimeDefault", "type: Default", "'RuntimeDefault'"),
    "unconfined": ("type: RuntimeDefault", "type: Unconfined", "the namespace refuses such pods"),
    "backoffLimit": ("backoffLimit: 3", "backoffLimit: -1", "greater than or equal to 0"),
    "failure action": ("action: Ignore", "action: Retry", "'Ignore'"),
    "failure of success": ("values: [2]", "values: [0]", "0 is success"),
    "failure of whom": ("containerName: train", "containerName: trainer", "no container"),
    "failure without reason": ("        onPodConditions:\n          - type: DisruptionTarget\n",
                               "", "either onPodConditions or onExitCodes"),
    "account": ("serviceAccountName: raft", "serviceAccountName: rafter", "no such ServiceAccount"),
    "priority": ("priorityClassName: raft-batch", "priorityClassName: high",
                 "no such PriorityClass (allowed: raft-batch)"),
    "settings": ("configMapRef:\n                name: raft\n",
                 "configMapRef:\n                name: settings\n", "no such ConfigMap"),
    "kind": ("kind: Job", "kind: CronJob", "kind 'CronJob' (allowed: ConfigMap, "),
    "apiVersion": ("apiVersion: batch/v1", "apiVersion: batch/v1beta1", "'batch/v1'"),
    "tab": ("    spec:\n", "    spec:\n\t", "not YAML"),
}  # fmt: skip

# Where the complaint stands in another line than the first changed one: at what should hold the
# missing field, or at the other half of a pair.
BLAMED = {
    "GPU request without limit": "nvidia.com/gpu: 1",
    "GPU limit over request": "nvidia.com/gpu: 1",
    "Exists with a value": "value: present",
    "no operator's key": "- operator: Equal",
    "no restartPolicy": "    spec:",
    "no image": "- name: train",
    "no secret's key": "secretKeyRef:",
    "number as value": "value: 1",
    "two sources": "- name: HF_TOKEN",
    "failure without reason": "- action: Ignore",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_job_is_found_in_its_line(name: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    path = base / "train.yaml"
    old, new, problem = FAULTS[name]
    line = mutate(path, old, new, BLAMED.get(name))
    try:
        found = check.complaints(str(base))
    except check.ConfigError as error:
        found = str(error).splitlines()
    assert_blamed(found, path, line, problem)


def test_so_many_faults_are_tried() -> None:
    assert (len(FAULTS), len(SURROUNDINGS), len(MUTATIONS)) == (74, 24, 69)


@pytest.mark.parametrize("flag", ["--epochs=5", "--target-modules=q_proj"], ids=["raft", "study"])
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_flag_that_is_a_parameter_of_a_pipeline(flag: str, whole: bool, tmp_path: Path) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    path = base / "train.yaml"
    line = mutate(path, OUTPUT, f"{OUTPUT}            - {flag}\n", flag)
    with pytest.raises(check.ConfigError) as caught:
        check.complaints(str(base if whole else path))
    name = flag.partition("=")[0]
    assert str(caught.value) == (
        f"{path}:{line}: {name} has a value here, but in the pipeline it is a parameter"
    )


MATCH = "    matchLabels:\n      app.kubernetes.io/name: raft"

SURROUNDINGS: dict[str, tuple[str, str, str, str]] = {
    "network's port": ("network.yaml", "port: 443", "port: 4430000", "less than or equal to 65535"),
    "network's protocol": ("network.yaml", "protocol: UDP", "protocol: QUIC", "'UDP'"),
    "network's range": ("network.yaml", "169.254.169.252/32", "169.254.169.252/33", "does not"),
    "network's direction": ("network.yaml", "[Ingress, Egress]", "[Ingres]", "'Ingress'"),
    "network's field": ("network.yaml", "  egress:", "  egres:", "did you mean egress?"),
    "verb": ("rbac.yaml", "verbs: [create,", "verbs: [creat,", "'create'"),
    "role": ("rbac.yaml", "  kind: Role\n  name: raft-submitter",
             "  kind: Role\n  name: raft-sub", "no such Role"),
    "subject": ("rbac.yaml", "kind: ServiceAccount\n    name: raft-submitter",
                "kind: ServiceAccount\n    name: raft-sub", "no such ServiceAccount"),
    "quota's resource": ("quota.yaml", "requests.nvidia.com/gpu", "limits.nvidia.com/gpu",
                         "no resource of a quota"),
    "quota's amount": ("quota.yaml", "count/jobs.batch: 100", "count/jobs.batch: many",
                       "is not a quantity"),
    "preemption": ("priority.yaml", "preemptionPolicy: Never", "preemptionPolicy: No", "'Never'"),
    "priority's value": ("priority.yaml", "value: -100", "value: 2000000000", "less than or equal"),
    "setting": ("settings.yaml", "RAFT_TEACHER: extractive", "RAFT_TEACHER: 1", "valid string"),
    "annotation": ("service-account.yaml", "  labels:\n", "  annotations: {a/b/c: x}\n  labels:\n",
                   "is not a key"),
    "security level": ("namespace.yaml", "enforce: restricted", "enforce: strict", "restricted"),
    "second object": ("quota.yaml", "kind: ResourceQuota", "kind: Quota", "kind 'Quota'"),
    "deployment's selector": ("teacher/deployment.yaml", MATCH, f"{MATCH}s",
                              "which the template's labels do not have"),
    "probe's port": ("teacher/deployment.yaml", "port: http\n", "port: web\n", "is no port"),
    "probe's path": ("teacher/deployment.yaml", "path: /v1/models", "path: v1/models", "pattern"),
    "teacher's GPU": ("teacher/deployment.yaml", "nvidia.com/gpu: 4", "nvidia.com/gpu: 2",
                      "only equal ones"),
    "teacher's image": ("teacher/deployment.yaml", "vllm-openai:v0.32.0", "vllm-openai:latest",
                        "never latest"),
    "teacher's account": ("teacher/deployment.yaml", "serviceAccountName: raft",
                          "serviceAccountName: teacher", "no such ServiceAccount"),
    "service's pods": ("teacher/service.yaml", "selector:\n    app.kubernetes.io/name: raft",
                       "selector:\n    app.kubernetes.io/name: teacher", "pods of no Deployment"),
    "service's port": ("teacher/service.yaml", "targetPort: http", "targetPort: 80", "is no port"),
}  # fmt: skip


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_fault_around_the_jobs_is_found_in_its_line(name: str, tmp_path: Path) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    file, old, new, problem = SURROUNDINGS[name]
    path = base / file
    line = mutate(path, old, new, "selector:" if name == "service's pods" else None)
    found = check.complaints(str(path.parent))
    assert_blamed(found, path, line, problem)


def test_a_new_accelerator_needs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    mutate(base / "train.yaml", SELECTOR, SELECTOR.replace("tesla-a100", "z1000"), None)
    assert "a line in components/core/gpus.yaml)" in check.complaints(str(base))[0]
    monkeypatch.setattr(values, "gke_labels", lambda: ["nvidia-tesla-a100", "nvidia-z1000"])
    assert check.complaints(str(base)) == []


# The compiled pipeline. The same form of fault; the line is the changed one unless OTHER says so.

FROM_TRAIN = "outputArtifactKey: adapter\n                producerTask: train\n"
FROM_GENERATE = "outputArtifactKey: dataset\n                producerTask: generate\n"
OF_DOCUMENTS = "URI of the documents: a folder, or one file.'\n        parameterType: "
ADAPTER = "'{{$.inputs.artifacts[''adapter''].path}}'"

MUTATIONS: dict[str, tuple[str, str, str]] = {
    "no command": ("        command:\n        - raft\n        - eval\n", "", "command: is missing"),
    "empty command": ("        command:\n        - raft\n        - eval\n", "        command: []\n",
                      "at least 1"),
    "no image": ("        image: raft-eval:0.1.0\n", "", "image: is missing"),
    "latest": ("image: raft-eval:0.1.0", "image: raft-eval:latest", "never latest"),
    "cycle": ("          name: comp-generate\n", "          name: comp-generate\n"
              "        dependentTasks:\n        - eval\n", "tasks wait in a circle: eval -> "),
    "own tail": ("        dependentTasks:\n        - generate\n        inputs",
                 "        dependentTasks:\n        - generate\n        - train\n        inputs",
                 "tasks wait in a circle: train -> train"),
    "unknown placeholder": (ADAPTER, "'{{$.input.artifacts[''adapter''].path}}'",
                            "the placeholder {{$.input.artifacts['adapter'].path}} is unknown"),
    "placeholder of another engine": (ADAPTER, "'{{inputs.parameters.adapter}}'", "is unknown"),
    "open placeholder": (ADAPTER, "'{{$.inputs.artifacts[''adapter''].path'", "is unknown"),
    "placeholder's input": (ADAPTER, ADAPTER.replace("adapter", "adaptor"),
                            "'adaptor' is no input of comp-eval"),
    "placeholder's output": ("outputs.artifacts[''evaluation'']", "outputs.artifacts[''report'']",
                             "'report' is no output of comp-eval"),
    "input reference": ("componentInputParameter: base_model", "componentInputParameter: model",
                        "'model' is no input"),
    "producer": ("producerTask: train", "producerTask: training", "'training' is no task"),
    "output of the producer": ("outputArtifactKey: adapter", "outputArtifactKey: model",
                               "'model' is no output of train"),
    "reader that does not wait": ("        dependentTasks:\n        - generate\n        inputs",
                                  "        inputs", "dependentTasks does not name it"),
    "waits for nobody": ("        dependentTasks:\n        - quantize-check\n",
                         "        dependentTasks:\n        - quantise-check\n", "is no task"),
    "artifact of the wrong kind": (FROM_TRAIN, FROM_GENERATE, "is system.Dataset, where"),
    "parameter type": ("parameterType: LIST", "parameterType: LISTS", "NUMBER_INTEGER"),
    "no parameter type": ("          description: 'The adapter''s base: a hub id, or the gs:// URI "
                          "of a model\n            folder.'\n          parameterType: STRING\n",
                          "          description: x\n", "NUMBER_INTEGER"),
    "types that differ": (f"{OF_DOCUMENTS}STRING", f"{OF_DOCUMENTS}LIST",
                          "is LIST, where STRING is wanted"),
    "default of the wrong type": ("defaultValue: 16.0", "defaultValue: sixteen", "NUMBER_INTEGER"),
    "default that is no whole number": ("defaultValue: 16.0", "defaultValue: 16.5",
                                        "NUMBER_INTEGER"),
    "default true for a number": ("defaultValue: 16.0", "defaultValue: true", "NUMBER_INTEGER"),
    "required input": ("            questions:\n              componentInputParameter: questions\n",
                       "", "the input questions of comp-eval is required"),
    "required artifact": ("            adapter:\n              taskOutputArtifact:\n"
                          "                outputArtifactKey: adapter\n"
                          "                producerTask: train\n", "",
                          "the input adapter of comp-eval is required"),
    "input of nobody": ("            questions:\n              comp",
                        "            question:\n              comp",
                        "'question' is no input of comp-eval"),
    "source without a source": ("componentInputParameter: questions\n", "{}\n", ""),
    "component": ("name: comp-eval", "name: comp-evals", "'comp-evals' is no component"),
    "executor": ("executorLabel: exec-eval", "executorLabel: exec-evals", "is no executor"),
    "idle executor": ("executorLabel: exec-eval", "executorLabel: exec-train",
                      "exec-eval: no component runs it"),
    "name with spaces": ("  name: raft\nroot", "  name: Raft pipeline\nroot", "up to 128"),
    "task's name": ("      eval:\n        cachingOptions", "      Eval_1:\n        cachingOptions",
                    "not a task's name"),
    "parameter's name": ("            questions:\n              componentInputParameter",
                         "            1questions:\n              componentInputParameter", ""),
    "schema version": ("schemaVersion: 2.1.0\nsdk", "schemaVersion: 1.0.0\nsdk", "2.1.0"),
    "no tasks": ("root:\n  dag:\n    tasks:", "root:\n  dags:\n    tasks:", "no such field"),
    "unknown field": ("cachingOptions: {}", "cacheOptions: {}", "no such field"),
    "list for a mapping": ("cachingOptions: {}", "cachingOptions: []", "a mapping"),
    "mapping for a list": ("        command:\n        - raft\n        - eval\n",
                           "        command:\n          raft: eval\n", "a list"),
    "number for text": ("          name: comp-eval", "          name: 7", "text"),
    "memory": ("resourceMemoryLimit: 64Gi", "resourceMemoryLimit: 64GB", "not a quantity"),
    "memory told twice": ("resourceMemoryLimit: 64Gi", "resourceMemoryLimit: 65Gi",
                          "not the 65Gi of resourceMemoryLimit"),
    "memory request over limit": ("resourceMemoryRequest: 64Gi", "resourceMemoryRequest: 65Gi",
                                  "requests more memory than the limit"),
    "cpu": ("resourceCpuLimit: '12'", "resourceCpuLimit: twelve", "not a quantity"),
    "cpu told twice": ("cpuRequest: 8.0", "cpuRequest: 9.0", "not the 8 of resourceCpuRequest"),
    "fractional GPU": ("count: '1'", "count: '0.5'", "number"),
    "two counts": ("count: '1'", "count: '2'", "two counts"),
    "kind of GPU": ("resourceType: nvidia.com/gpu", "resourceType: gpu", "'nvidia.com/gpu'"),
    "kind of GPU as a product": ("            type: nvidia.com/gpu", "            type: A100 80GB",
                                 "'nvidia.com/gpu'"),
    "selector": ("gke-accelerator: nvidia-tesla-a100", "gke-accelerator: nvidia-a100",
                 "is no GPU of GKE"),
    "selector's value": ("gke-accelerator: nvidia-tesla-a100", "gke-accelerator: a b", "label"),
    "selector's key": ("cloud.google.com/gke-accelerator: n", "cloud.google.com//gke: n",
                       "is not a key"),
    "selector's type": ("gke-accelerator: nvidia-tesla-a100", "gke-accelerator: 1", "text"),
    "toleration's effect": ("effect: NoSchedule", "effect: NoSched", "'NoSchedule'"),
    "toleration's operator": ("operator: Equal", "operator: Equals", "'Equal' or 'Exists'"),
    "Exists with a value": ("operator: Equal", "operator: Exists", "Exists takes no value"),
    "size of a volume": ("sizeLimit: 80Gi", "sizeLimit: 80GB", "not a quantity"),
    "medium": ("medium: Memory", "medium: RAM", "'Memory'"),
    "relative mount": ("mountPath: /dev/shm", "mountPath: shm", "not an absolute path"),
    "two mounts at a path": ("mountPath: /dev/shm", "mountPath: /tmp", "is mounted twice"),
    "variable's name": ("envVar: HF_TOKEN", "envVar: HF-TOKEN", "not a variable's name"),
    "secret's name": ("secretName: raft-huggingface", "secretName: Raft_HF", "not a name"),
    "user": ("runAsUser: '10001'", "runAsUser: '0'", "which runAsNonRoot forbids"),
    "user's name": ("runAsUser: '10001'", "runAsUser: raft", "a number"),
    "pod's label": ("app.kubernetes.io/component: eval", "app.kubernetes.io/component: -eval",
                    "is not a label's value"),
    "platform's field": ("emptyDirMounts:", "emptyDirMount:", "no such field"),
    "platform's executor": ("        exec-eval:\n          emptyDirMounts",
                            "        exec-evals:\n          emptyDirMounts", "is no executor"),
    "platform": ("platforms:\n  kubernetes:", "platforms:\n  kubernets:", "kubernetes"),
    "key written twice": ("schemaVersion: 2.1.0\nsdk",
                          "schemaVersion: 2.1.0\nschemaVersion: 2.1.0\nsdk", "is written twice"),
    "not YAML": ("schemaVersion: 2.1.0\nsdk", "schemaVersion: [\nsdk", "not YAML"),
}  # fmt: skip

BLAMED_IN_PIPELINE = {
    "no command": "container:\n        args:\n        - --questions",
    "no image": "container:\n        args:\n        - --questions",
    "cycle": "      eval:",
    "own tail": "      train:\n        cachingOptions",
    "reader that does not wait": "            dataset:\n              taskOutput",
    "no parameter type": "        base_model:",
    "types that differ": "componentInputParameter: documents",
    "required input": "          parameters:",
    "required artifact": "          artifacts:",
    "source without a source": "            questions:",
    "idle executor": "    exec-eval:",
    "mapping for a list": "        command:",
    "memory told twice": "memoryLimit: 68",
    "two counts": "accelerator:",
    "Exists with a value": "value: present",
    "not YAML": "---",
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_in_a_compiled_pipeline_is_found(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(COMPILED, tmp_path / "raft.yaml"))
    old, new, problem = MUTATIONS[name]
    line = mutate(path, old, new, BLAMED_IN_PIPELINE.get(name))
    try:
        found = check.complaints(str(path))
    except check.ConfigError as error:
        found = str(error).splitlines()
    assert_blamed(found, path, line, problem)


def test_kinds_of_steps_that_our_pipeline_has_not(tmp_path: Path) -> None:
    """Loops, branches, exit handlers, importers and text around a value are no faults."""

    @dsl.container_component
    def write(text: str, n: int, out: dsl.Output[dsl.Dataset], note: str = ""):
        then = dsl.ConcatPlaceholder(["a", note])
        return dsl.ContainerSpec(
            image="a:1",
            command=["x"],
            args=[text, n, out.path, dsl.IfPresentPlaceholder("note", then=["--note", then])],
        )

    @dsl.container_component
    def decide(result: dsl.OutputPath(str)):
        place = dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER
        return dsl.ContainerSpec(
            image="a:1", command=["x"], args=[result, place, dsl.PIPELINE_JOB_NAME_PLACEHOLDER]
        )

    @dsl.container_component
    def read(data: dsl.Input[dsl.Artifact], text: str):
        return dsl.ContainerSpec(
            image="a:1", command=["x"], args=[data.path, text, data.uri, data.metadata["x"]]
        )

    @dsl.component(base_image="python:3.11")
    def gather(texts: list) -> str:
        return texts[0]

    @dsl.component(base_image="python:3.11")
    def report(status: dsl.PipelineTaskFinalStatus, text: str):
        print(status, text)

    @dsl.pipeline(name="all-kinds")
    def all_kinds(models: list = [{"a": "x"}], text: str = "t"):  # noqa: B006
        with dsl.ExitHandler(report(text=text)):
            known = dsl.importer(artifact_uri="gs://a/b", artifact_class=dsl.Dataset)
            read(data=known.output, text="x")
            with dsl.ParallelFor(models, parallelism=2) as model:
                written = write(text=model.a, n=3).set_cpu_limit("2").set_memory_limit("4G")
                read(data=written.output, text=f"hello {text}")
                choice = decide()
                with dsl.If(choice.outputs["result"] == "a"):
                    read(data=written.output, text=choice.outputs["result"])
                with dsl.Else():
                    read(data=written.output, text="no")
            gather(texts=dsl.Collected(choice.outputs["result"]))

    path = tmp_path / "all-kinds.yaml"
    compiler.Compiler().compile(all_kinds, str(path))
    assert check.complaints(str(path)) == []

    line = mutate(path, "itemInput: pipelinechannel--models", "itemInput: other--models", None)
    assert len(check.complaints(str(path))) == 1
    assert line


def test_what_is_committed_has_no_fault(raft: Raft) -> None:
    done = raft("check")
    assert (done.returncode, done.stderr) == (0, "11 checked, nothing to fix\n")
    assert len(check.everything()) == 2 + 7 + 2


@pytest.mark.parametrize("stage", STAGES)
def test_one_file_can_be_checked(stage: str, raft: Raft) -> None:
    assert check.complaints(str(K8S / "base" / f"{stage}.yaml")) == []


def test_standard_input_is_checked() -> None:
    def check_text(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", "check", "-"],
            input=text,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )

    job = (K8S / "base" / "train.yaml").read_text()
    for good in (job, COMPILED.read_text()):
        assert check_text(good).returncode == 0
    bad = check_text(job.replace("64Gi", "64GB", 1))
    line = job.split("64Gi")[0].count("\n") + 1
    assert bad.returncode == 2
    assert f"error: <stdin>:{line}: spec.template.spec.containers.0.resources" in bad.stderr
    assert "64GB" in bad.stderr and "raft check PATH" in bad.stderr
    assert "neither" in check_text("a: 1").stderr


def test_all_faults_of_all_files_are_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import main

    base = Path(shutil.copytree(K8S / "base", tmp_path / "base"))
    mutate(base / "train.yaml", "64Gi", "64GB", None)
    mutate(base / "eval.yaml", "effect: NoSchedule", "effect: No", None)
    pipeline = Path(shutil.copy(COMPILED, tmp_path / "raft.yaml"))
    mutate(pipeline, "producerTask: train", "producerTask: nobody", None)
    with pytest.raises(SystemExit) as leave:
        main(["check", str(base), str(base), str(pipeline), str(tmp_path / "nowhere.yaml")])
    assert leave.value.code == 2
    errors = capsys.readouterr().err
    for words in ("train.yaml:", "eval.yaml:", "raft.yaml:", "nowhere.yaml: No such file"):
        assert words in errors
    assert len(errors.splitlines()) == len(set(errors.splitlines()))


ROUNDS = 60


@pytest.mark.parametrize("file", ["base/train.yaml", "base/teacher/deployment.yaml", "raft.yaml"])
def test_no_damage_is_too_strange_to_be_told(file: str, tmp_path: Path) -> None:
    """Any value taken out or replaced by another kind: a complaint or none, never a traceback."""
    source = COMPILED if file == "raft.yaml" else K8S / file
    documents = list(yaml.load_all(source.read_text(), FAST_LOADER))
    chance = random.Random(file)
    complained = 0
    for round_ in range(ROUNDS):
        damaged = copy.deepcopy(documents)
        target: Any = damaged
        key: Any = chance.randrange(len(damaged))
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
            complained += bool(check.complaints(str(path)))
        except check.ConfigError:
            complained += 1
    assert complained > ROUNDS / 2
