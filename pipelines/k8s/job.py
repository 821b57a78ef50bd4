"""The Job of a stage: every field of its manifest that is understood, and its allowed values.

A field that the pipeline has no use for is declared with `job_only` and the reason; any other field
is an error, because a setting that silently holds for a Job or for a step alone is worse than none.

Field names are Kubernetes' own (https://kubernetes.io/docs/reference/kubernetes-api), in snake case
here and in camel case in the files. What their values may be is left to the API server, which
`raft preflight` asks, but for what leaves a pod waiting, or is easily mistaken (values.py).
"""

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from components.core.config import flag as flag_of
from components.core.errors import ConfigError
from components.core.gpus import RESOURCE
from pipelines.k8s import values
from pipelines.k8s.located import Document, StrictModel, fault, job_only, meant, set_for, validate
from pipelines.k8s.values import Bytes, Count, Cpu, Image, Labels, Selector
from pipelines.stages import GPU_TEACHER, JOBS, config_class

STEP_LACKS = "the pipeline's step runs without it, because KFP cannot set it"
"""Why a field is the Job's alone although the pod may need it to do its work."""


class PodMetadata(StrictModel):
    labels: Labels = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class JobMetadata(StrictModel):
    name: str
    namespace: str = job_only("KFP runs all steps in the namespace of the run")
    labels: Labels = job_only("a step has no Job object; the pod's labels are applied")


class Amounts(StrictModel):
    """Slices of a GPU are extra fields, such as `nvidia.com/mig-3g.20gb: 1`."""

    model_config = ConfigDict(extra="allow")
    further = values.SLICE

    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Count | None = Field(None, alias=RESOURCE)
    ephemeral_storage: Bytes | None = job_only(STEP_LACKS, alias="ephemeral-storage")

    @model_validator(mode="after")
    def _one_kind_of_gpu(self) -> "Amounts":
        slices = self.model_extra or {}
        for resource, count in slices.items():
            if not re.fullmatch(values.COUNT, str(count)):
                raise fault(f"{count!r}: not whole slices, at least 1", resource)
            if self.gpu or len(slices) > 1:
                raise fault("not beside another kind of GPU", resource)
        return self

    @property
    def accelerator(self) -> tuple[str, int]:
        """The resource that a GPU or its slices are, and how many are asked for."""
        for resource, count in (self.model_extra or {}).items():
            return resource, int(count)
        return RESOURCE, self.gpu or 0


class Resources(StrictModel):
    requests: Amounts = Amounts()
    limits: Amounts = Amounts()

    @model_validator(mode="after")
    def _limits_hold(self) -> "Resources":
        (wanted, count), (resource, limit) = self.requests.accelerator, self.limits.accelerator
        if count and (wanted, count) != (resource, limit):
            limited = limit if wanted == resource and limit else "none"
            raise fault(f"not equal to the limit, which is {limited}", "requests", wanted)
        for name in ("cpu", "memory", "ephemeral_storage"):
            request, most = getattr(self.requests, name), getattr(self.limits, name)
            if request and most and values.amount(request) > values.amount(most):
                key = name.replace("_", "-")
                raise fault(f"{request}, more than the limit of {most}", "requests", key)
        return self


class Named(StrictModel):
    name: str


class Reference(Named):
    optional: bool = False


class SecretKey(Reference):
    key: str


class ValueFrom(StrictModel):
    secret_key_ref: SecretKey


class Variable(StrictModel):
    name: str
    value: str = ""
    value_from: ValueFrom | None = None


class Source(StrictModel):
    config_map_ref: Reference


class Mount(StrictModel):
    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool = job_only(STEP_LACKS, False)


class Container(StrictModel):
    name: str
    image: Image
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: Annotated[list[str], Field(min_length=1)]
    args: list[str] = Field(default_factory=list)
    env_from: list[Source] = job_only("these variables fill the Job's args")
    env: list[Variable] = Field(default_factory=list)
    resources: Resources = Resources()
    security_context: dict[str, Any] = job_only("the KFP backend sets its own for every step")
    volume_mounts: list[Mount] = Field(default_factory=list)


class EmptyDir(StrictModel):
    medium: Literal["Memory"] | None = None
    size_limit: Bytes | None = None


class Claim(StrictModel):
    claim_name: str


class Volume(StrictModel):
    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Volume":
        if (self.empty_dir is None) == (self.persistent_volume_claim is None):
            raise fault(f"{self.name}: not one of emptyDir and persistentVolumeClaim")
        return self


class NodeAffinity(StrictModel):
    required: dict[str, Any] | None = Field(
        None, alias="requiredDuringSchedulingIgnoredDuringExecution"
    )
    preferred: list[dict[str, Any]] = Field(
        default_factory=list, alias="preferredDuringSchedulingIgnoredDuringExecution"
    )


