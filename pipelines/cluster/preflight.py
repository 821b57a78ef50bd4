"""Checks before a run that a cluster has what the run needs; changes nothing.

Each check prints a line: `ok`, `missing` with the command that fixes it, or `cannot tell` where
this account may not look. The API server is asked to admit each stage's Job and pod in a dry run,
so quota, policies and accounts are its own answers; what no server says until a pod waits or fails
is checked here. What is needed is read from the Job manifests and the run's parameters.
"""

from pathlib import Path
from typing import Any

import click

from components.core.errors import ClusterError, NotPermitted, RaftError
from components.core.gpus import kinds, of_label
from pipelines import hardware, manifests
from pipelines.cluster import elsewhere, kubeflow
from pipelines.cluster.connection import SETUP, Cluster, NoAnswer, NotThere, Refused, connect
from pipelines.cluster.elsewhere import MISSING, OK, UNKNOWN, Findings, failed
from pipelines.cluster.job import job_body
from pipelines.cluster.parameters import check_parameters, load, read_parameters
from pipelines.k8s.job import Job, Toleration
from pipelines.k8s.values import GKE_ACCELERATOR, GPU, amount
from pipelines.stages import STAGES

COLORS = {OK: "green", MISSING: "red", UNKNOWN: "yellow"}

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
        by_stage = hardware.chosen(by_stage, hardware.hardware_of_run(values))
    needed = [by_stage[stage] for stage in STAGES]
    account = service_account or needed[0].pod.service_account_name or "default"
    cluster = connect(context)
    checks = [
        _account(cluster, namespace, account),
        _admission(cluster, namespace, account, needed, as_steps=bool(values)),
        _secrets(cluster, namespace, needed),
        _nodes(cluster, needed, scale_from_zero),
        elsewhere.check_locations(values, pipeline_root),
        elsewhere.check_teacher(values),
        elsewhere.check_model(values),
        *([_kubeflow(host, ca_certificate, context)] if kubeflow else []),
    ]
    missing = sum(_print(check) for check in checks)
    if missing:
        raise ClusterError(
            f"{missing} thing{'s are' if missing > 1 else ' is'} missing",
            hint="Fix what is marked, then run raft preflight again.",
        )


def _print(check: Findings) -> int:
    """Print what a check finds; how many things are missing."""
    missing = 0
    for state, text, fix in _until_an_error(check):
        click.echo(f"{click.style(f'{state:12}', fg=COLORS[state])} {text}")
        for line in fix.splitlines():
            click.echo(f"{'':12}   {line}")
        missing += state == MISSING
    return missing


def _until_an_error(check: Findings) -> Findings:
    try:
        yield from check
    except NoAnswer:
        raise
    except RaftError as error:
        yield failed(error)


def _account(cluster: Cluster, namespace: str, name: str) -> Findings:
    try:
        account = cluster.core.read_namespaced_service_account(name, namespace)
    except NotThere:
        fix = f"{SETUP}\nkubectl -n {namespace} create serviceaccount {name}"
        yield MISSING, f"service account {name} in {namespace}", fix
        return
    if identity := (account.metadata.annotations or {}).get(IDENTITY):
        yield OK, f"service account {name} acts as {identity} (Workload Identity)", ""
    else:
        fix = (
            "Needed only where the bucket is granted to a Google service account; the head of "
            "k8s/base/service-account.yaml\nhas the command that grants it to this one directly."
        )
        yield UNKNOWN, f"whether {name} may use the bucket: it has no annotation {IDENTITY}", fix


def _admission(
    cluster: Cluster, namespace: str, account: str, jobs: list[Job], *, as_steps: bool
) -> Findings:
    """Whether the API server would take each stage's Job, and the pod that the Job makes.

    Quota, pod security, priority class and limits hold for pods alone, and a Job that makes none
    waits for ever. Steps of a pipeline are pods without a Job and without a priority class.
    """
    fix = f"kubectl -n {namespace} describe resourcequota,limitrange"
    for job in jobs:
        body = job_body(job, namespace)
        template = body["spec"]["template"]
        template["spec"]["serviceAccountName"] = account
        if as_steps:
            template["spec"].pop("priorityClassName", None)
        metadata = template.get("metadata", {}) | {"generateName": f"raft-{job.stage}-"}
        pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        create_job, create_pod = (
            cluster.batch.create_namespaced_job,
            cluster.core.create_namespaced_pod,
        )
        for create, entry in [(create_job, body)] * (not as_steps) + [(create_pod, pod)]:
            try:
                create(namespace, entry, dry_run="All", field_validation="Strict")
                yield OK, f"the API server would take a {entry['kind']} of {job.stage}", ""
            except Refused as error:
                state = UNKNOWN if "does not support dry run" in str(error) else MISSING
                yield state, f"a {entry['kind']} of {job.stage}: {error}", fix


