"""Job manifests as the one place that says what a step needs: reads k8s/ and applies it to KFP.

`kubectl` uses `k8s/base/<stage>.yaml` as it is; `apply` puts the same image, resources, node
selector, tolerations, volumes, secrets, user and literal flags on the pipeline's task, so an edit
of the manifest changes both. The classes below list every field that is understood. A field that
the pipeline has no use for is declared with `job_only` and the reason; any other field is an error,
because a setting that silently holds for one of the two is worse than none.

Field names are Kubernetes' own (https://kubernetes.io/docs/reference/kubernetes-api), in snake case
here and in camel case in the files; what their values may be is in values.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TextIO

from pydantic import (
    Field,
    NonNegativeInt,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from components.errors import ConfigError
from pipelines.k8s import kustomize
from pipelines.k8s.located import Document, Part, fault, parse, shown, validate
from pipelines.k8s.values import (
    GPU,
    AbsolutePath,
    Annotations,
    Bytes,
    Count,
    Cpu,
    Image,
    Labels,
    Name,
    Selector,
    VariableName,
    amount,
    check_keys,
    check_labels,
)
from pipelines.stages import STAGES, config_class

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

BASE = Path(__file__).parents[1] / "k8s" / "base"
OVERLAYS = BASE.parent / "overlays"

Jobs = Mapping[str, "Job"]
"""A Job per stage ("quantize-check")."""


def job_only(reason: str, default: Any = None, **limits: Any) -> Any:
    """Declare a field that matters to the Job alone, and why the pipeline needs none."""
    return Field(default, description=f"Job only: {reason}", **limits)


def _once(entries: Iterable[Any], attribute: str, *at: str) -> None:
    seen = set()
    for index, entry in enumerate(entries):
        value = getattr(entry, attribute)
        if value in seen:
            raise fault(f"{value!r} stands twice in the list", *at, index, to_camel(attribute))
        seen.add(value)


class PodMetadata(Part):
    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)


class JobMetadata(Part):
    name: Name
    namespace: Name = job_only("KFP runs all steps in the namespace of the run")
    labels: Labels = job_only("a step has no Job object; the pod's labels are applied")


class Amounts(Part):
    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Count | None = Field(None, alias=GPU)


class Resources(Part):
    requests: Amounts = Amounts()
    limits: Amounts = Amounts()

    @model_validator(mode="after")
    def _limits_hold(self) -> "Resources":
        requested, most = self.requests, self.limits
        if requested.gpu is not None and requested.gpu != most.gpu:
            raise fault(
                f"requests {requested.gpu} and limits {most.gpu or 'none'} of {GPU}, "
                f"but Kubernetes allows only equal ones (type {requested.gpu} under both)",
                "requests",
                GPU,
            )
        for name in ("cpu", "memory"):
            request, limit = getattr(requested, name), getattr(most, name)
            if request and limit and amount(request) > amount(limit):
                raise fault(
                    f"requests {request}, more than the limit of {limit} "
                    "(raise the limit or lower the request)",
                    "requests",
                    name,
                )
        return self


class SecretKey(Part):
    name: Name
    key: str
    optional: bool = False


class ValueFrom(Part):
    secret_key_ref: SecretKey


class Variable(Part):
    name: VariableName
    value: str = ""
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "Variable":
        if self.value and self.value_from:
            raise ValueError(f"{self.name} has a value and a valueFrom, but may have only one")
        return self


class Reference(Part):
    name: Name
    optional: bool = False


class Source(Part):
    config_map_ref: Reference


class Mount(Part):
    name: Name
    mount_path: AbsolutePath


class Capabilities(Part):
    drop: list[str] = Field(default_factory=list)


class ContainerSecurity(Part):
    allow_privilege_escalation: bool = job_only("the KFP backend forbids it for every step")
    capabilities: Capabilities = job_only("the KFP backend drops all for every step")
    read_only_root_filesystem: bool = job_only("KFP's launcher writes outside our volumes")


class Container(Part):
    name: Name
    image: Image
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: Annotated[list[str], Field(min_length=1)]
    args: list[str] = Field(default_factory=list)
    env_from: list[Source] = job_only("these variables fill the Job's args")
    env: list[Variable] = Field(default_factory=list)
    resources: Resources = Resources()
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[Mount] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_once(self) -> "Container":
        _once(self.env, "name", "env")
        _once(self.volume_mounts, "mount_path", "volumeMounts")
        return self


class EmptyDir(Part):
    medium: Literal["Memory"] | None = None
    size_limit: Bytes | None = None


class Volume(Part):
    name: Name
    empty_dir: EmptyDir


class Toleration(Part):
    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise fault("Exists takes no value (leave it out, or use Equal)", "value")
        if self.operator == "Equal" and not self.key:
            raise fault("without a key, the operator must be Exists", "key")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise fault("needs the effect NoExecute", "tolerationSeconds")
        check_keys({self.key: ""} if self.key else {})
        check_labels({"value": self.value or ""})
        return self


class Seccomp(Part):
    type: Literal["RuntimeDefault", "Unconfined"]


UserId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class PodSecurity(Part):
    run_as_user: UserId | None = None
    run_as_group: UserId | None = None
    run_as_non_root: bool | None = None
    fs_group: UserId = job_only("KFP cannot set it; an emptyDir is writable without")
    seccomp_profile: Seccomp = job_only("the KFP backend sets the runtime's default")

    @model_validator(mode="after")
    def _agrees(self) -> "PodSecurity":
        if self.run_as_non_root and self.run_as_user == 0:
            raise fault("0 is root, which runAsNonRoot forbids", "runAsUser")
        return self


class PullSecret(Part):
    name: Name


class AnyPod(Part):
    """What the pods of Jobs and of the teacher's server have in common."""

    service_account_name: Name = job_only("a KFP run has one service account for all its steps")
    priority_class_name: Name = job_only("KFP cannot set it")
    termination_grace_period_seconds: int = job_only("KFP cannot set it", ge=0)
    image_pull_secrets: list[PullSecret] = Field(default_factory=list)
    node_selector: Selector = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    security_context: PodSecurity = PodSecurity()
    containers: Annotated[Sequence[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = Field(default_factory=list)

    @model_validator(mode="after")
    def _mounts_exist(self) -> "AnyPod":
        _once(self.volumes, "name", "volumes")
        known = {volume.name for volume in self.volumes}
        for index, mount in enumerate(self.containers[0].volume_mounts):
            if mount.name not in known:
                raise fault(
                    f"volumeMounts names {mount.name!r}, but volumes has no such entry "
                    f"(allowed: {', '.join(sorted(known)) or 'none'})",
                    *("containers", 0, "volumeMounts", index, "name"),
                )
        return self


class Pod(AnyPod):
    restart_policy: Literal["Never"] = job_only("KFP starts a failed step as a new pod", ...)
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]


class Template(Part):
    metadata: PodMetadata = PodMetadata()
    spec: Pod


class PodCondition(Part):
    type: str
    status: Literal["True", "False", "Unknown"] = "True"


class ExitCodes(Part):
    container_name: Name | None = None
    operator: Literal["In", "NotIn"]
    values: Annotated[list[int], Field(min_length=1)]


class FailureRule(Part):
    action: Literal["Count", "FailJob", "Ignore"]
    on_pod_conditions: list[PodCondition] = Field(default_factory=list)
    on_exit_codes: ExitCodes | None = None

    @model_validator(mode="after")
    def _has_one_reason(self) -> "FailureRule":
        if bool(self.on_pod_conditions) == bool(self.on_exit_codes):
            raise ValueError("a rule has either onPodConditions or onExitCodes")
        if self.on_exit_codes and self.on_exit_codes.operator == "In":
            for index, code in enumerate(self.on_exit_codes.values):
                if code == 0:
                    raise fault("0 is success", "onExitCodes", "values", index)
        return self


class FailurePolicy(Part):
    rules: list[FailureRule]


class JobSpec(Part):
    template: Template
    backoff_limit: int = job_only("the pipeline sets its own retries", ge=0)
    pod_failure_policy: FailurePolicy = job_only("it sorts the failures of a Job's pods")
    suspend: bool = job_only("Kueue starts a Job with it; steps queue by the pod's label")
    ttl_seconds_after_finished: int = job_only("KFP tidies up after its own pods", ge=0)

    @model_validator(mode="after")
    def _policy_names_the_container(self) -> "JobSpec":
        name = self.template.spec.containers[0].name
        rules = self.pod_failure_policy.rules if self.pod_failure_policy else []
        for index, rule in enumerate(rules):
            named = rule.on_exit_codes.container_name if rule.on_exit_codes else None
            if named not in (None, name):
                raise fault(
                    f"{named!r} is no container of this pod (allowed: {name})",
                    *("podFailurePolicy", "rules", index, "onExitCodes", "containerName"),
                )
        return self


CONTAINER = ("spec", "template", "spec", "containers", 0)


class Job(Part):
    """One stage's Job manifest."""

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: JobMetadata
    spec: JobSpec
    _document: Document | None = PrivateAttr(None)

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

    def settings(self) -> dict[str, Any]:
        """Flags that the Job's args give a value of their own, not one of a $(VARIABLE).

        Raises:
            ConfigError: the stage has no such flag, or does not take its value.
        """
        config = config_class(self.stage)
        unset = {
            name: "unset" for name, field in config.model_fields.items() if field.is_required()
        }
        found: dict[str, Any] = {}
        given: set[str] = set()
        for index, argument in enumerate(self.container.args):
            place = self.place(*CONTAINER, "args", index)
            flag, sign, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            if not flag.startswith("--") or not sign or name not in config.model_fields:
                raise ConfigError(
                    f"{place}: {argument!r} (allowed: --flag=value, with a flag of raft "
                    f"{self.stage})",
                    hint=f"raft {self.stage} --help shows every flag.",
                )
            if name in given:
                raise ConfigError(f"{place}: {flag} is given twice", hint="Keep one of them.")
            given.add(name)
            if "$(" not in value:
                try:
                    found[name] = getattr(config.parse(unset | {name: value}), name)
                except ConfigError as error:
                    raise ConfigError(f"{place}: {error}", hint=error.hint) from None
        return found


def load(stage: str, folder: Path = BASE) -> Job:
    """Read the Job manifest of a stage ("quantize-check") from k8s/base or an overlay.

    Raises:
        ConfigError: as `load_all`.
    """
    return load_all(folder)[stage]


def load_all(folder: Path = BASE) -> Jobs:
    """Read the Job manifests of all stages from a folder with a kustomization.

    Raises:
        ConfigError: a file is missing or not YAML, a Job is missing or belongs to no stage, or a
            field is wrong or not understood; names file, line and field.
    """
    if not (folder / kustomize.FILE).exists():
        raise ConfigError(
            f"{shown(folder)}: no {kustomize.FILE} there",
            hint="The Job manifests lie in k8s/base of a checkout; run `raft` from one.",
        )
    return jobs_of(kustomize.render(folder), shown(folder))


def load_stream(stream: TextIO) -> Jobs:
    """Read the Job manifests of all stages from what `kubectl kustomize` printed.

    Raises:
        ConfigError: as `load_all`.
    """
    return jobs_of(parse(stream), shown(stream.name))


def overlay(name: str, folder: Path = OVERLAYS) -> Path:
    """The folder of an overlay, which a name with a slash is itself.

    Raises:
        ConfigError: there is none of this name; lists those that exist.
    """
    if "/" in name:
        return Path(name)
    names = sorted(path.parent.name for path in folder.glob(f"*/{kustomize.FILE}"))
    if name not in names:
        raise ConfigError(
            f"--overlay {name!r}: no such overlay (allowed: {', '.join(names) or 'none'})",
            hint=f"An overlay is a folder in {shown(folder)} with a {kustomize.FILE}.",
        )
    return folder / name


def jobs_of(documents: Iterable[Document], origin: str) -> Jobs:
    """The Jobs among documents, by stage; `origin` says where they come from."""
    jobs: dict[str, Job] = {}
    problems: list[str] = []
    for document in documents:
        if document.get("kind") == "Job":
            try:
                job = job_of(document)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if job.stage in jobs:
                problems.append(f"{document.place()}: a second Job {job.metadata.name}")
            jobs[job.stage] = job
    if not problems:
        missing = [f"raft-{stage}" for stage in STAGES if stage not in jobs]
        problems = [f"{origin}: no Job named {name}" for name in missing]
    if problems:
        raise ConfigError(
            "\n".join(problems),
            hint="What the pipeline can follow is listed in pipelines/manifests.py.",
        )
    return jobs


def job_of(document: Document) -> Job:
    """Take a document as the Job of a stage.

    Raises:
        ConfigError: a field is wrong or not understood, or it is not the Job of a stage.
    """
    job = validate(document, Job)
    job._document = document
    if job.stage not in STAGES or job.metadata.name == job.stage:
        allowed = ", ".join(f"raft-{stage}" for stage in STAGES)
        raise ConfigError(
            f"{document.place('metadata', 'name')}: metadata.name {job.metadata.name!r}: "
            f"not the Job of a stage (allowed: {allowed})"
        )
    if job.container.command != ["raft", job.stage]:
        raise ConfigError(
            f"{document.place(*CONTAINER, 'command')}: "
            f"spec.template.spec.containers.0.command: {job.container.command} "
            f"(allowed: ['raft', '{job.stage}'])"
        )
    job.settings()
    return job


PLACED = ("train", "quantize-check", "eval")
"""The stages whose hardware can be chosen when a run is started."""


class Hardware(NamedTuple):
    """What can be chosen when a run is started: values, or the pipeline's parameters.

    A value of None stays what the manifest says.
    """

    train_gpus: Any = None
    memory: Any = None
    node_selector: Any = None


class HardwareValues(TypedDict, total=False):
    """What may be chosen for each."""

    train_gpus: NonNegativeInt
    memory: Bytes
    node_selector: Selector


def hardware(jobs: Jobs) -> Hardware:
    """What the Job of train asks for: the default of the pipeline's parameters."""
    job = jobs["train"]
    limits = job.container.resources.limits
    return Hardware(limits.gpu or 0, limits.memory or "", dict(job.pod.node_selector))


def hardware_of(parameters: Mapping[str, Any]) -> Hardware:
    """The hardware among the parameters of a run.

    Raises:
        ConfigError: a value is not one that a cluster could take.
    """
    values = {name: parameters[name] for name in Hardware._fields if name in parameters}
    try:
        return Hardware(**TypeAdapter(HardwareValues).validate_python(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name} {values[name]!r}: {problem}") from None


Steer = Callable[[str, Any], Any]
"""Takes a field of `Hardware` and what a Job says there, and gives what holds in the run."""


def steering(jobs: Jobs, chosen: Hardware) -> Steer:
    """What is chosen holds wherever a Job says what the Job of train says."""
    default = hardware(jobs)

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
                amounts[GPU] = steer("train_gpus", amounts.get(GPU, 0)) or None
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
    _apply_settings(job, task)
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


def _apply_settings(job: Job, task: "PipelineTask") -> None:
    for name, value in job.settings().items():
        if name in task.inputs:
            raise ConfigError(
                f"{job.place(*CONTAINER, 'args')}: {name} has a value here, but in the pipeline "
                "it is a parameter",
                hint="Take the flag out of the args, and give the value when you start a run.",
            )
        if name not in task.component_spec.inputs:
            raise ConfigError(
                f"{job.place(*CONTAINER, 'args')}: {name} is no parameter of the component, so the "
                "pipeline would run without it"
            )
        task.inputs[name] = list(value) if isinstance(value, tuple) else value


def _apply_resources(resources: Resources, task: "PipelineTask", steered: Steer) -> None:
    if resources.requests.cpu:
        task.set_cpu_request(resources.requests.cpu)
    if resources.requests.memory:
        task.set_memory_request(steered("memory", resources.requests.memory))
    if resources.limits.cpu:
        task.set_cpu_limit(resources.limits.cpu)
    if resources.limits.memory:
        task.set_memory_limit(steered("memory", resources.limits.memory))
    gpus = steered("train_gpus", resources.limits.gpu or 0)
    if gpus:
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
