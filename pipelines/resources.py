"""Puts on a pipeline's task what its Job manifest puts on a pod.

The same image, resources, node selector, tolerations, volumes, secrets, user and literal flags, so
an edit of a manifest changes both the Job and the step.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.core.config import flag
from components.core.errors import ConfigError
from pipelines.k8s.job import Job
from pipelines.k8s.values import GPU

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask


def with_job_resources(
    task: "PipelineTask",
    job: Job,
    placement: Mapping[str, Any] | None = None,
    *,
    light: bool = False,
) -> "PipelineTask":
    """A task that asks for what its Job asks for.

    Args:
        placement: outputs of the hardware step, by field of its `Placement`, which replace what
            the Job says of these.
        light: whether the task only reads small files: without the Job's amounts, GPU, variables
            and flags.

    Raises:
        ConfigError: the pipeline or its component would not follow a flag.
    """
    from kfp import kubernetes

    task.set_container_image(job.container.image)
    if job.container.image_pull_policy:
        kubernetes.set_image_pull_policy(task, job.container.image_pull_policy)
    if job.pod.image_pull_secrets:
        pull_secrets = [secret.name for secret in job.pod.image_pull_secrets]
        kubernetes.set_image_pull_secrets(task, pull_secrets)
    for key, value in job.spec.template.metadata.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in job.spec.template.metadata.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if not light:
        _set_amounts(task, job)
        _set_variables(task, job)
        _set_flags(job, task)
    volumes = {volume.name: volume.empty_dir for volume in job.pod.volumes}
    for mount in job.container.volume_mounts:
        empty = volumes[mount.name]
        kubernetes.empty_dir_mount(
            task, mount.name, mount.mount_path, empty.medium, empty.size_limit
        )
    user = job.pod.security_context.model_dump(
        include={"run_as_user", "run_as_group", "run_as_non_root"}, exclude_none=True
    )
    if user:
        kubernetes.set_security_context(task, **user)
    if placement is None:
        for key, value in job.pod.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in job.pod.tolerations:
            kubernetes.add_toleration(task, **toleration.model_dump())
    else:
        _set_placement(task, placement)
    return task


def _set_amounts(task: "PipelineTask", job: Job) -> None:
    limits, requests = job.container.resources.limits, job.container.resources.requests
    for kind, amounts in (("request", requests), ("limit", limits)):
        for resource in ("cpu", "memory"):
            if amount := getattr(amounts, resource):
                getattr(task, f"set_{resource}_{kind}")(amount)
    if limits.gpu:
        # KFP has no request for accelerators: Kubernetes takes the limit for it.
        task.set_accelerator_type(GPU)
        task.set_accelerator_limit(limits.gpu)


def _set_variables(task: "PipelineTask", job: Job) -> None:
    from kfp import kubernetes

    for variable in job.container.env:
        if variable.value_from is None:
            task.set_env_variable(variable.name, variable.value)
        else:
            secret = variable.value_from.secret_key_ref
            names = {secret.key: variable.name}
            kubernetes.use_secret_as_env(task, secret.name, names, optional=secret.optional)


def _set_placement(task: "PipelineTask", placement: Mapping[str, Any]) -> None:
    from kfp import kubernetes

    # kfp does not pass these through the conditions and loops around a task by itself.
    task.register_pipeline_channels(list(placement.values()))
    task.set_accelerator_type(GPU)
    task.set_accelerator_limit(placement["gpu_count"])
    task.set_memory_request(placement["memory_request"])
    task.set_memory_limit(placement["memory_limit"])
    kubernetes.add_node_selector_json(task, placement["node_selector"])
    kubernetes.add_toleration_json(task, placement["tolerations"])


def _set_flags(job: Job, task: "PipelineTask") -> None:
    """Give a task the flags that its Job gives a value of their own.

    Raises:
        ConfigError: the pipeline or its component would not follow one.
    """
    for name, (value, place) in job.settings().items():
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