def _secrets(cluster: Cluster, namespace: str, jobs: list[Job]) -> Findings:
    sources = [(job.stage, entry.value_from) for job in jobs for entry in job.container.env]
    users: dict[Any, list[str]] = {}
    for stage, source in sources:
        if source is not None:
            users.setdefault(source.secret_key_ref, []).append(stage)
    for secret, stages in users.items():
        text = f"secret {secret.name} with key {secret.key} in {namespace}, for {', '.join(stages)}"
        create = f"kubectl -n {namespace} create secret generic {secret.name}"
        try:
            # Only the names of its keys are looked at.
            keys = cluster.core.read_namespaced_secret(secret.name, namespace).data or {}
        except NotThere:
            keys = {}
        except NotPermitted as error:
            yield failed(error, f"{text}: ")
            continue
        state = OK if secret.key in keys else UNKNOWN if secret.optional else MISSING
        if state == UNKNOWN:
            text = f"whether it is needed: {text}, is not there"
        yield state, text, "" if state == OK else f"{create} --from-literal={secret.key}=VALUE"


def _nodes(cluster: Cluster, jobs: list[Job], scale_from_zero: bool) -> Findings:
    """Whether each stage's pod fits a node that is empty; who is on it, the scheduler knows."""
    nodes = cluster.core.list_node().items
    stages: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        wanted = job.pod.node_selector.items()
        matching = [node for node in nodes if wanted <= (node.metadata.labels or {}).items()]
        reasons = {node.metadata.name: _unfit(node, job) for node in matching}
        fit = [name for name, reason in reasons.items() if not reason]
        if fit:
            finding = (OK, fit[0], "")
        elif reasons:
            text = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
            finding = (MISSING, text, f"kubectl describe node {next(iter(reasons))}")
        else:
            unsure = scale_from_zero and job.container.resources.limits.gpu
            text = f"none of {len(nodes)} has {','.join(map('='.join, wanted))}"
            finding = (UNKNOWN, text, "") if unsure else (MISSING, text, _pool(dict(wanted)))
        stages.setdefault(finding, []).append(job.stage)
    for (state, text, fix), names in stages.items():
        yield state, f"a node for {', '.join(names)}: {text}", fix


def _pool(selector: dict[str, str]) -> str:
    """The command that makes nodes for a node selector."""
    gpu = of_label(selector.get(GKE_ACCELERATOR, "")) or kinds()["a100-40gb"]
    machine = gpu.machines[0]
    return (
        "gcloud container node-pools create raft-gpus --cluster CLUSTER --location LOCATION \\\n"
        f"  --machine-type {machine.type} --enable-autoscaling --min-nodes 0 --max-nodes 1 \\\n"
        f"  --accelerator type={gpu.gke_label},count={machine.gpus},gpu-driver-version=latest\n"
        "With a pool that scales from zero, --scale-from-zero true takes its nodes for granted."
    )


def _unfit(node: Any, job: Job) -> str:
    """Why a node could never take a stage's pod; "" if it could.

    A node that is cordoned or not ready has a taint that says so.
    """
    for taint in node.spec.taints or []:
        hard = taint.effect in ("NoSchedule", "NoExecute")
        if hard and not any(_tolerates(entry, taint) for entry in job.pod.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"has the taint {taint.key}{value}:{taint.effect}, which is not tolerated"
    wanted = job.container.resources.limits.gpu or 0
    offered = (node.status.allocatable or {}).get(GPU, "0")
    if wanted and offered == "0":
        return "offers no GPU: it has none, or its driver is not installed"
    return (
        f"offers {offered} of {GPU}, not {wanted}" if amount(str(wanted)) > amount(offered) else ""
    )


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect) or toleration.key not in (None, taint.key):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")


def _kubeflow(host: str, ca_certificate: str, context: str) -> Findings:
    client = kubeflow.connect(host, ca_certificate, context)
    yield OK, f"Kubeflow Pipelines 2 answers at {client.address}", ""
