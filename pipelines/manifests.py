"""Job manifests as the one place that says what a step needs: reads k8s/ and applies it to KFP.

`kubectl` uses `k8s/base/<stage>.yaml` as it is; `apply` puts the same image, resources, node
selector, tolerations, volumes, secrets and user on the pipeline's task, so an edit of the manifest
changes both. The classes below list every field that is understood. A field that the pipeline has
no use for is declared with `job_only` and the reason; any other field is an error, because a
setting that silently holds for one of the two is worse than none.

Field names are Kubernetes' own (https://kubernetes.io/docs/reference/kubernetes-api), in snake
case here and in camel case in the files.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from components.errors import ConfigError

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

BASE = Path(__file__).parents[1] / "k8s" / "base"

GPU = "nvidia.com/gpu"


def _spelled(pattern: str, allowed: str) -> BeforeValidator:
    def check(value: object) -> str:
        if re.fullmatch(pattern, str(value)) is None:
            raise ValueError(f"not a quantity (allowed: {allowed})")
        return str(value)

    return BeforeValidator(check)


Cpu = Annotated[str, _spelled(r"[0-9]+m|[0-9]+(\.[0-9]+)?", "cores such as 8, 0.5 or 500m")]
"""Cores, or thousandths of one."""

Bytes = Annotated[str, _spelled(r"[0-9]+(Ki|Mi|Gi|Ti|M|G|T)?", "bytes such as 64Gi or 512Mi")]
"""Bytes with a binary or decimal suffix."""


def job_only(reason: str) -> Any:
    """Declare an optional field that matters to the Job alone, and why the pipeline needs none."""
    return Field(None, description=f"Job only: {reason}")


class Part(BaseModel):
    """A piece of a manifest: fields that are not declared are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class PodMetadata(Part):
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class JobMetadata(Part):
    name: str
    namespace: str = job_only("KFP runs all steps in the namespace of the run")
    labels: dict[str, str] = job_only("a step has no Job object; the pod's labels are applied")


class Amounts(Part):
    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Annotated[int, Field(ge=1)] | None = Field(None, alias=GPU)


class Resources(Part):
    requests: Amounts = Amounts()
    limits: Amounts = Amounts()

    @model_validator(mode="after")
    def _gpus_agree(self) -> "Resources":
        if self.requests.gpu is not None and self.requests.gpu != self.limits.gpu:
            raise ValueError(
                f"requests {self.requests.gpu} and limits {self.limits.gpu} of {GPU}, "
                "but Kubernetes allows only equal ones"
            )
        return self


class SecretKey(Part):
    name: str
    key: str
    optional: bool = False


class ValueFrom(Part):
    secret_key_ref: SecretKey


class Variable(Part):
    name: str
    value: str = ""
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "Variable":
        if self.value and self.value_from:
            raise ValueError(f"{self.name} has a value and a valueFrom, but may have only one")
        return self


class Mount(Part):
    name: str
    mount_path: str


class ContainerSecurity(Part):
    allow_privilege_escalation: bool = job_only("the KFP backend forbids it for every step")
    capabilities: dict[str, list[str]] = job_only("the KFP backend drops all for every step")
    read_only_root_filesystem: bool = job_only("KFP's launcher writes outside our volumes")


class Container(Part):
    name: str
    image: str
    command: list[str]
    args: list[str] = job_only("in the pipeline, parameters and artifacts make the flags")
    env_from: list[dict[str, Any]] = job_only("these variables fill the Job's args")
    env: list[Variable] = Field(default_factory=list)
    resources: Resources = Resources()
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[Mount] = Field(default_factory=list)


class EmptyDir(Part):
    medium: Literal["Memory"] | None = None
    size_limit: Bytes | None = None


class Volume(Part):
    name: str
    empty_dir: EmptyDir


class Toleration(Part):
    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class PodSecurity(Part):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int = job_only("KFP cannot set it; an emptyDir is writable without")
    seccomp_profile: dict[str, str] = job_only("the KFP backend sets the runtime's default")


class Pod(Part):
    restart_policy: Literal["Never"] = job_only("KFP starts a failed step as a new pod")
    service_account_name: str = job_only("a KFP run has one service account for all its steps")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    security_context: PodSecurity = PodSecurity()
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = Field(default_factory=list)

    @model_validator(mode="after")
    def _mounts_exist(self) -> "Pod":
        known = {volume.name for volume in self.volumes}
        for mount in self.containers[0].volume_mounts:
            if mount.name not in known:
                raise ValueError(
                    f"volumeMounts names {mount.name!r}, but volumes has no such entry"
                )
        return self


class Template(Part):
    metadata: PodMetadata = PodMetadata()
    spec: Pod


class JobSpec(Part):
    template: Template
    backoff_limit: int = job_only("the pipeline sets its own retries")
    pod_failure_policy: dict[str, Any] = job_only("it sorts the failures of a Job's pods")


class Job(Part):
    """One stage's Job manifest."""

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: JobMetadata
    spec: JobSpec

    @property
    def pod(self) -> Pod:
        return self.spec.template.spec

    @property
    def container(self) -> Container:
        return self.pod.containers[0]


def load(stage: str, folder: Path = BASE) -> Job:
    """Read the Job manifest of a stage ("quantize-check").

    Raises:
        ConfigError: no such file, not YAML, or a field that is wrong or not understood; names
            file and field.
    """
    path = folder / f"{stage}.yaml"
    try:
        job = Job.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}",
            hint="The Job manifests lie in k8s/base of a checkout; run `raft` from one.",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(path, fault) for fault in error.errors()),
            hint="Fields that the pipeline can follow are listed in pipelines/manifests.py.",
        ) from None
    if job.container.command != ["raft", stage]:
        raise ConfigError(
            f"{path}: spec.template.spec.containers.0.command: {job.container.command} "
            f"(allowed: ['raft', '{stage}'])"
        )
    return job


def _explain(path: Path, fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{path}: {field}: not understood, so the pipeline would run without it"
    problem = str(fault["msg"]).removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], dict) else f" {fault['input']!r}"
    return f"{path}: {field}{value}: {problem}"


def apply(job: Job, task: "PipelineTask") -> None:
    """Make a pipeline task ask for what its Job asks for."""
    from kfp import kubernetes

    task.set_container_image(job.container.image)
    _apply_resources(job.container.resources, task)
    for key, value in job.spec.template.metadata.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in job.spec.template.metadata.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    for key, value in job.pod.node_selector.items():
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


def _apply_resources(resources: Resources, task: "PipelineTask") -> None:
    if resources.requests.cpu:
        task.set_cpu_request(resources.requests.cpu)
    if resources.requests.memory:
        task.set_memory_request(resources.requests.memory)
    if resources.limits.cpu:
        task.set_cpu_limit(resources.limits.cpu)
    if resources.limits.memory:
        task.set_memory_limit(resources.limits.memory)
    if resources.limits.gpu:
        # KFP has no request for accelerators: Kubernetes takes the limit for it.
        task.set_accelerator_type(GPU)
        task.set_accelerator_limit(resources.limits.gpu)


def _apply_variable(variable: Variable, task: "PipelineTask") -> None:
    from kfp import kubernetes

    if variable.value_from is None:
        task.set_env_variable(variable.name, variable.value)
        return
    secret = variable.value_from.secret_key_ref
    kubernetes.use_secret_as_env(
        task, secret.name, {secret.key: variable.name}, optional=secret.optional
    )
