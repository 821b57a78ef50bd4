"""Checks before a run that a cluster has what the run needs; changes nothing.

Each check is a function that returns what is there, or raises what is missing with the command that
fixes it. The API server is asked to admit each stage's Job and pod in a dry run, so quota, policies
and accounts are its own answers; what no server says until a pod waits or fails is checked here.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from components.core.errors import AccessError, ClusterError, NotPermitted, RaftError
from components.core.gpus import kinds, of_label
from components.core.storage import SCHEME, reachable
from pipelines import hardware, manifests
from pipelines.cluster import kubeflow as kubeflow_pipelines
from pipelines.cluster.connection import NoAnswer, NotThere, connect
from pipelines.cluster.job import job_body
from pipelines.cluster.parameters import check_parameters, load, read_parameters
from pipelines.k8s.job import Job, SecretKey, Toleration
from pipelines.k8s.values import GKE_ACCELERATOR, GPU, amount
from pipelines.stages import STAGES

Check = Callable[[], str]
"""Returns what is there, or raises what is missing."""

COLORS = {"ok": "green", "missing": "red", "cannot tell": "yellow"}

IDENTITY = "iam.gke.io/gcp-service-account"
"""Annotation that lets a service account of Kubernetes act as one of Google Cloud."""


class CannotTell(ClusterError):
    """A check has no answer: from here, or for this account."""


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

    The arguments are those of `raft preflight`, whose help explains them.

    Raises:
        ConfigError: a parameter or manifest is wrong.
        ClusterError: there is no kubeconfig, the cluster does not answer, or something is missing.
    """
    by_stage = manifests.load_all(jobs)
    values: dict[str, Any] = {}
    if parameters is not None or settings:
        compiled = load(pipeline)
        user_values = read_parameters(parameters, settings)
        values = compiled.defaults | check_parameters(compiled, user_values)
        overrides = hardware.hardware_of_run(values)
        by_stage = hardware.chosen(by_stage, overrides, compiled.hardware)
    needed = [by_stage[stage] for stage in STAGES]
    core, batch = connect(context)
    account = service_account or needed[0].pod.service_account_name or "default"
    checks: dict[str, Check] = {
        f"service account {account}": partial(_account, core, namespace, account)
    }
    for job in needed:
        name = f"pod of {job.stage}"
        checks[name] = partial(_admit, core, batch, namespace, account, job, as_step=bool(values))
        for source in filter(None, (variable.value_from for variable in job.container.env)):
            secret = source.secret_key_ref
            name = f"secret {secret.name}, {'optional ' * secret.optional}key {secret.key}"
            checks[name] = partial(_secret, core, namespace, secret)
    place = attrgetter("pod.node_selector", "pod.tolerations", "container.resources.limits.gpu")
    for _, group in groupby(needed, place):
        same = list(group)
        name = f"node for {', '.join(job.stage for job in same)}"
        checks[name] = partial(_node, core, same[0], scale_from_zero)
    checks |= _outside(values, pipeline_root)
    if kubeflow:
        checks["Kubeflow"] = partial(_kubeflow, host, ca_certificate, context)
    missing = sum(_state(name, check) == "missing" for name, check in checks.items())
    if missing:
        problem = f"{missing} thing{'s are' if missing > 1 else ' is'} missing"
        raise ClusterError(problem, hint="Fix what is marked, then run raft preflight again.")


def _state(name: str, check: Check) -> str:
    """What a check finds, which is printed."""
    try:
        state, text, hint = "ok", check(), ""
    except NoAnswer:
        raise
    except RaftError as error:
        state, text, hint = "missing", str(error), error.hint
        # Here, this account or a webhook limits what can be known; pods have rights of their own.
        limited = isinstance(error, (CannotTell, NotPermitted, AccessError))
        if limited or "does not support dry run" in text:
            state = "cannot tell"
    click.echo(f"{click.style(f'{state:12}', fg=COLORS[state])} {name}: {text}")
    click.echo(indent(f"{hint}\n" if hint else "", " " * 15), nl=False)
    return state


def _account(core: Any, namespace: str, name: str) -> str:
    account = core.read_namespaced_service_account(name, namespace)
    if identity := (account.metadata.annotations or {}).get(IDENTITY):
        return f"acts as {identity} (Workload Identity)"
    hint = "The head of k8s/base/service-account.yaml has the commands that let it use a bucket."
    raise CannotTell(f"it may use the bucket, but has no annotation {IDENTITY}", hint=hint)


def _admit(core: Any, batch: Any, namespace: str, account: str, job: Job, *, as_step: bool) -> str:
    """Ask the API server to take a stage's Job, and the pod that the Job makes.

    Quota, pod security, priority class and limits hold for pods alone, and a Job that makes none
    waits for ever. A step of a pipeline is a pod without a Job and without a priority class.
    """
    body = job_body(job, namespace)
    template = body["spec"]["template"]
    template["spec"]["serviceAccountName"] = account
    dry_run = {"dry_run": "All", "field_validation": "Strict"}
    if as_step:
        template["spec"].pop("priorityClassName", None)
    else:
        batch.create_namespaced_job(namespace, body, **dry_run)
    metadata = template.get("metadata", {}) | {"generateName": f"raft-{job.stage}-"}
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    core.create_namespaced_pod(namespace, pod, **dry_run)
    return "the API server would take it"


