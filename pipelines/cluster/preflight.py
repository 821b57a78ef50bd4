"""Checks before a run that a cluster has what the run needs; changes nothing.

Each check is a function that returns what is there, or raises what is missing with the command that
fixes it. The API server is asked to admit each stage's pod in a dry run, so quota, policies and
accounts are its own answers; what no server reports until a pod waits or fails is checked here.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from components.core.base_model import check_access, is_hub_id
from components.core.endpoint import COMPLETIONS
from components.core.errors import CannotTell, ClusterError, NotPermitted, RaftError
from components.core.hardware import GPU_STEPS
from pipelines import manifests
from pipelines.cluster.connection import NoAnswer, NotThere, connect
from pipelines.cluster.job import job_body
from pipelines.k8s.job import Job, SecretKey, Toleration
from pipelines.k8s.values import amount
from pipelines.overrides import override_jobs
from pipelines.parameters import check_parameters, load, read_parameters
from pipelines.stages import STAGES

Check = Callable[[], str]
"""Returns what is there, or raises what is missing."""

IDENTITY = "iam.gke.io/gcp-service-account"
"""Annotation that lets a service account of Kubernetes act as one of Google Cloud."""


def check_cluster(
    *,
    namespace: str = "raft",
    context: str = "",
    service_account: str = "",
    parameters: Path | None = None,
    settings: tuple[str, ...] = (),
    pipeline: Path = Path("pipelines/raft.yaml"),
    scale_from_zero: bool = False,
    overlay: str = "",
) -> None:
    """Print a line for every check.

    The arguments are those of `raft preflight`, whose help explains them.

    Raises:
        ConfigError: a parameter or manifest is wrong.
        ClusterError: there is no kubeconfig, the cluster does not answer, or something is missing.
    """
    by_stage = manifests.load_all(manifests.overlay(overlay))
    values: dict[str, Any] = {}
    volumes = [(claim, 1) for job in by_stage.values() for claim in job.pod.claims.values()]
    if parameters is not None or settings:
        compiled = load(pipeline)
        values = compiled.defaults
        values |= check_parameters(compiled, *read_parameters(parameters, settings))
        by_stage = override_jobs(by_stage, values, compiled.hardware)
        branches = len(values.get("trials", [values]))
        at_once = min(branches, compiled.at_once or branches)
        volumes = [
            (claim, at_once if step in GPU_STEPS else 1) for step, _, claim in compiled.volumes
        ]
    core, _ = connect(context)
    account = service_account or by_stage["train"].pod.service_account_name or "default"
    checks: dict[str, Check] = {
        f"service account {account}": partial(_account, core, namespace, account)
    }
    for job in map(by_stage.__getitem__, STAGES):
        name = f"pod of {job.stage}"
        checks[name] = partial(_admit, core, namespace, account, job, as_step=bool(values))
        checks[f"node for {job.stage}"] = partial(_node, core, job, scale_from_zero)
        for source in filter(None, (variable.value_from for variable in job.container.env)):
            secret = source.secret_key_ref
            name = f"secret {secret.name}, {'optional ' * secret.optional}key {secret.key}"
            checks[name] = partial(_secret, core, namespace, secret)
    for claim, at_once in volumes:
        checks[f"volume claim {claim}"] = partial(_volume, core, namespace, claim, at_once)
    if values.get("teacher") == "openai":
        url = f"{values['teacher_endpoint'].rstrip('/').removesuffix(COMPLETIONS)}/models"
        hint = "Check teacher_endpoint (most end in /v1), OPENAI_API_KEY and secret raft-teacher."
        checks["teacher"] = partial(_ask_teacher, url, hint)
    if values.get("teacher") == "vllm" and is_hub_id(values["teacher_model"]):
        model = values["teacher_model"]
        checks[f"teacher {model}"] = partial(check_access, model, "main", "--teacher-model")
    trials = [trial["base_model"] for trial in values.get("trials", [])]
    for model in filter(is_hub_id, sorted({values.get("base_model", ""), *trials})):
        revision = values.get("base_revision", "main")
        checks[f"base model {model}"] = partial(check_access, model, revision)
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
        # What this account may not see, the pods' may.
        state = "cannot tell" if isinstance(error, CannotTell | NotPermitted) else "missing"
        text, hint = str(error), error.hint
    click.echo(f"{state:12} {name}: {text}")
    click.echo(indent(f"{hint}\n" if hint else "", " " * 15), nl=False)
    return state


def _account(core: Any, namespace: str, name: str) -> str:
    account = core.read_namespaced_service_account(name, namespace)
    if identity := (account.metadata.annotations or {}).get(IDENTITY):
        return f"acts as {identity} (Workload Identity)"
    hint = "The head of k8s/base/service-account.yaml has the commands that let it use a bucket."
    raise CannotTell(f"it may use the bucket, but has no annotation {IDENTITY}", hint=hint)


def _admit(core: Any, namespace: str, account: str, job: Job, *, as_step: bool) -> str:
    """Ask the API server to take the pod of a stage.

    Quota, pod security, priority class and limits hold for pods alone, and a Job that makes none
    waits for ever. A step of a pipeline is a pod without a priority or runtime class.
    """
    template = job_body(job, namespace)["spec"]["template"]
    template["spec"]["serviceAccountName"] = account
    for name in ("priorityClassName", "runtimeClassName") if as_step else ():
        template["spec"].pop(name, None)
    metadata = template.get("metadata", {}) | {"generateName": f"raft-{job.stage}-"}
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    core.create_namespaced_pod(namespace, pod, dry_run="All", field_validation="Strict")
    return "the API server would take it"


def _secret(core: Any, namespace: str, secret: SecretKey) -> str:
    with suppress(NotThere):  # only the names of its keys are looked at
        if secret.key in (core.read_namespaced_secret(secret.name, namespace).data or {}):
            return "is there"
    fix = f"kubectl -n {namespace} create secret generic {secret.name}"
    kind = CannotTell if secret.optional else ClusterError
    raise kind("is not there", hint=f"{fix} --from-literal={secret.key}=VALUE")


def _volume(core: Any, namespace: str, claim: str, at_once: int) -> str:
    """A volume claim that so many steps mount at once, perhaps on several nodes."""
    modes = core.read_namespaced_persistent_volume_claim(claim, namespace).spec.access_modes
    if at_once > 1 and not {"ReadWriteMany", "ReadOnlyMany"} & {*modes}:
        raise ClusterError(
            f"{at_once} trials mount it at once, but it is {' and '.join(modes)}",
            hint="Use a claim with ReadWriteMany, or raft compile --parallelism 1.",
        )
    return ", ".join(modes)


def _node(core: Any, job: Job, scale_from_zero: bool) -> str:
    """A node that a stage's pod fits when it is empty; who is on it, the scheduler knows."""
    labels = ",".join(map("=".join, job.pod.node_selector.items()))
    nodes = core.list_node(label_selector=labels).items
    reasons = {str(node.metadata.name): _unfit(node, job) for node in nodes}
    if fit := [name for name, reason in reasons.items() if not reason]:
        return fit[0] + " (its affinity is left to the scheduler)" * bool(
            job.pod.affinity.node_affinity
        )
    if reasons:
        text = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        raise ClusterError(text, hint=f"kubectl describe node {next(iter(reasons))}")
    if scale_from_zero and job.container.resources.limits.accelerator[1]:
        raise CannotTell(f"none has {labels} now")
    hint = "docs/gke.md creates a pool of such nodes; --scale-from-zero true takes one for granted."
    raise ClusterError(f"none has {labels}", hint=hint)


def _unfit(node: Any, job: Job) -> str:
    """Why a node could never take a stage's pod; "" if it could.

    A node that is cordoned or not ready has a taint for it.
    """
    for taint in node.spec.taints or []:
        tolerated = any(_tolerates(entry, taint) for entry in job.pod.tolerations)
        if taint.effect != "PreferNoSchedule" and not tolerated:
            return f"has the taint {taint.key}={taint.value or ''}:{taint.effect}"
    resource, wanted = job.container.resources.limits.accelerator
    offered = (node.status.allocatable or {}).get(resource, "0")
    return "" if amount(offered) >= wanted else f"offers {offered} of {resource}, not {wanted}"


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect) or toleration.key not in (None, taint.key):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")


def _ask_teacher(url: str, hint: str) -> str:
    """Ask an endpoint from here, with the key of the environment: the pods have theirs."""
    import requests

    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(url, headers=headers, timeout=20, allow_redirects=False)
    except OSError as error:  # the pods may be in a network where it answers
        raise CannotTell(f"{url} does not answer here ({type(error).__name__})") from error
    if not answer.ok:
        raise ClusterError(f"{url} answers {answer.status_code}", hint=hint)
    return f"{url} answers"
