"""What a run overrides of its steps' hardware, checked before the cluster sees it.

`components/core/hardware.py` names which parameter overrides which step, checks how each is
written, and resolves them in the run's first step; here the same function answers `raft submit` and
`raft preflight`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from components.core.config import message
from components.core.errors import ConfigError
from components.core.hardware import (
    OVERRIDES,
    TWO_JOBS,
    WITH_GPUS,
    CompiledPlacement,
    HardwareConfig,
)
from pipelines.form import SECRETS
from pipelines.k8s.job import Job, Pod
from pipelines.manifests import Jobs
from pipelines.stages import STAGES


def check_hardware(parameters: Mapping[str, Any], compiled: Mapping[str, Any]) -> None:
    """Check what a run overrides.

    Args:
        parameters: the run's parameters by name, whatever they are about.
        compiled: what the pipeline's manifests ask for, by their names.

    Raises:
        ConfigError: a value is not one that a cluster could take, or no machine with such GPUs has
            as many cores or as much memory.
    """
    for stage, placement in _resolve(parameters, compiled).items():
        container = {"name": stage, "image": f"raft-{stage}:0", "command": ["raft", stage]}
        pod = {"restartPolicy": "Never", "containers": [container]}
        _place(pod, placement)
        try:
            Pod.model_validate(pod)
        except ValidationError as error:
            words = ", ".join(
                f"{name} {parameters[name]}"
                for name, stages in OVERRIDES.items()
                if stage in stages and parameters.get(name)
            )
            problem = message(error.errors()[0])
            raise ConfigError(f"{stage} with {words}: {problem}") from None


def override_jobs(jobs: Jobs, parameters: Mapping[str, Any], compiled: Mapping[str, Any]) -> Jobs:
    """The Jobs as a run has them: on its hardware, with the secrets that it names.

    Args:
        parameters: those of the run, which `check_hardware` has found right.
        compiled: what the pipeline's manifests ask for, by their names.
    """
    placements = _resolve(parameters, compiled)
    moved = {}
    for stage in STAGES:
        with_gpus = stage == TWO_JOBS and parameters.get("teacher") == "vllm"
        job = jobs[WITH_GPUS if with_gpus else stage]
        data = job.model_dump(by_alias=True, exclude_unset=True)
        pod = data["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        _place(pod, placements[stage])
        for variable in container.get("env", ()):
            name = parameters.get(SECRETS.get(variable["name"], ""))
            secret = variable.get("valueFrom", {}).get("secretKeyRef", {})
            if secret and name not in (None, secret["name"]):
                secret |= {"name": name, "optional": False}  # who names one wants it
        moved[stage] = Job.model_validate(data)
    return moved


def _place(pod: dict[str, Any], placement: CompiledPlacement) -> None:
    resources = pod["containers"][0].setdefault("resources", {})
    pod["nodeSelector"] = placement.node_selector
    pod["tolerations"] = list(placement.tolerations)
    count = int(placement.gpu_count)
    gpus = {placement.gpu_resource: count} if count else {}
    for kind, cpu, memory in (
        ("requests", placement.cpu_request, placement.memory_request),
        ("limits", placement.cpu_limit, placement.memory_limit),
    ):
        amounts = resources.get(kind, {}).items()
        others = {name: amount for name, amount in amounts if not name.startswith("nvidia.com/")}
        resources[kind] = others | gpus | {"cpu": cpu, "memory": memory}


def _resolve(parameters: Mapping[str, Any], compiled: object) -> dict[str, CompiledPlacement]:
    overrides = {name: parameters[name] for name in (*OVERRIDES, "teacher") if name in parameters}
    config = HardwareConfig.parse({"compiled": compiled, "output": "-", **overrides})
    return config.placements()
