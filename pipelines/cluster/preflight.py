"""Looks, before a run, whether a cluster has what the run needs; changes nothing.

Each check prints a line: `ok`, `missing` with the command that fixes it, or `cannot tell` where
this account may not look. What is needed is read from the Job manifests, and from the pipeline's
parameters or the Jobs' settings. Buckets, teacher and model are asked from this machine with its
own credentials: the pods have theirs.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click

from components.core.errors import AccessError, ClusterError, NotPermitted, RaftError
from components.core.storage import SCHEME, reachable
from pipelines import hardware, manifests
from pipelines.cluster.connection import Cluster, NotThere, connect
from pipelines.cluster.kubeflow import connect as connect_to_kubeflow
from pipelines.cluster.parameters import check_parameters, load, read_parameters
from pipelines.k8s.job import Amounts, Job, Pod, Toleration
from pipelines.k8s.values import GPU, amount
from pipelines.stages import STAGES

IDENTITY = "iam.gke.io/gcp-service-account"
"""Annotation that lets a service account of Kubernetes act as one of Google Cloud."""

COLORS = {"ok": "green", "missing": "red", "cannot tell": "yellow"}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `fix` is the command or advice that fixes it."""

    state: Literal["ok", "missing", "cannot tell"]
    what: str
    fix: str = ""


Findings = Iterable[Finding]


def run(
    *,
    namespace: str = "raft",
    context: str = "",
    service_account: str = "",
    parameters: Path | None = None,
    settings: tuple[str, ...] = (),
    pipeline: Path = Path("pipelines/raft.yaml"),
    pipeline_root: str = "",
    host: str = "",
    ca_certificate: str = "",
    kubeflow: bool = True,
    scale_from_zero: bool = False,
    jobs: Path = manifests.BASE,
) -> None:
    """Print a line for every check.

    Args:
        namespace: where the pods will run.
        context: context of the kubeconfig; "" takes the current one.
        service_account: account of the pods; "" takes the manifests'.
        parameters: the run's parameter file, as for `raft submit`; None and no `settings` takes
            the Jobs' settings in the cluster.
        settings: `name=value` parameters.
        pipeline: the compiled pipeline that the parameters belong to.
        pipeline_root: where a pipeline's artifacts will go.
        host: Kubeflow Pipelines server; "" takes the one in the cluster.
        ca_certificate: authority of that server's certificate.
        kubeflow: look for Kubeflow Pipelines.
        scale_from_zero: GPU nodes come when they are needed, so none need be there.
        jobs: folder of the Job manifests.

    Raises:
        ConfigError: a parameter or manifest is wrong.
        ClusterError: there is no kubeconfig, the cluster does not answer, or something is missing.
    """
    given = _given(pipeline, parameters, settings)
    asked = manifests.load_all(jobs)
    if given is not None:
        asked = hardware.chosen(asked, hardware.hardware_of_run(given))
    needs = [asked[stage] for stage in STAGES]
    chosen = None if given is None else {name: str(value) for name, value in given.items()}
    cluster = connect(context)
    account = service_account or needs[0].pod.service_account_name or "default"
    found = [_printed(finding) for finding in _version(cluster)]
    checks: list[Callable[[], Findings]] = [
        lambda: _namespace(cluster, namespace),
        lambda: _account(cluster, namespace, account),
        lambda: _secrets(cluster, namespace, needs),
        lambda: _quota(cluster, namespace, needs),
        lambda: _places(cluster, needs, scale_from_zero),
    ]
    for check in checks:
        found += _told(check)
    if chosen is None:
        chosen = {}
        found += _told(_settings, cluster, namespace, needs, chosen)
    if pipeline_root:
        chosen["run"] = pipeline_root
    for check in (
        lambda: _locations(chosen),
        lambda: _teacher(chosen),
        lambda: _model(chosen),
        *([lambda: _kubeflow(host, ca_certificate, context)] if kubeflow else []),
    ):
        found += _told(check)
    missing = sum(finding.state == "missing" for finding in found)
    if missing:
        raise ClusterError(
            f"{missing} thing{'s are' if missing > 1 else ' is'} missing",
            hint="Fix what is marked, then run raft preflight again.",
        )


def _told(check: Callable[..., Findings], *arguments: object) -> Iterator[Finding]:
    """Run a check and print what it finds; a check that may not look does not stop the others."""
    try:
        for finding in check(*arguments):
            yield _printed(finding)
    except (NotPermitted, AccessError) as error:
        yield _printed(Finding("cannot tell", str(error), error.hint))
    except RaftError as error:
        yield _printed(Finding("missing", str(error), error.hint))


