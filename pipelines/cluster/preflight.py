"""Checks before a run that a cluster has what the run needs; changes nothing.

Each check prints a line: `ok`, `missing` with the command that fixes it, or `cannot tell` where
this account may not look. The API server is asked to admit each stage's Job and pod in a dry run,
so quota, policies and accounts are its own answers; what no server says until a pod waits or fails
is checked here. What is needed is read from the Job manifests, and from the pipeline's parameters
or the Jobs' settings. Buckets, teacher and model are asked from this machine with its own
credentials: the pods have theirs.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from components.core.errors import AccessError, ClusterError, NotPermitted, RaftError
from components.core.storage import SCHEME, reachable
from pipelines import hardware, manifests
from pipelines.cluster.compiled import load
from pipelines.cluster.connection import Cluster, NoAnswer, NotThere, connect
from pipelines.cluster.job import SETUP, job_body
from pipelines.cluster.kubeflow import connect as connect_to_kubeflow
from pipelines.cluster.parameters import check_parameters, read_parameters
from pipelines.k8s.job import Job, Toleration
from pipelines.k8s.values import GPU, amount
from pipelines.stages import STAGES

IDENTITY = "iam.gke.io/gcp-service-account"
"""Annotation that lets a service account of Kubernetes act as one of Google Cloud."""

OK, MISSING, UNKNOWN = "ok", "missing", "cannot tell"
COLORS = {OK: "green", MISSING: "red", UNKNOWN: "yellow"}


class Finding(NamedTuple):
    """The outcome of one check; `fix` is the command or advice that fixes it."""

    state: str
    text: str
    fix: str = ""


Findings = Iterator[Finding]


def check_cluster(
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

    Args: those of `raft preflight`, whose help explains them; `jobs` is the folder of manifests.

    Raises:
        ConfigError: a parameter or manifest is wrong.
        ClusterError: there is no kubeconfig, the cluster does not answer, or something is missing.
    """
    needed = manifests.load_all(jobs)
    values: dict[str, Any] = {}
    if parameters is not None or settings:
        compiled = load(pipeline)
        given = read_parameters(parameters, settings)
        values = compiled.defaults | check_parameters(compiled, given)
        needed = hardware.chosen(needed, hardware.hardware_of_run(values))
    stages = [needed[stage] for stage in STAGES]
    account = service_account or stages[0].pod.service_account_name or "default"
    cluster = connect(context)
    checks: list[Callable[[], Findings]] = [
        lambda: _version(cluster),
        lambda: _account(cluster, namespace, account),
        lambda: _admission(cluster, namespace, account, stages),
        lambda: _secrets(cluster, namespace, stages),
        lambda: _nodes(cluster, stages, scale_from_zero),
        *([] if values else [lambda: _job_settings(cluster, namespace, stages, values)]),
        lambda: _locations(values, pipeline_root),
        lambda: _teacher(values),
        lambda: _model(values),
        *([lambda: _kubeflow(host, ca_certificate, context)] if kubeflow else []),
    ]
    missing = sum(_print(finding) for check in checks for finding in _findings(check))
    if missing:
        raise ClusterError(
            f"{missing} thing{'s are' if missing > 1 else ' is'} missing",
            hint="Fix what is marked, then run raft preflight again.",
        )


def _findings(check: Callable[[], Findings]) -> Findings:
    """What a check finds, an error of it included; the others are not stopped by one."""
    try:
        yield from check()
    except NoAnswer:
        raise
    except (NotPermitted, AccessError) as error:
        yield Finding(UNKNOWN, str(error), error.hint)
    except RaftError as error:
        yield Finding(MISSING, str(error), error.hint)


def _print(finding: Finding) -> bool:
    """Print a finding; whether something is missing."""
    mark = click.style(f"{finding.state:12}", fg=COLORS[finding.state])
    click.echo(f"{mark} {finding.text}")
    for line in finding.fix.splitlines() if finding.state != OK else ():
        click.echo(f"{'':12}   {line}")
    return finding.state == MISSING


# ---- in the cluster ----------------------------------------------------------------------------


