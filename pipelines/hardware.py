"""The hardware of a pipeline's steps: what their Jobs ask for, or what a run is started with.

`apply` puts the same image, resources, node selector, tolerations, volumes, secrets and user on the
pipeline's task as `kubectl` would put on the pod, and `apply_flags` the literal flags, so an edit
of a manifest changes both.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from components.core.config import flag
from components.core.errors import ConfigError
from pipelines.k8s.job import Job, Resources, Variable
from pipelines.k8s.machines import check_fits
from pipelines.k8s.values import GPU, Bytes, Selector
from pipelines.manifests import Jobs

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

PLACED = ("train", "quantize-check", "eval")
"""The stages whose hardware can be chosen when a run is started."""


class Hardware(NamedTuple):
    """What can be chosen when a run is started: values, or the pipeline's parameters.

    A value of None stays what the manifest says.
    """

    train_gpus: Any = None
    memory: Any = None
    node_selector: Any = None


GpuCount = Annotated[str, Field(pattern="^[0-9]+$")]
"""GPUs as text: the driver of Kubeflow Pipelines gives a pod no GPU where the limit comes from a
parameter of another type, and reports nothing."""


class HardwareValues(TypedDict, total=False):
    """What may be chosen for each."""

    train_gpus: GpuCount
    memory: Bytes
    node_selector: Selector


def hardware_of_train(jobs: Jobs) -> Hardware:
    """What the Job of train asks for: the default of the pipeline's parameters."""
    job = jobs["train"]
    limits = job.container.resources.limits
    return Hardware(str(limits.gpu or 0), limits.memory or "", dict(job.pod.node_selector))


def hardware_of_run(parameters: Mapping[str, Any]) -> Hardware:
    """The hardware among the parameters of a run.

    Raises:
        ConfigError: a value is not one that a cluster could take, or no machine with such GPUs has
            so much memory.
    """
    values = {name: parameters[name] for name in Hardware._fields if name in parameters}
    try:
        found = Hardware(**TypeAdapter(HardwareValues).validate_python(values))
        asked = {"memory": found.memory}
        check_fits(found.node_selector or {}, int(found.train_gpus or 0), asked)
        return found
    except PydanticCustomError as error:
        raise ConfigError(
            f"memory {found.memory}, train_gpus {found.train_gpus}: {error}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        problem = first["msg"].removeprefix("Value error, ")
        if name == "train_gpus":
            problem = "not a number of GPUs (allowed: 0, 1, 2, ...)"
        raise ConfigError(f"{name} {values[name]!r}: {problem}") from None


Steer = Callable[[str, Any], Any]
"""Takes a field of `Hardware` and what a Job says there, and gives what holds in the run."""


def steering(jobs: Jobs, chosen: Hardware) -> Steer:
    """What is chosen holds wherever a Job says what the Job of train says."""
    default = hardware_of_train(jobs)

    def steer(field: str, value: Any) -> Any:
        found = getattr(chosen, field)
        return value if found is None or value != getattr(default, field) else found

    return steer


def chosen(jobs: Jobs, values: Hardware) -> Jobs:
    """The Jobs on the hardware that a run is started with.

    Raises:
        ConfigError: the limit chosen is below what a Job requests.
    """
    steer = steering(jobs, values)
    found = dict(jobs)
    for stage in PLACED:
        data = jobs[stage].model_dump(by_alias=True, exclude_unset=True)
        pod = data["spec"]["template"]["spec"]
        pod["nodeSelector"] = steer("node_selector", pod.get("nodeSelector", {}))
        for amounts in pod["containers"][0].get("resources", {}).values():
            amounts["memory"] = steer("memory", amounts.get("memory"))
            if stage == "train":
                amounts[GPU] = int(steer("train_gpus", str(amounts.get(GPU, 0)))) or None
        try:
            found[stage] = Job.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"memory {values.memory}: {error.errors()[0]['msg']}") from None
    return found


def apply(job: Job, task: "PipelineTask", steer: Steer = lambda _, value: value) -> None:
    """Make a pipeline task ask for what its Job asks for, or what the run is started with."""
    from kfp import kubernetes
    from kfp.dsl.pipeline_channel import PipelineChannel

    def steered(field: str, value: Any) -> Any:
        found = steer(field, value)
        if isinstance(found, PipelineChannel):
            # kfp forgets to hand these through the conditions and loops around a task.
            task.register_pipeline_channels([found])
        return found

    task.set_container_image(job.container.image)
    _apply_resources(job.container.resources, task, steered)
    if job.container.image_pull_policy:
        kubernetes.set_image_pull_policy(task, job.container.image_pull_policy)
    if job.pod.image_pull_secrets:
        kubernetes.set_image_pull_secrets(
            task, [secret.name for secret in job.pod.image_pull_secrets]
        )
    for key, value in job.spec.template.metadata.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in job.spec.template.metadata.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    selector = steered("node_selector", job.pod.node_selector)
    if isinstance(selector, PipelineChannel):
        kubernetes.add_node_selector_json(task, selector)
    else:
        for key, value in selector.items():
            kubernetes.add_node_selector(task, key, value)
    for toleration in job.pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    for variable in job.container.env:
        _apply_variable(variable, task)
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


def _apply_resources(resources: Resources, task: "PipelineTask", steered: Steer) -> None:
    if resources.requests.cpu:
        task.set_cpu_request(resources.requests.cpu)
    if resources.requests.memory:
        task.set_memory_request(steered("memory", resources.requests.memory))
    if resources.limits.cpu:
        task.set_cpu_limit(resources.limits.cpu)
    if resources.limits.memory:
        task.set_memory_limit(steered("memory", resources.limits.memory))
    gpus = steered("train_gpus", str(resources.limits.gpu or 0))
    if gpus != "0":
        # KFP has no request for accelerators: Kubernetes takes the limit for it.
        task.set_accelerator_type(GPU)
        task.set_accelerator_limit(gpus)


def _apply_variable(variable: Variable, task: "PipelineTask") -> None:
    from kfp import kubernetes

    if variable.value_from is None:
        task.set_env_variable(variable.name, variable.value)
        return
    secret = variable.value_from.secret_key_ref
    kubernetes.use_secret_as_env(
        task, secret.name, {secret.key: variable.name}, optional=secret.optional
    )


def apply_flags(job: Job, task: "PipelineTask") -> None:
    """Give a task the flags that its Job gives a value of their own.

    Raises:
        ConfigError: the pipeline or its component would not follow one.
    """
    for name, value in job.settings().items():
        if name in task.inputs:
            raise ConfigError(
                f"{job.place_of(name)}: {flag(name)} has a value here, but in the pipeline it is "
                "a parameter",
                hint="Take the flag out of the args, and give the value when you start a run.",
            )
        if name not in task.component_spec.inputs:
            raise ConfigError(
                f"{job.place_of(name)}: {flag(name)} is no parameter of the component, so the "
                "pipeline would run without it"
            )
        task.inputs[name] = list(value) if isinstance(value, tuple) else value