def _printed(finding: Finding) -> Finding:
    mark = click.style(f"{finding.state:12}", fg=COLORS[finding.state])
    click.echo(f"{mark} {finding.what}")
    if finding.fix and finding.state != "ok":
        for line in finding.fix.splitlines():
            click.echo(f"{'':12}   {line}")
    return finding


def _given(
    pipeline: Path, parameters: Path | None, settings: tuple[str, ...]
) -> dict[str, Any] | None:
    """The parameters of a pipeline run with their defaults; None when none were given."""
    if parameters is None and not settings:
        return None
    compiled = load(pipeline)
    values = {
        name: definition["defaultValue"]
        for name, definition in compiled.inputs.items()
        if "defaultValue" in definition
    }
    return values | check_parameters(compiled, read_parameters(parameters, settings))


# ---- in the namespace --------------------------------------------------------------------------


def _version(cluster: Cluster) -> Findings:
    try:
        version = cluster.ask(cluster.version.get_code)
    except NotPermitted as error:
        yield Finding("cannot tell", f"version of the cluster: {error}")
        return
    except NotThere as error:
        raise ClusterError(f"{cluster.address} is not a Kubernetes cluster ({error})") from None
    yield Finding("ok", f"cluster {cluster.address} runs Kubernetes {version.git_version}")


def _namespace(cluster: Cluster, namespace: str) -> Findings:
    try:
        cluster.ask(cluster.core.read_namespace, namespace)
        yield Finding("ok", f"namespace {namespace}")
    except NotThere:
        fix = "kubectl apply -k k8s/base -l app.kubernetes.io/component=setup"
        if namespace != "raft":
            fix = f"kubectl create namespace {namespace}"
        yield Finding("missing", f"namespace {namespace}", fix)


def _account(cluster: Cluster, namespace: str, name: str) -> Findings:
    try:
        account = cluster.ask(cluster.core.read_namespaced_service_account, name, namespace)
    except NotThere:
        yield Finding(
            "missing",
            f"service account {name} in {namespace}",
            f"kubectl -n {namespace} create serviceaccount {name}",
        )
        return
    yield Finding("ok", f"service account {name} in {namespace}")
    identity = (account.metadata.annotations or {}).get(IDENTITY)
    if identity:
        yield Finding("ok", f"service account {name} acts as {identity} (Workload Identity)")
    else:
        yield Finding(
            "cannot tell",
            f"whether {name} may use the bucket: it has no annotation {IDENTITY}",
            "Needed only where the bucket is granted to a Google service account; the head of "
            "k8s/base/service-account.yaml\nhas the command that grants it to this one directly.",
        )


def _secrets(cluster: Cluster, namespace: str, needs: list[Job]) -> Findings:
    wanted: dict[tuple[str, str], tuple[bool, list[str]]] = {}
    for job in needs:
        for variable in job.container.env:
            if variable.value_from is not None:
                secret = variable.value_from.secret_key_ref
                optional, users = wanted.get((secret.name, secret.key), (True, []))
                users.append(job.container.name)
                wanted[secret.name, secret.key] = (optional and secret.optional, users)
    for (name, key), (optional, users) in wanted.items():
        what = f"secret {name} with key {key} in {namespace}, for {', '.join(users)}"
        try:
            # Only the names of its keys are looked at.
            found = cluster.ask(cluster.core.read_namespaced_secret, name, namespace)
            there = key in (found.data or {})
            verb = "patch"
        except NotThere:
            there, verb = False, "create"
        except NotPermitted as error:
            yield Finding("cannot tell", f"{what}: {error}", error.hint)
            continue
        if there:
            yield Finding("ok", what)
            continue
        fix = f"kubectl -n {namespace} create secret generic {name} --from-literal={key}=VALUE"
        if verb == "patch":
            fix = f"kubectl -n {namespace} delete secret {name}\n{fix}"
        if optional:
            yield Finding("cannot tell", f"whether it is needed: {what}, is not there", fix)
        else:
            yield Finding("missing", what, fix)


