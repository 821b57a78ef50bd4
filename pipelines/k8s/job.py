"""The Job of a stage: every field of its manifest that is understood, and what it may be.

A field that the pipeline has no use for is declared with `job_only` and the reason; any other field
is an error, because a setting that silently holds for a Job or for a step alone is worse than none.

Field names are Kubernetes' own (https://kubernetes.io/docs/reference/kubernetes-api), in snake case
here and in camel case in the files. What their values may be is left to the API server, which
`raft preflight` asks, but for what leaves a pod waiting, or is easily mistaken (values.py).
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from components.core.config import flag as flag_of
from components.core.errors import ConfigError
from pipelines.k8s.located import Document, StrictModel, fault, job_only, meant, validate
from pipelines.k8s.values import GPU, Bytes, Count, Cpu, Image, Labels, Selector, amount, check_fits
from pipelines.stages import STAGES, config_class


class PodMetadata(StrictModel):
    labels: Labels = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class JobMetadata(StrictModel):
    name: str
    namespace: str = job_only("KFP runs all steps in the namespace of the run")
    labels: Labels = job_only("a step has no Job object; the pod's labels are applied")


class Amounts(StrictModel):
    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Count | None = Field(None, alias=GPU)


class Resources(StrictModel):
    requests: Amounts = Amounts()
    limits: Amounts = Amounts()

    @model_validator(mode="after")
    def _limits_hold(self) -> "Resources":
        requests, limits = self.requests, self.limits
        if requests.gpu is not None and requests.gpu != limits.gpu:
            problem = (
                f"requests {requests.gpu} and limits {limits.gpu or 'none'} of {GPU}, but "
                "Kubernetes allows only equal ones"
            )
            raise fault(problem, "requests", GPU)
        for name in ("cpu", "memory"):
            request, limit = getattr(requests, name), getattr(limits, name)
            if request and limit and amount(request) > amount(limit):
                problem = f"{request}, more than the limit of {limit} (raise it or ask for less)"
                raise fault(problem, "requests", name)
        return self


class SecretKey(StrictModel):
    name: str
    key: str
    optional: bool = False


class ValueFrom(StrictModel):
    secret_key_ref: SecretKey


class Variable(StrictModel):
    name: str
    value: str = ""
    value_from: ValueFrom | None = None


class Reference(StrictModel):
    name: str
    optional: bool = False


class Source(StrictModel):
    config_map_ref: Reference


class Mount(StrictModel):
    name: str
    mount_path: str


class ContainerSecurity(StrictModel):
    allow_privilege_escalation: bool = job_only("the KFP backend forbids it for every step")
    capabilities: dict[str, Any] = job_only("the KFP backend drops all for every step")
    read_only_root_filesystem: bool = job_only("KFP's launcher writes outside our volumes")


class Container(StrictModel):
    name: str
    image: Image
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: Annotated[list[str], Field(min_length=1)]
    args: list[str] = Field(default_factory=list)
    env_from: list[Source] = job_only("these variables fill the Job's args")
    env: list[Variable] = Field(default_factory=list)
    resources: Resources = Resources()
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[Mount] = Field(default_factory=list)


class EmptyDir(StrictModel):
    medium: Literal["Memory"] | None = None
    size_limit: Bytes | None = None


class Volume(StrictModel):
    name: str
    empty_dir: EmptyDir


class Toleration(StrictModel):
    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class PullSecret(StrictModel):
    name: str


class PodSecurity(StrictModel):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int = job_only("KFP cannot set it; an emptyDir is writable without")
    seccomp_profile: dict[str, Any] = job_only("the KFP backend sets the runtime's default")


class Pod(StrictModel):
    service_account_name: str = job_only("a KFP run has one service account for all its steps")
    priority_class_name: str = job_only("KFP cannot set it")
    termination_grace_period_seconds: int = job_only("KFP cannot set it", ge=0)
    image_pull_secrets: list[PullSecret] = Field(default_factory=list)
    node_selector: Selector = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    security_context: PodSecurity = PodSecurity()
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = Field(default_factory=list)
    restart_policy: Literal["Never"] = job_only("KFP starts a failed step as a new pod", ...)

    @model_validator(mode="after")
    def _starts(self) -> "Pod":
        at = ("containers", 0, "resources", "requests")
        resources = self.containers[0].resources
        gpus = resources.limits.gpu or 0
        # Kubernetes takes the limit for a request that is absent.
        requests = resources.limits.model_dump() | resources.requests.model_dump(exclude_none=True)
        check_fits(self.node_selector, gpus, requests, *at)
        for index, toleration in enumerate(self.tolerations if gpus else ()):
            key = toleration.key or ""
            if key != GPU and difflib.get_close_matches(key.lower(), [GPU], cutoff=0.9):
                problem = f"{key!r} is no taint of GPU nodes; did you mean {GPU}?"
                raise fault(problem, "tolerations", index, "key")
        known = {volume.name for volume in self.volumes}
        for index, mount in enumerate(self.containers[0].volume_mounts):
            if mount.name not in known:
                allowed = ", ".join(sorted(known)) or "none"
                problem = f"{mount.name!r}, but volumes has no such entry (allowed: {allowed})"
                raise fault(problem, "containers", 0, "volumeMounts", index, "name")
        return self


class Template(StrictModel):
    metadata: PodMetadata = PodMetadata()
    spec: Pod


class JobSpec(StrictModel):
    template: Template
    backoff_limit: int = job_only("the pipeline sets its own retries", ge=0)
    pod_failure_policy: dict[str, Any] = job_only("it sorts the failures of a Job's pods")
    suspend: bool = job_only("Kueue starts a Job with it; steps queue by the pod's label")
    ttl_seconds_after_finished: int = job_only("KFP tidies up after its own pods", ge=0)


POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)


class Job(StrictModel):
    """One stage's Job manifest."""

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: JobMetadata
    spec: JobSpec
    _document: Document | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _is_of_a_stage(self) -> "Job":
        name, command = self.metadata.name, self.container.command
        if self.stage not in STAGES or name == self.stage:
            allowed = ", ".join(f"raft-{stage}" for stage in STAGES)
            problem = f"{name!r}: not the Job of a stage (allowed: {allowed})"
            raise fault(problem, "metadata", "name")
        if command != ["raft", self.stage]:
            problem = f"{command} (allowed: ['raft', '{self.stage}'])"
            raise fault(problem, *CONTAINER, "command")
        return self

    @property
    def pod(self) -> Pod:
        return self.spec.template.spec

    @property
    def container(self) -> Container:
        return self.pod.containers[0]

    @property
    def stage(self) -> str:
        return self.metadata.name.removeprefix("raft-")

    def place(self, *location: int | str) -> str:
        """`file:line` of a field."""
        return self._document.place(*location) if self._document else self.metadata.name

    def settings(self) -> dict[str, tuple[Any, str]]:
        """Flags that the Job's args give a value of their own, not one of a $(VARIABLE).

        Returns:
            By setting, the value and its place.

        Raises:
            ConfigError: the stage has no such flag, or does not take its value.
        """
        config = config_class(self.stage)
        required = [name for name, field in config.model_fields.items() if field.is_required()]
        unset = dict.fromkeys(required, "unset")
        settings: dict[str, tuple[Any, str]] = {}
        flags: set[str] = set()
        for index, argument in enumerate(self.container.args):
            place = self.place(*CONTAINER, "args", index)
            flag, sign, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            if not flag.startswith("--") or not sign or name not in config.model_fields:
                raise ConfigError(
                    f"{place}: {argument!r} (allowed: --flag=value, with a flag of raft "
                    f"{self.stage}){meant(flag, map(flag_of, config.model_fields))}",
                    hint=f"raft {self.stage} --help shows every flag.",
                )
            if name in flags:
                raise ConfigError(f"{place}: {flag} is given twice", hint="Keep one of them.")
            flags.add(name)
            if "$(" not in value:
                try:
                    parsed = config.parse(unset | {name: value})
                except ConfigError as error:
                    raise ConfigError(f"{place}: {error}", hint=error.hint) from None
                settings[name] = (getattr(parsed, name), place)
        return settings


def job_of(document: Document) -> Job:
    """Take a document as the Job of a stage.

    Raises:
        ConfigError: a field is wrong or not understood, or it is not the Job of a stage.
    """
    job = validate(document, Job)
    job._document = document
    job.settings()
    return job
