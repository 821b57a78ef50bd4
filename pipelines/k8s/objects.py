"""What k8s/ holds beside the Jobs: checked like the API server would, never applied to a pipeline.

The pods of the teacher's server are the Jobs' pods with ports and probes. The last part holds
objects against each other: who is named must exist, and who is selected must carry the label.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from components.core.errors import ConfigError
from pipelines.k8s.job import CONTAINER, AnyPod, Container, PodMetadata, job_of
from pipelines.k8s.located import Document, Part, fault, validate
from pipelines.k8s.values import GPU, Annotations, Labels, Name

POD = ("spec", "template", "spec")
PORT = Annotated[int, Field(ge=1, le=65535)]


class Metadata(Part):
    name: Name
    namespace: Name | None = None
    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)


class Object(Part):
    metadata: Metadata


class Namespace(Object):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]

    @model_validator(mode="after")
    def _security_level_exists(self) -> "Namespace":
        key = "pod-security.kubernetes.io/enforce"
        level = self.metadata.labels.get(key, "restricted")
        if level not in ("privileged", "baseline", "restricted"):
            raise fault(
                f"{level!r} (allowed: privileged, baseline, restricted)", "metadata", "labels", key
            )
        return self


class ServiceAccount(Object):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    automount_service_account_token: bool | None = None


class ConfigMap(Object):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    data: dict[str, str] = Field(default_factory=dict)


class Quota(Part):
    hard: dict[str, int | str]

    @model_validator(mode="after")
    def _resources_exist(self) -> "Quota":
        for name, quantity in self.hard.items():
            known = (
                r"(requests|limits)\.(cpu|memory|ephemeral-storage)|cpu|memory|pods|services|"
                rf"secrets|configmaps|requests\.storage|requests\.{re.escape(GPU)}|"
                r"count/[a-z]+(\.[a-z0-9.]+)?"
            )
            if re.fullmatch(known, name) is None:
                raise fault(
                    f"no resource of a quota (allowed: requests.cpu, limits.memory, "
                    f"requests.{GPU}, count/jobs.batch ...)",
                    "hard",
                    name,
                )
            if re.fullmatch(r"[0-9]+(m|Ki|Mi|Gi|Ti|M|G|T)?", str(quantity)) is None:
                raise fault(f"{quantity!r} is not a quantity (allowed: 8, 64Gi)", "hard", name)
        return self


class ResourceQuota(Object):
    api_version: Literal["v1"]
    kind: Literal["ResourceQuota"]
    spec: Quota


class PriorityClass(Object):
    api_version: Literal["scheduling.k8s.io/v1"]
    kind: Literal["PriorityClass"]
    value: Annotated[int, Field(ge=-(2**31), le=10**9)]
    preemption_policy: Literal["Never", "PreemptLowerPriority"] = "PreemptLowerPriority"
    global_default: bool = False
    description: str = ""


VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


class Rule(Part):
    api_groups: list[str]
    resources: Annotated[list[str], Field(min_length=1)]
    verbs: Annotated[list[Literal[VERBS]], Field(min_length=1)]  # type: ignore[valid-type]


class Role(Object):
    api_version: Literal["rbac.authorization.k8s.io/v1"]
    kind: Literal["Role"]
    rules: list[Rule]


class RoleReference(Part):
    api_group: Literal["rbac.authorization.k8s.io"]
    kind: Literal["Role", "ClusterRole"]
    name: str


class Subject(Part):
    kind: Literal["ServiceAccount", "User", "Group"]
    name: str
    namespace: Name | None = None
    api_group: Literal["rbac.authorization.k8s.io"] | None = None


class RoleBinding(Object):
    api_version: Literal["rbac.authorization.k8s.io/v1"]
    kind: Literal["RoleBinding"]
    role_ref: RoleReference
    subjects: Annotated[list[Subject], Field(min_length=1)]


class LabelSelector(Part):
    match_labels: Labels = Field(default_factory=dict)


class AddressRange(Part):
    cidr: Annotated[str, AfterValidator(lambda cidr: str(ip_network(cidr)))]


class Peer(Part):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: AddressRange | None = None

    @model_validator(mode="after")
    def _has_one_kind(self) -> "Peer":
        if self.ip_block and (self.pod_selector or self.namespace_selector):
            raise fault("ipBlock stands alone, without selectors", "ipBlock")
        return self


class NetworkPort(Part):
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: PORT


class Ingress(Part):
    from_: list[Peer] = Field(default_factory=list, alias="from")
    ports: list[NetworkPort] = Field(default_factory=list)


class Egress(Part):
    to: list[Peer] = Field(default_factory=list)
    ports: list[NetworkPort] = Field(default_factory=list)


class Network(Part):
    pod_selector: LabelSelector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress] = Field(default_factory=list)
    egress: list[Egress] = Field(default_factory=list)


class NetworkPolicy(Object):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    spec: Network


class ServicePort(Part):
    name: Name | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"
    port: PORT
    target_port: int | str | None = None


class ServiceSpec(Part):
    selector: Labels
    ports: Annotated[list[ServicePort], Field(min_length=1)]


class Service(Object):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec


class ContainerPort(Part):
    name: Name | None = None
    container_port: PORT


class HttpGet(Part):
    path: Annotated[str, Field(pattern="^/")]
    port: PORT | str


class Probe(Part):
    http_get: HttpGet
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3


class ServerContainer(Container):
    ports: list[ContainerPort] = Field(default_factory=list)
    startup_probe: Probe | None = None
    readiness_probe: Probe
    liveness_probe: Probe | None = None

    @model_validator(mode="after")
    def _probes_find_their_port(self) -> "ServerContainer":
        known = [port.name for port in self.ports if port.name]
        for name in ("startup", "readiness", "liveness"):
            probe = getattr(self, f"{name}_probe")
            if probe and isinstance(probe.http_get.port, str) and probe.http_get.port not in known:
                raise fault(
                    f"{probe.http_get.port!r} is no port of the container "
                    f"(allowed: {', '.join(known) or 'a number'})",
                    *(f"{name}Probe", "httpGet", "port"),
                )
        return self


class ServerPod(AnyPod):
    restart_policy: Literal["Always"] = "Always"
    enable_service_links: bool = True
    containers: Annotated[list[ServerContainer], Field(min_length=1, max_length=1)]


class ServerTemplate(Part):
    metadata: PodMetadata
    spec: ServerPod


class Strategy(Part):
    type: Literal["Recreate", "RollingUpdate"]


class Server(Part):
    replicas: Annotated[int, Field(ge=0)] = 1
    strategy: Strategy | None = None
    progress_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    selector: LabelSelector
    template: ServerTemplate

    @model_validator(mode="after")
    def _selects_its_pods(self) -> "Server":
        labels = self.template.metadata.labels
        for key, value in self.selector.match_labels.items():
            if labels.get(key) != value:
                raise fault(
                    f"selects {key}={value}, which the template's labels do not have",
                    *("selector", "matchLabels", key),
                )
        return self


class Deployment(Object):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    spec: Server


KINDS: dict[str, type[Object]] = {
    model.__name__: model
    for model in (
        ConfigMap, Deployment, Namespace, NetworkPolicy, PriorityClass, ResourceQuota, Role,
        RoleBinding, Service, ServiceAccount,
    )
}  # fmt: skip


def complaints(documents: Iterable[Document], others: Iterable[Document] = ()) -> list[str]:
    """Everything that a cluster would refuse, as `file:line: field: problem`.

    `others` are objects that are known to exist, and are not checked again.
    """
    documents = list(documents)
    found: list[str] = []
    for document in documents:
        try:
            _check(document)
        except ConfigError as error:
            found += str(error).splitlines()
    if not found:
        found += _crossed(documents, [*documents, *others])
    return found


def _check(document: Document) -> None:
    kind = document.get("kind")
    if kind is None:
        raise ConfigError(
            f"{document.place()}: neither a Kubernetes object (with a kind) nor a compiled pipeline"
        )
    if kind == "Job":
        job_of(document)
    elif isinstance(kind, str) and kind in KINDS:
        validate(document, KINDS[kind])
    else:
        allowed = ", ".join(sorted([*KINDS, "Job"]))
        raise ConfigError(f"{document.place('kind')}: kind {kind!r} (allowed: {allowed})")


def _crossed(documents: list[Document], known: list[Document]) -> Iterator[str]:
    """Complaints about objects that name what does not exist, or that occur twice."""
    by_name: dict[tuple[Any, ...], Document] = {}
    for document in documents:
        name = _key(document)
        if name in by_name:
            yield (
                f"{document.place('metadata', 'name')}: a second {name[0]} named {name[1]} "
                f"(the first is at {by_name[name].place()})"
            )
        by_name[name] = document
    exists = {_key(document) for document in known}
    for document in documents:
        kind, namespace = document.get("kind"), document.get("metadata", "namespace")
        if kind in ("Job", "Deployment"):
            yield from _pod(document, known, exists)
        if kind == "RoleBinding":
            yield from _named(document, ("roleRef", "name"), "Role", namespace, exists)
            for index, subject in enumerate(document.get("subjects")):
                if subject["kind"] == "ServiceAccount":
                    at = ("subjects", index, "name")
                    home = subject.get("namespace")
                    yield from _named(document, at, "ServiceAccount", home, exists)
        if kind == "Service":
            yield from _service(document, known)


def _key(document: Document) -> tuple[Any, ...]:
    return (
        document.get("kind"),
        document.get("metadata", "name"),
        document.get("metadata", "namespace"),
    )


def _named(
    document: Document,
    at: tuple[int | str, ...],
    kind: str,
    namespace: str | None,
    exists: set[tuple[Any, ...]],
) -> Iterator[str]:
    """A complaint if a field names an object that is not there; an absent field names none."""
    name = document.get(*at)
    if name is not None and (kind, name, namespace) not in exists:
        names = sorted(key[1] for key in exists if key[0] == kind and key[2] == namespace)
        yield (
            f"{document.place(*at)}: {'.'.join(map(str, at))} {name!r}: no such {kind} "
            f"(allowed: {', '.join(names) or 'none'})"
        )


def _pod(document: Document, known: list[Document], exists: set[tuple[Any, ...]]) -> Iterator[str]:
    namespace = document.get("metadata", "namespace")
    yield from _named(document, (*POD, "serviceAccountName"), "ServiceAccount", namespace, exists)
    yield from _named(document, (*POD, "priorityClassName"), "PriorityClass", None, exists)
    variables = {entry["name"] for entry in document.get(*CONTAINER, "env") or ()}
    for index, source in enumerate(document.get(*CONTAINER, "envFrom") or ()):
        at = (*CONTAINER, "envFrom", index, "configMapRef", "name")
        if not source["configMapRef"].get("optional"):
            yield from _named(document, at, "ConfigMap", namespace, exists)
        for other in known:
            if _key(other) == ("ConfigMap", source["configMapRef"]["name"], namespace):
                variables |= set(other.get("data") or ())
    for index, argument in enumerate(document.get(*CONTAINER, "args") or ()):
        for name in re.findall(r"\$\(([^)]*)\)", argument):
            if name not in variables:
                yield (
                    f"{document.place(*CONTAINER, 'args', index)}: $({name}): no such variable "
                    f"(allowed: {', '.join(sorted(variables)) or 'none'})"
                )
    if any(_restricted(other, namespace) for other in known):
        yield from _security(document)


def _restricted(document: Document, namespace: str | None) -> bool:
    level = document.get("metadata", "labels", "pod-security.kubernetes.io/enforce")
    return _key(document) == ("Namespace", namespace, None) and level == "restricted"


def _security(document: Document) -> Iterator[str]:
    """What a namespace with the level `restricted` asks of every pod."""
    security = (*CONTAINER, "securityContext")
    for at, wanted in (
        ((*POD, "securityContext", "runAsNonRoot"), True),
        ((*POD, "securityContext", "seccompProfile", "type"), "RuntimeDefault"),
        ((*security, "allowPrivilegeEscalation"), False),
        ((*security, "capabilities", "drop"), ["ALL"]),
    ):
        if document.get(*at) != wanted:
            yield (
                f"{document.place(*at)}: {'.'.join(map(str, at))} {document.get(*at)!r}: the "
                f"namespace refuses such pods (allowed: {wanted!r})"
            )


def _service(document: Document, known: list[Document]) -> Iterator[str]:
    selector = document.get("spec", "selector")
    for other in known:
        labels = other.get("spec", "template", "metadata", "labels") or {}
        if other.get("kind") == "Deployment" and selector.items() <= labels.items():
            break
    else:
        yield f"{document.place('spec', 'selector')}: selects the pods of no Deployment"
        return
    ports = other.get(*CONTAINER, "ports") or ()
    allowed = [port["containerPort"] for port in ports] + [port.get("name") for port in ports]
    for index, port in enumerate(document.get("spec", "ports")):
        target = port.get("targetPort", port["port"])
        if target not in allowed:
            yield (
                f"{document.place('spec', 'ports', index, 'targetPort')}: {target!r} is no port of "
                f"the container (allowed: {', '.join(map(str, filter(None, allowed)))})"
            )