def _quota(cluster: Cluster, namespace: str, needs: list[Job]) -> Findings:
    quotas = cluster.ask(cluster.core.list_namespaced_resource_quota, namespace).items
    for quota in quotas:
        hard, used = quota.status.hard or {}, quota.status.used or {}
        for resource, limit in hard.items():
            need, stage = max(
                ((_counted(job, resource), job.container.name) for job in needs),
                key=lambda pair: pair[0],
            )
            left = amount(limit) - amount(used.get(resource, "0"))
            if need > left:
                yield Finding(
                    "missing",
                    f"room in quota {quota.metadata.name}: {stage} needs {_short(need)} of "
                    f"{resource}, {_short(max(left, Decimal(0)))} of {limit} is left",
                    f"kubectl -n {namespace} edit resourcequota {quota.metadata.name}",
                )
                break
        else:
            yield Finding("ok", f"quota {quota.metadata.name} has room for every stage")
    if not quotas:
        yield Finding("ok", f"no quota in {namespace}")


def _counted(job: Job, resource: str) -> Decimal:
    """What a stage's pod counts for in a quota's resource."""
    if resource in ("pods", "count/pods", "count/jobs.batch"):
        return Decimal(1)
    group, _, name = resource.partition(".")
    if group not in ("requests", "limits"):
        group, name = "requests", resource
    return _needed(getattr(job.container.resources, group)).get(name, Decimal(0))


# ---- nodes -------------------------------------------------------------------------------------


def _short(size: Decimal) -> str:
    """An amount as people read it: 0.5, 12, 64Gi."""
    if size >= 1 << 20:
        return f"{size / (1 << 30):.4g}Gi"
    return f"{size.normalize():f}"


def _needed(amounts: Amounts) -> dict[str, Decimal]:
    return {
        name: amount(value)
        for name, value in amounts.model_dump(by_alias=True, exclude_none=True).items()
    }


def _places(cluster: Cluster, needs: list[Job], scale_from_zero: bool) -> Findings:
    """Whether a node could take each stage now; stages that ask for the same share a line."""
    nodes = cluster.ask(cluster.core.list_node).items
    try:
        pods = cluster.ask(cluster.core.list_pod_for_all_namespaces).items
    except NotPermitted as error:
        pods = []
        yield Finding(
            "cannot tell",
            f"what is in use on the nodes, so all counts as free: {error}",
            error.hint,
        )
    used = _used(pods)
    alike: dict[str, list[Job]] = {}
    for job in needs:
        asked = job.pod.model_dump_json(include={"node_selector", "tolerations"})
        alike.setdefault(asked + job.container.resources.model_dump_json(), []).append(job)
    for jobs in alike.values():
        yield _place(jobs, nodes, used, scale_from_zero)


def _used(pods: list[Any]) -> dict[str, dict[str, Decimal]]:
    """Node to resource to what the pods on it have requested."""
    used: dict[str, dict[str, Decimal]] = {}
    for pod in pods:
        if pod.spec.node_name is None or pod.status.phase in ("Succeeded", "Failed"):
            continue
        node = used.setdefault(pod.spec.node_name, {})
        for resource, size in _requested(pod).items():
            node[resource] = node.get(resource, Decimal(0)) + size
        node["pods"] = node.get("pods", Decimal(0)) + 1
    return used


def _requested(pod: Any) -> dict[str, Decimal]:
    """A pod's requests as the scheduler counts them: init containers run before the others."""
    total: dict[str, Decimal] = {}
    for container in pod.spec.containers:
        for resource, size in _requests(container).items():
            total[resource] = total.get(resource, Decimal(0)) + size
    for container in pod.spec.init_containers or []:
        for resource, size in _requests(container).items():
            known = total.get(resource, Decimal(0))
            stays = container.restart_policy == "Always"  # a sidecar runs beside the others
            total[resource] = known + size if stays else max(known, size)
    for resource, quantity in (pod.spec.overhead or {}).items():
        total[resource] = total.get(resource, Decimal(0)) + amount(quantity)
    return total


def _requests(container: Any) -> dict[str, Decimal]:
    requests = (container.resources and container.resources.requests) or {}
    return {resource: amount(quantity) for resource, quantity in requests.items()}