class Affinity(StrictModel):
    node_affinity: NodeAffinity | None = None
    pod_affinity: dict[str, Any] = job_only(STEP_LACKS)
    pod_anti_affinity: dict[str, Any] = job_only(STEP_LACKS)


class Toleration(StrictModel):
    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class PodSecurity(StrictModel):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int = job_only("KFP cannot set it; an emptyDir is writable without")
    seccomp_profile: dict[str, Any] = job_only("the KFP backend sets the runtime's default")


class Pod(StrictModel):
    service_account_name: str = job_only("a KFP run has one service account for all its steps")
    priority_class_name: str = job_only("KFP cannot set it")
    runtime_class_name: str = job_only(STEP_LACKS)
    active_deadline_seconds: int | None = Field(None, ge=1)
    termination_grace_period_seconds: int = job_only("KFP cannot set it", ge=0)
    image_pull_secrets: list[Named] = Field(default_factory=list)
    node_selector: Selector = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    affinity: Affinity = Affinity()
    security_context: PodSecurity = PodSecurity()
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = Field(default_factory=list)
    restart_policy: Literal["Never"] = job_only("KFP starts a failed step as a new pod", ...)

    @model_validator(mode="after")
    def _starts(self) -> "Pod":
        at = ("containers", 0, "resources", "requests")
        resources = self.containers[0].resources
        # Kubernetes takes the limit for a request that is absent.
        requests = resources.limits.model_dump() | resources.requests.model_dump(exclude_none=True)
        values.check_fits(self.node_selector, resources.limits.gpu or 0, requests, *at)
        _, gpus = resources.limits.accelerator
        for index, toleration in enumerate(self.tolerations if gpus else ()):
            key = toleration.key or ""
            if key != RESOURCE and difflib.get_close_matches(key.lower(), [RESOURCE], cutoff=0.9):
                problem = f"{key!r} is no taint of GPU nodes; did you mean {RESOURCE}?"
                raise fault(problem, "tolerations", index, "key")
        known = {volume.name: volume for volume in self.volumes}
        for index, mount in enumerate(self.containers[0].volume_mounts):
            place = ("containers", 0, "volumeMounts", index)
            if mount.name not in known:
                allowed = ", ".join(sorted(known)) or "none"
                problem = f"{mount.name!r}, but volumes has no such entry (allowed: {allowed})"
                raise fault(problem, *place, "name")
            if mount.sub_path and known[mount.name].empty_dir:
                raise fault("only of a persistentVolumeClaim, for KFP", *place, "subPath")
        return self

    @property
    def claims(self) -> dict[str, str]:
        """The volume claims that are mounted, by the place where they are."""
        named = {volume.name: volume.persistent_volume_claim for volume in self.volumes}
        mounts = ((mount, named[mount.name]) for mount in self.containers[0].volume_mounts)
        return {mount.mount_path: claim.claim_name for mount, claim in mounts if claim}


class Template(StrictModel):
    metadata: PodMetadata = PodMetadata()
    spec: Pod


class JobSpec(StrictModel):
    template: Template
    backoff_limit: int = job_only("the pipeline sets its own retries", ge=0)
    pod_failure_policy: dict[str, Any] = job_only("it sorts the failures of a Job's pods")
    active_deadline_seconds: int = job_only("KFP limits each attempt, by the pod's own", ge=1)
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
        names = [f"raft-{job}" for job in JOBS]
        if name not in names:
            problem = f"{name!r}: not the Job of a stage (allowed: {', '.join(names)})"
            raise fault(problem, "metadata", "name")
        if command != ["raft", self.stage]:
            raise fault(f"{command} (allowed: ['raft', '{self.stage}'])", *CONTAINER, "command")
        return self

    @property
    def pod(self) -> Pod:
        return self.spec.template.spec

    @property
    def container(self) -> Container:
        return self.pod.containers[0]

    @property
    def name(self) -> str:
        """One of JOBS."""
        return self.metadata.name.removeprefix("raft-")

    @property
    def stage(self) -> str:
        return "generate" if self.name == GPU_TEACHER else self.name

    def place(self, *location: int | str) -> str:
        """`file:line` of a field."""
        return self._document.place(*location) if self._document else self.metadata.name

    def notes(self) -> Iterator[str]:
        """What a step of the pipeline lacks, because only a Job can have it."""
        for location in set_for(self, STEP_LACKS):
            yield f"{self.place(*location)}: {location[-1]}: {STEP_LACKS}"

    def settings(self) -> dict[str, tuple[Any, str]]:
        """Flags that the Job's args give a value of their own, not one of a $(VARIABLE).

        Returns:
            By setting, the value and its place.

        Raises:
            ConfigError: the stage has no such flag, or does not take its value.
        """
        config = config_class(self.stage)
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
                    settings[name] = config.parse_one(name, value), place
                except ConfigError as error:
                    raise ConfigError(f"{place}: {error}", hint=error.hint) from None
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
