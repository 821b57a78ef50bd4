"""Writes k8s/overlays/KIND for the kinds of GPU in components/core/gpus.yaml: `make overlays`.

The kind of k8s/base has no overlay. For hardware of your own, copy a folder and edit the copy.
"""

import textwrap
from typing import get_args

import click
import yaml

from components.core.gpus import PATH, Gpu, Stage, kinds
from pipelines.manifests import BASE, OVERLAYS

BASE_KIND = "a100-40gb"

KUSTOMIZATION = """\
# One {hardware} for each of the three GPU steps.
# The same as k8s/base, with these patches. Written by `make overlays` from
# components/core/gpus.yaml: make changes there, or in a copy of this folder.
#
#   apply   kubectl apply -k k8s/overlays/{kind} -l app.kubernetes.io/component=train
#   check   kubectl -n raft get jobs,pods
#           kubectl kustomize k8s/overlays/{kind}      (what would be applied)
#   remove  kubectl delete -k k8s/overlays/{kind}
#
# The same hardware for the pipeline: raft compile --overlay {kind}
{note}apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - ../../base
patches:
  - path: train.yaml
  - path: quantize-check.yaml
  - path: eval.yaml
"""

PATCH = """\
# {stage} on one {hardware}.
#
#   apply   kubectl apply -k k8s/overlays/{kind} -l app.kubernetes.io/component={stage}
#   check   kubectl -n raft logs --follow job/raft-{stage}
#   remove  kubectl -n raft delete job raft-{stage}
apiVersion: batch/v1
kind: Job
metadata:
  name: raft-{stage}
  namespace: raft
spec:
  template:
    spec:
      nodeSelector:
        cloud.google.com/gke-accelerator: {gpu.gke_label}
      containers:
        - name: {stage}
{arguments}          resources:
            requests:
              cpu: "{gpu.pods.cpu_request}"
              memory: {gpu.pods.memory}
            limits:
              cpu: "{gpu.pods.cpu_limit}"
              memory: {gpu.pods.memory}
      volumes:
        - name: shm
          emptyDir:
            sizeLimit: {gpu.pods.shm}
"""


def overlay(kind: str, gpu: Gpu) -> dict[str, str]:
    """The files of a kind's overlay: their text by name."""
    machine = gpu.machines[0]
    share = f"1 of {machine.gpus} in {machine.type}" if machine.gpus > 1 else machine.type
    hardware = f"{gpu.title} ({share}: {machine.cpus} vCPU, {machine.memory} GB)"
    note = f"#\n{textwrap.indent(textwrap.fill(gpu.note, 98), '# ')}\n" if gpu.note else ""
    files = {"kustomization.yaml": KUSTOMIZATION.format(hardware=hardware, kind=kind, note=note)}
    for stage in get_args(Stage):
        flags = gpu.pods.flags.get(stage, [])
        arguments = _arguments(stage, flags) if flags else ""
        values = {"stage": stage, "hardware": hardware, "kind": kind, "gpu": gpu}
        files[f"{stage}.yaml"] = PATCH.format(arguments=arguments, **values)
    return files


def _arguments(stage: str, flags: list[str]) -> str:
    job = yaml.safe_load((BASE / f"{stage}.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    entries = "".join(f"  - {flag}\n" for flag in [*container["args"], *flags])
    text = f"# A patched list replaces the base's, so it repeats its flags.\nargs:\n{entries}"
    return textwrap.indent(text, " " * 10)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a file differs.")
def main(check: bool) -> None:
    """Write the overlays of all GPU kinds but the one of k8s/base."""
    for kind in [kind for kind in kinds() if kind != BASE_KIND]:
        for name, text in overlay(kind, kinds()[kind]).items():
            path = OVERLAYS / kind / name
            if check and (not path.is_file() or path.read_bytes() != text.encode()):
                raise click.UsageError(f"{path} differs from {PATH.name}: run make overlays")
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