def _place(
    jobs: list[Job],
    nodes: list[Any],
    used: Mapping[str, Mapping[str, Decimal]],
    scale_from_zero: bool,
) -> Finding:
    pod, resources = jobs[0].pod, jobs[0].container.resources
    names = ", ".join(job.container.name for job in jobs)
    # Kubernetes takes a limit for a request that is not written.
    needed = {"pods": Decimal(1), **_needed(resources.limits), **_needed(resources.requests)}
    needed = dict(sorted(needed.items(), key=lambda entry: entry[0] != GPU))
    selector = ",".join(f"{key}={value}" for key, value in pod.node_selector.items())
    matching = [
        node for node in nodes if pod.node_selector.items() <= (node.metadata.labels or {}).items()
    ]
    if not matching:
        seen = sorted(
            {
                f"{key}={node.metadata.labels[key]}"
                for node in nodes
                for key in pod.node_selector
                if key in (node.metadata.labels or {})
            }
        )
        others = f" (there is {', '.join(seen)})" if seen else ""
        if scale_from_zero and resources.limits.gpu:
            return Finding("cannot tell", f"a node for {names}: none with {selector} now{others}")
        return Finding(
            "missing", f"a node for {names}: none of {len(nodes)} has {selector}{others}", _POOL
        )
    faults = {node.metadata.name: _fault(node, pod, needed, used) for node in matching}
    free = [name for name, fault in faults.items() if not fault]
    gpus = f", {resources.limits.gpu} GPU free" if resources.limits.gpu else ""
    if free:
        more = f" and {len(free) - 1} more" if len(free) > 1 else ""
        return Finding("ok", f"a node for {names}: {free[0]}{more}{gpus}")
    told = "; ".join(f"{name} {fault}" for name, fault in list(faults.items())[:3])
    more = f"; and {len(faults) - 3} more nodes" if len(faults) > 3 else ""
    node = next(iter(faults))
    return Finding(
        "missing",
        f"a free node for {names}: {told}{more}",
        f"kubectl describe node {node}\n"
        f"kubectl get pods -A --field-selector spec.nodeName={node}    (who is on it)",
    )


_POOL = (
    "gcloud container node-pools create raft-a100 --cluster CLUSTER --location LOCATION \\\n"
    "  --machine-type a2-highgpu-1g --enable-autoscaling --min-nodes 0 --max-nodes 1 \\\n"
    "  --accelerator type=nvidia-tesla-a100,count=1,gpu-driver-version=latest\n"
    "With a pool that scales from zero, --scale-from-zero true takes its nodes for granted."
)


def _fault(
    node: Any,
    pod: Pod,
    needed: Mapping[str, Decimal],
    used: Mapping[str, Mapping[str, Decimal]],
) -> str:
    """Why a node that matches cannot take the pod now; "" if it can."""
    ready = {entry.type: entry.status for entry in node.status.conditions or []}.get("Ready")
    if ready != "True":
        return "is not ready"
    if node.spec.unschedulable:
        return "is cordoned"
    for taint in node.spec.taints or []:
        hard = taint.effect in ("NoSchedule", "NoExecute")
        if hard and not any(_tolerates(entry, taint) for entry in pod.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"has the taint {taint.key}{value}:{taint.effect}, which is not tolerated"
    allocatable = node.status.allocatable or {}
    mine = used.get(node.metadata.name, {})
    for resource, size in needed.items():
        whole = amount(allocatable.get(resource, "0"))
        left = max(whole - mine.get(resource, Decimal(0)), Decimal(0))
        if resource == GPU and not whole:
            return "offers no GPU yet: its driver is not installed"
        if size > left:
            return f"has {_short(left)} of {_short(whole)} {resource} free, not {_short(size)}"
    return ""


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect):
        return False
    if toleration.key is None:
        return toleration.operator == "Exists"
    if toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")


# ---- what lies elsewhere -----------------------------------------------------------------------


def _settings(
    cluster: Cluster, namespace: str, needs: list[Job], chosen: dict[str, str]
) -> Findings:
    """Read the Jobs' settings into `chosen`, by the names that pipeline parameters have."""
    names = {
        source["configMapRef"]["name"]
        for job in needs
        for source in job.container.model_dump(by_alias=True, exclude_unset=True).get("envFrom", [])
        if "configMapRef" in source
    }
    for name in sorted(names):
        try:
            found = cluster.ask(cluster.core.read_namespaced_config_map, name, namespace)
        except NotThere:
            yield Finding(
                "missing",
                f"settings of the Jobs: ConfigMap {name} in {namespace}",
                "Edit k8s/base/settings.yaml, then kubectl apply -f k8s/base/settings.yaml; for "
                "a pipeline,\ngive --parameters instead.",
            )
            continue
        for variable, value in (found.data or {}).items():
            chosen[variable.removeprefix("RAFT_").lower()] = value
        yield Finding("ok", f"settings of the Jobs: ConfigMap {name} in {namespace}")