def _version(cluster: Cluster) -> Findings:
    try:
        version = cluster.version.get_code().git_version
    except NotThere as error:
        problem = f"{cluster.address} is not a Kubernetes cluster ({error})"
        raise NoAnswer(problem) from error
    yield Finding(OK, f"cluster {cluster.address} runs Kubernetes {version}")


def _account(cluster: Cluster, namespace: str, name: str) -> Findings:
    try:
        account = cluster.core.read_namespaced_service_account(name, namespace)
    except NotThere:
        fix = f"kubectl -n {namespace} create serviceaccount {name}"
        yield Finding(MISSING, f"service account {name} in {namespace}", f"{SETUP}\n{fix}")
        return
    identity = (account.metadata.annotations or {}).get(IDENTITY)
    if identity:
        yield Finding(OK, f"service account {name} acts as {identity} (Workload Identity)")
    else:
        yield Finding(
            UNKNOWN,
            f"whether {name} may use the bucket: it has no annotation {IDENTITY}",
            "Needed only where the bucket is granted to a Google service account; the head of "
            "k8s/base/service-account.yaml\nhas the command that grants it to this one directly.",
        )


def _admission(cluster: Cluster, namespace: str, account: str, jobs: list[Job]) -> Findings:
    """Whether the API server would take each stage's Job, and the pod that the Job makes.

    Quota, pod security, priority class and limits hold for pods alone, and a Job that makes none
    waits for ever.
    """
    refusals: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        body = job_body(job, namespace)
        template = body["spec"]["template"]
        template["spec"]["serviceAccountName"] = account
        metadata = template.get("metadata", {}) | {"generateName": f"raft-{job.stage}-"}
        pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        for create, it in (
            (cluster.batch.create_namespaced_job, body),
            (cluster.core.create_namespaced_pod, pod),
        ):
            try:
                create(namespace, it, dry_run="All", field_validation="Strict")
            except ClusterError as error:
                refusals.setdefault((str(error), error.hint), []).append(job.stage)
    for (message, hint), stages in refusals.items():
        text = f"a Job and pod of {', '.join(dict.fromkeys(stages))}: {message}"
        if re.search('User ".*" cannot|does not support dry run', message):
            yield Finding(UNKNOWN, text, hint)
        else:
            describe = f"kubectl -n {namespace} describe resourcequota"
            yield Finding(MISSING, text, SETUP if "found" in message else describe)
    if not refusals:
        names = ", ".join(job.stage for job in jobs)
        yield Finding(OK, f"the API server takes a Job and pod of {names}")


def _secrets(cluster: Cluster, namespace: str, jobs: list[Job]) -> Findings:
    users: dict[tuple[str, str, bool], list[str]] = {}
    for job in jobs:
        for variable in job.container.env:
            if variable.value_from is not None:
                secret = variable.value_from.secret_key_ref
                wanted = (secret.name, secret.key, secret.optional)
                users.setdefault(wanted, []).append(job.stage)
    for (name, key, optional), stages in users.items():
        text = f"secret {name} with key {key} in {namespace}, for {', '.join(stages)}"
        fix = f"kubectl -n {namespace} create secret generic {name} --from-literal={key}=VALUE"
        try:
            # Only the names of its keys are looked at.
            keys = cluster.core.read_namespaced_secret(name, namespace).data or {}
            fix = f"kubectl -n {namespace} delete secret {name}\n{fix}"
        except NotThere:
            keys = {}
        except NotPermitted as error:
            yield Finding(UNKNOWN, f"{text}: {error}", error.hint)
            continue
        if key in keys:
            yield Finding(OK, text)
        elif optional:
            yield Finding(UNKNOWN, f"whether it is needed: {text}, is not there", fix)
        else:
            yield Finding(MISSING, text, fix)


_POOL = (
    "gcloud container node-pools create raft-a100 --cluster CLUSTER --location LOCATION \\\n"
    "  --machine-type a2-highgpu-1g --enable-autoscaling --min-nodes 0 --max-nodes 1 \\\n"
    "  --accelerator type=nvidia-tesla-a100,count=1,gpu-driver-version=latest\n"
    "With a pool that scales from zero, --scale-from-zero true takes its nodes for granted."
)


