"""What a run overrides of its steps' hardware, checked before the cluster sees it.

`components/core/hardware.py` names which parameter overrides which step, and resolves them in the
run's first step; here the same function answers `raft submit` and `raft preflight`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from components.core.config import complaint
from components.core.errors import ConfigError
from components.core.hardware import GPU_STEPS, OVERRIDES, HardwareConfig, Placement
from pipelines.k8s.job import CONTAINER, Job, Toleration
from pipelines.k8s.values import GPU, Selector, check_fits
from pipelines.manifests import Jobs

CHECKS: Mapping[str, TypeAdapter[Any]] = {
    "node_selector": TypeAdapter(Selector),
    "tolerations": TypeAdapter(list[Toleration]),
}
"""What Kubernetes, or GKE, allows beyond what the step itself checks."""


def compiled_hardware(jobs: Jobs) -> dict[str, Any]:
    """What the Job manifests of the GPU steps ask for, as the hardware step is given it.

    Raises:
        ConfigError: a manifest asks for no memory, which Kubeflow cannot be given.
    """
    found = {}
    for stage in GPU_STEPS:
        job = jobs[stage]
        limits, requests = job.container.resources.limits, job.container.resources.requests
        if not (limits.memory or requests.memory):
            raise ConfigError(
                f"{job.place(*CONTAINER, 'resources')}: the step {stage} asks for no memory",
                hint="Add resources.requests.memory, such as 64Gi.",
            )
        found[stage] = {
            "gpu_count": str(limits.gpu or 0),
            "memory_request": requests.memory or limits.memory,
            "memory_limit": limits.memory or requests.memory,
            "node_selector": dict(job.pod.node_selector),
            "tolerations": [
                toleration.model_dump(by_alias=True, exclude_none=True)
                for toleration in job.pod.tolerations
            ],
        }
    return found


def hardware_of_run(
    parameters: Mapping[str, Any], compiled: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The overrides among the parameters of a run.

    Args:
        parameters: the run's parameters by name, whatever they are about.
        compiled: what the pipeline's manifests ask for, by stage.

    Raises:
        ConfigError: a value is not one that a cluster could take, or no machine with such GPUs has
            so much memory.
    """
    overrides = {name: parameters[name] for name in OVERRIDES if parameters.get(name)}
    for name, value in overrides.items():
        try:
            HardwareConfig.model_validate({name: value, "output": "-"})
            if name in CHECKS:
                CHECKS[name].validate_python(value)
        except ValidationError as error:
            problem = complaint(error.errors()[0], HardwareConfig.model_fields[name])
            raise ConfigError(f"{name} {value!r}{problem}") from None
    for stage, placement in _resolve(compiled or {}, overrides).items():
        memory = {"memory": placement.memory_request}
        try:
            check_fits(placement.node_selector, int(placement.gpu_count), memory)
        except PydanticCustomError as error:
            words = ", ".join(
                f"{name} {value}" for name, value in overrides.items() if stage in OVERRIDES[name]
            )
            raise ConfigError(f"{stage} with {words}: {error}") from None
    return overrides


def chosen(jobs: Jobs, overrides: Mapping[str, Any], compiled: Mapping[str, Any]) -> Jobs:
    """The Jobs on the hardware of a run: what its pipeline was compiled with, and its overrides.

    Raises:
        ConfigError: a Job cannot ask for that.
    """
    found = dict(jobs)
    for stage, placement in _resolve(compiled, overrides).items():
        data = jobs[stage].model_dump(by_alias=True, exclude_unset=True)
        pod = data["spec"]["template"]["spec"]
        pod["nodeSelector"] = placement.node_selector
        pod["tolerations"] = list(placement.tolerations)
        for kind, memory in (
            ("requests", placement.memory_request),
            ("limits", placement.memory_limit),
        ):
            amounts = pod["containers"][0].setdefault("resources", {}).setdefault(kind, {})
            amounts["memory"] = memory
            amounts[GPU] = int(placement.gpu_count) or None
        try:
            found[stage] = Job.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{stage}: {error.errors()[0]['msg']}") from None
    return found


def _resolve(compiled: Mapping[str, Any], overrides: Mapping[str, Any]) -> Mapping[str, Placement]:
    config = HardwareConfig.parse({"compiled": compiled, "output": "-", **overrides})
    return config.placements().by_stage
