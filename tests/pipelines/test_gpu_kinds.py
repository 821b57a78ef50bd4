"""A kind of GPU is one entry of components/core/gpus.yaml: who reads it, and what is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.core.gpus import Gpu, Machine, kinds
from pipelines import manifests, overlays
from pipelines.k8s.values import amount
from tests.conftest import REPOSITORY

B200 = """
  b200:
    title: B200 with 180 GB
    device: NVIDIA B200
    gke_label: nvidia-b200
    memory_gib: 178.0
    bf16_tflops: 2250
    price: {usd: 36.0, date: "2026-11-01", source: a test}
    machines: [{type: a4-highgpu-8g, gpus: 8, cpus: 224, memory: 3968}]
    training: {batch_size: 5, gradient_accumulation: 3}
    pods:
      {cpu_request: "20", cpu_limit: "26", memory: 300Gi, shm: 9Gi, flags: {eval: [--batch-size=4]}}
"""

READERS = """
import json, sys
from components.core.ledger import cost_of
from components.train.config import TrainConfig

given = {"dataset": "d", "base_model": "m", "output": "o", "gpu": "b200"}
config = TrainConfig.parse(given)
print(json.dumps([config.batch_size, cost_of(0, "NVIDIA B200", 3600)]))
"""

LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def test_a_new_kind_is_one_entry(tmp_path: Path) -> None:
    for folder in ("components", "pipelines", "k8s"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    table = tmp_path / "components" / "core" / "gpus.yaml"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("\nkinds:\n", f"\nkinds:{B200}"), encoding="utf-8")

    def python(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    readers = python("-c", READERS)
    assert json.loads(readers.stdout) == [5, 36.0], readers.stderr
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
    plan = ("-m", "pipelines", "plan", "--base-model", "config.json", "--gpu")
    planned = python(*plan, "b200")
    assert "on one NVIDIA B200" in planned.stdout and " USD, if" in planned.stdout, planned.stderr
    assert "b200 | a100-40gb | a100-80gb" in python(*plan, "b300").stderr

    stale = python("-m", "pipelines.overlays", "--check")
    assert stale.returncode == 2 and "b200/" in stale.stderr and "make overlays" in stale.stderr
    written = python("-m", "pipelines.overlays")
    assert written.returncode == 0, written.stderr
    assert python("-m", "pipelines.overlays", "--check").returncode == 0
    job = yaml.safe_load((tmp_path / "k8s/overlays/b200/eval.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-b200"}
    assert pod["containers"][0]["args"][-1] == "--batch-size=4"
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "26", "memory": "300Gi"}
    checked = python("-m", "pipelines", "check", "k8s/overlays/b200")
    assert checked.returncode == 0, checked.stderr


def test_committed_overlays_are_those_of_the_table() -> None:
    written = [kind for kind in kinds() if kind != overlays.BASE_KIND]
    assert len(written) >= 4
    for kind in written:
        files = {file.name: file.read_text() for file in (manifests.OVERLAYS / kind).iterdir()}
        assert files == overlays.overlay(kind, kinds()[kind]), "run make overlays"


@pytest.mark.parametrize("stage", ["train", "quantize-check", "eval"])
def test_the_base_is_the_kind_without_an_overlay(stage: str) -> None:
    gpu = kinds()[overlays.BASE_KIND]
    pod = yaml.safe_load((manifests.BASE / f"{stage}.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    memory = {"memory": gpu.pods.memory, "nvidia.com/gpu": 1}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": gpu.gke_label}
    assert container["resources"]["requests"] == {"cpu": gpu.pods.cpu_request, **memory}
    assert container["resources"]["limits"] == {"cpu": gpu.pods.cpu_limit, **memory}
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    assert sizes["shm"] == gpu.pods.shm and not gpu.pods.flags


@pytest.mark.parametrize("kind", kinds())
def test_pods_fit_the_first_machine(kind: str) -> None:
    """So many pods as it has GPUs, with room for what the node keeps for itself."""
    gpu: Gpu = kinds()[kind]
    machine: Machine = gpu.machines[0]
    assert amount(gpu.pods.cpu_request) * machine.gpus <= machine.cpus * 0.9
    assert amount(gpu.pods.cpu_limit) <= machine.cpus
    assert amount(gpu.pods.memory) / 2**30 * machine.gpus <= machine.memory * 0.9