def _locations(chosen: Mapping[str, str]) -> Findings:
    for name in ("documents", "questions", "base_model", "run"):
        value = chosen.get(name, "")
        if not value or (name == "base_model" and not _is_path(value)):
            continue
        if not value.startswith(SCHEME):
            yield Finding(
                "missing",
                f"{name}: {value} is a path, which the pods do not see",
                f"gcloud storage cp --recursive {value} gs://BUCKET/{name}",
            )
            continue
        write = name == "run"
        try:
            reachable(value, write=write)
            yield Finding(
                "ok", f"{name}: {value} is {'writable' if write else 'readable'} from here"
            )
        except AccessError as error:
            yield Finding("cannot tell", f"{name}: {error}", error.hint)
        except RaftError as error:
            yield Finding("missing", f"{name}: {error}", error.hint)


def _is_path(model: str) -> bool:
    return "://" in model or model.startswith(("/", ".", "~")) or Path(model).exists()


def _teacher(chosen: Mapping[str, str]) -> Findings:
    if chosen.get("teacher") != "openai":
        return
    import requests

    endpoint, model = chosen.get("teacher_endpoint", ""), chosen.get("teacher_model", "")
    if not endpoint or not model:
        yield Finding("missing", "teacher openai needs teacher_endpoint and teacher_model")
        return
    url = f"{endpoint.rstrip('/')}/models"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(url, headers=headers, timeout=20, allow_redirects=False)
        models = [entry["id"] for entry in answer.json()["data"]] if answer.ok else []
    except requests.RequestException as error:
        # A service's name is known inside the cluster only.
        inside = "." not in (urlsplit(endpoint).hostname or "")
        yield Finding(
            "cannot tell" if inside else "missing",
            f"teacher at {endpoint} does not answer here ({type(error).__name__})",
            f"kubectl run teacher-check --rm -it --restart=Never --image=curlimages/curl -- {url}",
        )
        return
    except (ValueError, KeyError, TypeError):
        yield Finding("missing", f"teacher at {endpoint} lists no models at {url}", _ENDPOINT)
        return
    if answer.status_code in (401, 403):
        yield Finding(
            "missing",
            f"teacher at {endpoint} refuses ({answer.status_code})",
            "export OPENAI_API_KEY=KEY here, and put the same key in the secret raft-teacher.",
        )
    elif not answer.ok:
        yield Finding("missing", f"teacher at {url} answers {answer.status_code}", _ENDPOINT)
    elif model not in models:
        yield Finding(
            "missing",
            f"teacher at {endpoint} has no model {model}",
            f"Set teacher_model to one of: {', '.join(models[:5])}",
        )
    else:
        yield Finding("ok", f"teacher {model} answers at {endpoint}")


_ENDPOINT = "Check teacher_endpoint; it ends in /v1 for most servers."


def _model(chosen: Mapping[str, str]) -> Findings:
    model = chosen.get("base_model", "")
    if not model or _is_path(model):
        return
    import requests

    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        status = requests.head(
            f"{hub}/{model}/resolve/main/config.json", headers=headers, timeout=20
        ).status_code
    except requests.RequestException as error:
        yield Finding("cannot tell", f"model {model}: {hub} is silent ({type(error).__name__})")
        return
    if status < 400:
        yield Finding("ok", f"model {model} may be fetched from {hub}")
    elif status == 401:
        said = "the token in HF_TOKEN is not accepted" if token else "it is gated, or not there"
        yield Finding(
            "missing",
            f"model {model}: {said}",
            f"Accept the licence at {hub}/{model}, then put a token of that account in HF_TOKEN\n"
            "here, and for the pods in the secret that train.yaml describes.",
        )
    elif status == 403:
        yield Finding(
            "missing", f"model {model}: its licence is not accepted", f"Open {hub}/{model}"
        )
    elif status == 404:
        yield Finding("missing", f"model {model}: not on {hub}", "Check base_model.")
    else:
        yield Finding("cannot tell", f"model {model}: {hub} answers {status}")


def _kubeflow(host: str, ca_certificate: str, context: str) -> Findings:
    client = connect_to_kubeflow(host, ca_certificate, context)
    yield Finding("ok", f"Kubeflow Pipelines 2 answers at {client.address}")