def _secret(core: Any, namespace: str, secret: SecretKey) -> str:
    try:
        # Only the names of its keys are looked at.
        keys = core.read_namespaced_secret(secret.name, namespace).data or {}
    except NotThere:
        keys = {}
    if secret.key in keys:
        return "is there"
    fix = f"kubectl -n {namespace} create secret generic {secret.name}"
    kind = CannotTell if secret.optional else ClusterError
    raise kind("is not there", hint=f"{fix} --from-literal={secret.key}=VALUE")


def _node(core: Any, job: Job, scale_from_zero: bool) -> str:
    """A node that a stage's pod fits when it is empty; who is on it, the scheduler knows."""
    nodes = core.list_node().items
    selector = job.pod.node_selector
    reasons = {
        node.metadata.name: _unfit(node, job)
        for node in nodes
        if selector.items() <= (node.metadata.labels or {}).items()
    }
    if fit := [str(name) for name, reason in reasons.items() if not reason]:
        return fit[0]
    if reasons:
        text = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        raise ClusterError(text, hint=f"kubectl describe node {next(iter(reasons))}")
    text = f"none of {len(nodes)} has {','.join(map('='.join, selector.items()))}"
    if scale_from_zero and job.container.resources.limits.gpu:
        raise CannotTell(text)
    gpu = of_label(selector.get(GKE_ACCELERATOR, "")) or kinds()["a100-40gb"]
    machine = gpu.machines[0]
    hint = (
        "gcloud container node-pools create raft-gpus --cluster CLUSTER --location LOCATION \\\n"
        f"  --machine-type {machine.type} --enable-autoscaling --min-nodes 0 --max-nodes 1 \\\n"
        f"  --accelerator type={gpu.gke_label},count={machine.gpus},gpu-driver-version=latest\n"
        "With a pool that scales from zero, --scale-from-zero true takes its nodes for granted."
    )
    raise ClusterError(text, hint=hint)


def _unfit(node: Any, job: Job) -> str:
    """Why a node could never take a stage's pod; "" if it could.

    A node that is cordoned or not ready has a taint that says so.
    """
    for taint in node.spec.taints or []:
        tolerated = any(_tolerates(entry, taint) for entry in job.pod.tolerations)
        if not tolerated and taint.effect in ("NoSchedule", "NoExecute"):
            return f"has the taint {taint.key}={taint.value or ''}:{taint.effect}"
    wanted = job.container.resources.limits.gpu or 0
    offered = (node.status.allocatable or {}).get(GPU, "0")
    fits = amount(offered) >= wanted
    return "" if fits else f"offers {offered} of {GPU}, not {wanted} (0: is its driver installed?)"


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect) or toleration.key not in (None, taint.key):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")


def _kubeflow(host: str, ca_certificate: str, context: str) -> str:
    client = kubeflow_pipelines.connect(host, ca_certificate, context)
    return f"Pipelines 2 answers at {client.address}"


def _outside(values: Mapping[str, Any], pipeline_root: str) -> dict[str, Check]:
    """Checks from this machine with its own credentials: the pods have theirs."""
    checks: dict[str, Check] = {}
    for name in ("documents", "questions", "base_model"):
        location = values.get(name, "")
        if location.startswith(SCHEME):
            checks[name] = partial(_location, location)
        elif name == "base_model" and location:
            checks[name] = partial(_model, location)
    if pipeline_root.startswith(SCHEME):
        checks["run"] = partial(_location, pipeline_root, write=True)
    if values.get("teacher") == "openai":
        checks["teacher"] = partial(_teacher, values["teacher_endpoint"], values["teacher_model"])
    return checks


def _location(location: str, write: bool = False) -> str:
    reachable(location, write=write)
    return f"{location} is {'writable' if write else 'readable'} from here"


def _teacher(endpoint: str, model: str) -> str:
    hint = "Check teacher_endpoint (most end in /v1), OPENAI_API_KEY and secret raft-teacher."
    answer = _ask("GET", f"{endpoint.rstrip('/')}/models", "OPENAI_API_KEY", hint)
    try:
        models = [entry["id"] for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        models = []
    if model not in models:
        listed = ", ".join(models[:5]) or "no models"
        raise ClusterError(f"{endpoint} has no model {model}; it lists {listed}", hint=hint)
    return f"{model} answers at {endpoint}"


def _model(model: str) -> str:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    hint = (
        "401: HF_TOKEN has no valid token (for the pods: the secret that train.yaml describes).\n"
        f"403: accept the licence at {hub}/{model}.\n404: there is no such model."
    )
    _ask("HEAD", f"{hub}/{model}/resolve/main/config.json", "HF_TOKEN", hint)
    return f"{model} may be fetched from {hub}"


def _ask(method: str, url: str, token: str, hint: str) -> Any:
    """The answer to a request, with the token of an environment variable if there is one."""
    import requests

    key = os.environ.get(token)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.request(method, url, headers=headers, timeout=20, allow_redirects=False)
    except OSError as error:  # the pods may be in a network where it answers
        raise CannotTell(f"{url} does not answer here ({type(error).__name__})") from error
    if not answer.ok:
        raise ClusterError(f"{url} answers {answer.status_code}", hint=hint)
    return answer