def _nodes(cluster: Cluster, jobs: list[Job], scale_from_zero: bool) -> Findings:
    """Whether each stage's pod fits a node that is empty; who is on it, the scheduler knows."""
    nodes = cluster.core.list_node().items
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        need = job.pod.model_dump_json(include={"node_selector", "tolerations"})
        alike.setdefault(need + job.container.resources.model_dump_json(), []).append(job)
    for job, *others in alike.values():
        names = ", ".join(entry.stage for entry in (job, *others))
        wanted = job.pod.node_selector.items()
        reasons = {
            node.metadata.name: _unfit(node, job)
            for node in nodes
            if wanted <= (node.metadata.labels or {}).items()
        }
        fit = [name for name, reason in reasons.items() if not reason]
        if fit:
            more = f" and {len(fit) - 1} more" if len(fit) > 1 else ""
            yield Finding(OK, f"a node for {names}: {fit[0]}{more}")
        elif reasons:
            text = "; ".join(f"{name} {reason}" for name, reason in [*reasons.items()][:3])
            more = f"; and {len(reasons) - 3} more nodes" if len(reasons) > 3 else ""
            fix = f"kubectl describe node {next(iter(reasons))}"
            yield Finding(MISSING, f"a node for {names}: {text}{more}", fix)
        else:
            labels = {pair for node in nodes for pair in (node.metadata.labels or {}).items()}
            similar = sorted("=".join(pair) for pair in labels if pair[0] in dict(wanted))
            seen = f" (there is {', '.join(similar)})" if similar else ""
            selector = ",".join(map("=".join, wanted))
            text = f"a node for {names}: none of {len(nodes)} has {selector}{seen}"
            expected = scale_from_zero and job.container.resources.limits.gpu
            yield Finding(UNKNOWN if expected else MISSING, text, "" if expected else _POOL)


def _unfit(node: Any, job: Job) -> str:
    """Why a node could never take a stage's pod; "" if it could.

    A node that is cordoned or not ready has a taint that says so.
    """
    for taint in node.spec.taints or []:
        hard = taint.effect in ("NoSchedule", "NoExecute")
        if hard and not any(_tolerates(entry, taint) for entry in job.pod.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"has the taint {taint.key}{value}:{taint.effect}, which is not tolerated"
    resources = job.container.resources
    # Kubernetes takes a limit for a request that is not written.
    limits, requests = (
        amounts.model_dump(by_alias=True, exclude_none=True)
        for amounts in (resources.limits, resources.requests)
    )
    for resource, size in (limits | requests).items():
        offered = (node.status.allocatable or {}).get(resource, "0")
        if resource == GPU and offered == "0":
            return "offers no GPU: it has none, or its driver is not installed"
        if amount(size) > amount(offered):
            return f"offers {offered} of {resource}, not {size}"
    return ""


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect) or toleration.key not in (None, taint.key):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")


def _job_settings(
    cluster: Cluster, namespace: str, jobs: list[Job], values: dict[str, Any]
) -> Findings:
    """Read the Jobs' settings into `values`, by the names that pipeline parameters have."""
    sources = [source for job in jobs for source in job.container.env_from or []]
    for name in sorted({source.config_map_ref.name for source in sources}):
        text = f"settings of the Jobs: ConfigMap {name} in {namespace}"
        try:
            data = cluster.core.read_namespaced_config_map(name, namespace).data or {}
        except NotThere:
            yield Finding(
                MISSING,
                text,
                "Edit k8s/base/settings.yaml, then kubectl apply -f k8s/base/settings.yaml; for "
                "a pipeline,\ngive --parameters instead.",
            )
            continue
        values |= {key.removeprefix("RAFT_").lower(): value for key, value in data.items()}
        yield Finding(OK, text)


# ---- elsewhere ---------------------------------------------------------------------------------


