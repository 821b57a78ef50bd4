"""Puts on a pipeline's task what its Job manifest puts on a pod.

The same image, resources, node selector, tolerations, volumes, secrets, user and literal flags, so
an edit of a manifest changes both the Job and the step.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.core.config import flag
from components.core.errors import ConfigError
from components.core.hardware import TWO_JOBS
from pipelines.k8s.job import CONTAINER, Job
from pipelines.manifests import Jobs

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask


def compiled_hardware(jobs: Jobs) -> dict[str, Any]:
    """What the Job manifests ask for, as the hardware step is given it.

    Raises:
        ConfigError: a manifest asks for no CPU or memory, which Kubeflow cannot be given.
    """
    hardware = {}
    for stage, job in jobs.items():
        limits, requests = job.container.resources.limits, job.container.resources.requests
        for name, example in (("cpu", "8"), ("memory", "64Gi")):
            if not (getattr(limits, name) or getattr(requests, name)):
                raise ConfigError(
                    f"{job.place(*CONTAINER, 'resources')}: the step {stage} asks for no {name}",
                    hint=f"Add resources.requests.{name}, such as {example}.",
                )
        resource, count = limits.accelerator
        hardware[stage] = {
            **({"image": job.container.image} if job.stage == TWO_JOBS else {}),
            "gpu_resource": resource,
            "gpu_count": str(count),
            "cpu_request": requests.cpu or limits.cpu,
            "cpu_limit": limits.cpu or requests.cpu,
            "memory_request": requests.memory or limits.memory,
            "memory_limit": limits.memory or requests.memory,
            "node_selector": dict(job.pod.node_selector),
            "tolerations": [
                toleration.model_dump(by_alias=True, exclude_none=True)
                for toleration in job.pod.tolerations
            ],
        }
    return hardware


def as_light_step(task: "PipelineTask", job: Job) -> None:
    """Put on a task that only reads small files the image, user and nodes of a Job."""
    from kfp import kubernetes

    task.set_container_image(job.container.image)
    _set_pod(task, job)
    _mount_volumes(task, [job], claims=False)
    for key, value in job.pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in job.pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())


def as_stage_step(
    task: "PipelineTask",
    jobs: Sequence[Job],
    placement: Mapping[str, Any],
    fields: Collection[str],
    secrets: Mapping[str, Any],
) -> None:
    """Put on a stage's task what its Jobs ask for.

    Args:
        jobs: the stage's own, and the one with GPUs if it has both: the task has the volumes,
            variables and flags of all, and the accelerator of the last.
        placement: outputs of the hardware step, by field of its `Placement`.
        fields: settings that are fields of the pipeline's form, which has the Job's flags of that
            name as their defaults.
        secrets: parameters of the pipeline that name the secret of a variable, by variable.

    Raises:
        ConfigError: the pipeline or its component would not follow a flag.
    """
    from kfp import kubernetes

    job = jobs[0]
    task.set_container_image(placement.get("image", job.container.image))
    _set_pod(task, job)
    _mount_volumes(task, jobs, claims=True)
    for each in jobs:
        set_variables(task, each, secrets)
    _set_flags(jobs, task, fields)
    if deadline := max(each.pod.active_deadline_seconds or 0 for each in jobs):
        kubernetes.set_timeout(task, deadline)
    limits = jobs[-1].container.resources.limits
    # kfp does not pass these through the conditions and loops around a task by itself.
    task.register_pipeline_channels(list(placement.values()))
    # KFP has no request for accelerators: Kubernetes takes the limit for it.
    task.set_accelerator_type(limits.accelerator[0])
    task.set_accelerator_limit(placement["gpu_count"])
    task.set_cpu_request(placement["cpu_request"])
    if limits.cpu:
        task.set_cpu_limit(placement["cpu_limit"])
    task.set_memory_request(placement["memory_request"])
    task.set_memory_limit(placement["memory_limit"])
    kubernetes.add_node_selector_json(task, placement["node_selector"])
    kubernetes.add_toleration_json(task, placement["tolerations"])


def _set_pod(task: "PipelineTask", job: Job) -> None:
    """Give a task the labels and annotations, user and node affinity of a Job's pod."""
    from kfp import kubernetes

    if job.container.image_pull_policy:
        kubernetes.set_image_pull_policy(task, job.container.image_pull_policy)
    if job.pod.image_pull_secrets:
        pull_secrets = [secret.name for secret in job.pod.image_pull_secrets]
        kubernetes.set_image_pull_secrets(task, pull_secrets)
    for key, value in job.spec.template.metadata.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in job.spec.template.metadata.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if affinity := job.pod.affinity.node_affinity:
        nodes = affinity.model_dump(by_alias=True, exclude_unset=True)
        kubernetes.add_node_affinity_json(task, nodes)
    user = job.pod.security_context.model_dump(
        include={"run_as_user", "run_as_group", "run_as_non_root"}, exclude_none=True
    )
    if user:
        kubernetes.set_security_context(task, **user)


def _mount_volumes(task: "PipelineTask", jobs: Sequence[Job], *, claims: bool) -> None:
    """Mount the volumes of a step's Jobs; of two with the same path, the last one's."""
    from kfp import kubernetes

    volumes = {volume.name: volume for job in jobs for volume in job.pod.volumes}
    mounts = {mount.mount_path: mount for job in jobs for mount in job.container.volume_mounts}
    for mount in mounts.values():
        empty, claim = volumes[mount.name].empty_dir, volumes[mount.name].persistent_volume_claim
        if empty:
            kubernetes.empty_dir_mount(
                task, mount.name, mount.mount_path, empty.medium, empty.size_limit
            )
        elif claim and claims:
            kubernetes.mount_pvc(task, claim.claim_name, mount.mount_path, mount.sub_path)


def set_variables(task: "PipelineTask", job: Job, secrets: Mapping[str, Any]) -> None:
    """Give a task the variables of a Job, and those from secrets."""
    from kfp import kubernetes

    for variable in job.container.env:
        if variable.value_from is None:
            task.set_env_variable(variable.name, variable.value)
        else:
            secret = variable.value_from.secret_key_ref
            name = secrets.get(variable.name, secret.name)
            keys = {secret.key: variable.name}
            kubernetes.use_secret_as_env(task, name, keys, optional=secret.optional)


def _set_flags(jobs: Sequence[Job], task: "PipelineTask", fields: Collection[str]) -> None:
    """Give a task the flags that its Jobs give a value of their own.

    Raises:
        ConfigError: the pipeline or its component would not follow one.
    """
    settings = {name: value for job in jobs for name, value in job.settings().items()}
    for name, (value, place) in settings.items():
        if name in fields:
            continue
        if name in task.inputs:
            raise ConfigError(
                f"{place}: {flag(name)} has a value here, but in the pipeline it is a parameter",
                hint="Take the flag out of the args, and give the value when you start a run.",
            )
        if name not in task.component_spec.inputs:
            raise ConfigError(
                f"{place}: {flag(name)} is no parameter of the component, so the pipeline would "
                "run without it"
            )
        task.inputs[name] = list(value) if isinstance(value, tuple) else value