def _locations(values: Mapping[str, Any], pipeline_root: str) -> Findings:
    locations = {name: values.get(name, "") for name in ("documents", "questions", "base_model")}
    locations["run"] = pipeline_root or values.get("run", "")
    for name, value in locations.items():
        if not value or (name == "base_model" and not _is_path(value)):
            continue
        if not value.startswith(SCHEME):
            fix = f"gcloud storage cp --recursive {value} gs://BUCKET/{name}"
            yield Finding(MISSING, f"{name}: {value} is a path, which the pods do not see", fix)
            continue
        try:
            reachable(value, write=name == "run")
            verb = "writable" if name == "run" else "readable"
            yield Finding(OK, f"{name}: {value} is {verb} from here")
        except AccessError as error:
            yield Finding(UNKNOWN, f"{name}: {error}", error.hint)
        except RaftError as error:
            yield Finding(MISSING, f"{name}: {error}", error.hint)


def _is_path(model: str) -> bool:
    return "://" in model or model.startswith(("/", ".", "~")) or Path(model).exists()


def _ask(method: str, url: str, token: str) -> Any:
    """A server's answer to a request, with a token unless that is ""."""
    import requests

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, url, headers=headers, timeout=20, allow_redirects=False)


def _teacher(values: Mapping[str, Any]) -> Findings:
    if values.get("teacher") != "openai":
        return
    endpoint, model = values.get("teacher_endpoint", ""), values.get("teacher_model", "")
    if not endpoint or not model:
        yield Finding(MISSING, "teacher openai needs teacher_endpoint and teacher_model")
        return
    url = f"{endpoint.rstrip('/')}/models"
    check = "Check teacher_endpoint; it ends in /v1 for most servers."
    try:
        answer = _ask("GET", url, os.environ.get("OPENAI_API_KEY", ""))
        models = [entry["id"] for entry in answer.json()["data"]] if answer.ok else []
    except OSError as error:  # those of requests are
        # A service's name is known inside the cluster only.
        inside = "." not in (urlsplit(endpoint).hostname or "")
        yield Finding(
            UNKNOWN if inside else MISSING,
            f"teacher at {endpoint} does not answer here ({type(error).__name__})",
            f"kubectl run teacher-check --rm -it --restart=Never --image=curlimages/curl -- {url}",
        )
    except (ValueError, KeyError, TypeError):
        yield Finding(MISSING, f"teacher at {endpoint} lists no models at {url}", check)
    else:
        if answer.status_code in (401, 403):
            text = f"teacher at {endpoint} refuses ({answer.status_code})"
            fix = "export OPENAI_API_KEY=KEY here, and put the same key in the secret raft-teacher."
            yield Finding(MISSING, text, fix)
        elif not answer.ok:
            yield Finding(MISSING, f"teacher at {url} answers {answer.status_code}", check)
        elif model not in models:
            fix = f"Set teacher_model to one of: {', '.join(models[:5])}"
            yield Finding(MISSING, f"teacher at {endpoint} has no model {model}", fix)
        else:
            yield Finding(OK, f"teacher {model} answers at {endpoint}")


def _model(values: Mapping[str, Any]) -> Findings:
    model = values.get("base_model", "")
    if not model or _is_path(model):
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN", "")
    try:
        status = _ask("HEAD", f"{hub}/{model}/resolve/main/config.json", token).status_code
    except OSError as error:
        yield Finding(UNKNOWN, f"model {model}: {hub} is silent ({type(error).__name__})")
        return
    gated = "the token in HF_TOKEN is not accepted" if token else "it is gated, or not there"
    outcomes = {
        401: (
            gated,
            f"Accept the licence at {hub}/{model}, then put a token of that account in HF_TOKEN\n"
            "here, and for the pods in the secret that train.yaml describes.",
        ),
        403: ("its licence is not accepted", f"Open {hub}/{model}"),
        404: (f"not on {hub}", "Check base_model."),
    }
    if status < 400:
        yield Finding(OK, f"model {model} may be fetched from {hub}")
    elif status in outcomes:
        problem, fix = outcomes[status]
        yield Finding(MISSING, f"model {model}: {problem}", fix)
    else:
        yield Finding(UNKNOWN, f"model {model}: {hub} answers {status}")


def _kubeflow(host: str, ca_certificate: str, context: str) -> Findings:
    client = connect_to_kubeflow(host, ca_certificate, context)
    yield Finding(OK, f"Kubeflow Pipelines 2 answers at {client.address}")
