"""Checks before a run that a cluster has what the run needs; changes nothing.

Each check prints a line: `ok`, `missing` with the command that fixes it, or `cannot tell` where
this account may not look. The API server is asked to admit each stage's Job and pod in a dry run,
so quota, policies and accounts are its own answers; what no server says until a pod waits or fails
is checked here. What is needed is read from the Job manifests, and from the pipeline's parameters
or the Jobs' settings.
"""

from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted
from pipelines import hardware, manifests
from pipelines.cluster.compiled import load
from pipelines.cluster.connection import SETUP, Cluster, NoAnswer, NotThere, Refused, connect
from pipelines.cluster.elsewhere import check_locations, check_model, check_teacher
from pipelines.cluster.findings import MISSING, OK, UNKNOWN, Findings, failed, print_findings
from pipelines.cluster.job import job_body
from pipelines.cluster.kubeflow import connect as connect_to_kubeflow
from pipelines.cluster.parameters import check_parameters, read_parameters
from pipelines.k8s.job import Job, Toleration
from pipelines.k8s.values import GPU, amount
from pipelines.stages import STAGES

IDENTITY = "iam.gke.io/gcp-service-account"
"""Annotation that lets a service account of Kubernetes act as one of Google Cloud."""

POOL = """\
gcloud container node-pools create raft-a100 --cluster CLUSTER --location LOCATION \\
  --machine-type a2-highgpu-1g --enable-autoscaling --min-nodes 0 --max-nodes 1 \\
  --accelerator type=nvidia-tesla-a100,count=1,gpu-driver-version=latest
With a pool that scales from zero, --scale-from-zero true takes its nodes for granted."""


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
        _version(cluster),
        _account(cluster, namespace, account),
        _admission(cluster, namespace, account, needed, as_steps=bool(values)),
        _secrets(cluster, namespace, needed),
        _nodes(cluster, needed, scale_from_zero),
        *([] if values else [_job_settings(cluster, namespace, needed, values)]),
        check_locations(values, pipeline_root),
        check_teacher(values),
        check_model(values),
        *([_kubeflow(host, ca_certificate, context)] if kubeflow else []),
    ]
    missing = sum(print_findings(check) for check in checks)
    if missing:
        raise ClusterError(
            f"{missing} thing{'s are' if missing > 1 else ' is'} missing",
            hint="Fix what is marked, then run raft preflight again.",
        )


def _version(cluster: Cluster) -> Findings:
    try:
        version = cluster.version.get_code().git_version
    except NotThere as error:
        raise NoAnswer(f"{cluster.address} is not a Kubernetes cluster ({error})") from error
    yield OK, f"cluster {cluster.address} runs Kubernetes {version}", ""


def _account(cluster: Cluster, namespace: str, name: str) -> Findings:
    try:
        account = cluster.core.read_namespaced_service_account(name, namespace)
    except NotThere:
        fix = f"{SETUP}\nkubectl -n {namespace} create serviceaccount {name}"
        yield MISSING, f"service account {name} in {namespace}", fix
        return
    if identity := (account.metadata.annotations or {}).get(IDENTITY):
        yield OK, f"service account {name} acts as {identity} (Workload Identity)", ""
        return
    yield (
        UNKNOWN,
        f"whether {name} may use the bucket: it has no annotation {IDENTITY}",
        "Needed only where the bucket is granted to a Google service account; the head of "
        "k8s/base/service-account.yaml\nhas the command that grants it to this one directly.",
    )


def _admission(
    cluster: Cluster, namespace: str, account: str, jobs: list[Job], *, as_steps: bool
) -> Findings:
    """Whether the API server would take each stage's Job, and the pod that the Job makes.

    Quota, pod security, priority class and limits hold for pods alone, and a Job that makes none
    waits for ever. Steps of a pipeline are pods without a Job and without a priority class.
    """
    bodies = {job.stage: job_body(job, namespace) for job in jobs}
    pods = {}
    for stage, body in bodies.items():
        template = body["spec"]["template"]
        template["spec"]["serviceAccountName"] = account
        if as_steps:
            template["spec"].pop("priorityClassName", None)
        metadata = template.get("metadata", {}) | {"generateName": f"raft-{stage}-"}
        pods[stage] = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    for kind, create, entries in (
        ("Job", cluster.batch.create_namespaced_job, {} if as_steps else bodies),
        ("pod", cluster.core.create_namespaced_pod, pods),
    ):
        admitted = []
        for stage, entry in entries.items():
            try:
                create(namespace, entry, dry_run="All", field_validation="Strict")
                admitted.append(stage)
            except Refused as error:
                fix = f"kubectl -n {namespace} describe resourcequota,limitrange"
                state = UNKNOWN if "does not support dry run" in str(error) else MISSING
                yield state, f"a {kind} of {stage}: {error}", fix
        if admitted:
            yield OK, f"the API server would take a {kind} of {', '.join(admitted)}", ""


def _secrets(cluster: Cluster, namespace: str, jobs: list[Job]) -> Findings:
    users: dict[tuple[str, str, bool], list[str]] = {}
    for job in jobs:
        for source in (variable.value_from for variable in job.container.env):
            if source is not None:
                secret = source.secret_key_ref
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
            yield failed(error, f"{text}: ")
            continue
        if key in keys:
            yield OK, text, ""
        elif optional:
            yield UNKNOWN, f"whether it is needed: {text}, is not there", fix
        else:
            yield MISSING, text, fix


def _nodes(cluster: Cluster, jobs: list[Job], scale_from_zero: bool) -> Findings:
    """Whether each stage's pod fits a node that is empty; who is on it, the scheduler knows."""
    nodes = cluster.core.list_node().items
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        need = job.pod.model_dump_json(include={"node_selector", "tolerations"})
        alike.setdefault(need + job.container.resources.model_dump_json(), []).append(job)
    for job, *others in alike.values():
        what = f"a node for {', '.join(entry.stage for entry in (job, *others))}"
        wanted = job.pod.node_selector.items()
        matching = [node for node in nodes if wanted <= (node.metadata.labels or {}).items()]
        reasons = {node.metadata.name: _unfit(node, job) for node in matching}
        fit = [name for name, reason in reasons.items() if not reason]
        if fit:
            more = f" and {len(fit) - 1} more" if len(fit) > 1 else ""
            yield OK, f"{what}: {fit[0]}{more}", ""
        elif reasons:
            text = "; ".join(f"{name} {reason}" for name, reason in [*reasons.items()][:3])
            more = f"; and {len(reasons) - 3} more nodes" if len(reasons) > 3 else ""
            yield MISSING, f"{what}: {text}{more}", f"kubectl describe node {next(iter(reasons))}"
        else:
            labels = {pair for node in nodes for pair in (node.metadata.labels or {}).items()}
            similar = sorted("=".join(pair) for pair in labels if pair[0] in dict(wanted))
            seen = f" (there is {', '.join(similar)})" if similar else ""
            text = f"{what}: none of {len(nodes)} has {','.join(map('='.join, wanted))}{seen}"
            if scale_from_zero and job.container.resources.limits.gpu:
                yield UNKNOWN, text, ""
            else:
                yield MISSING, text, POOL


def _unfit(node: Any, job: Job) -> str:
    """Why a node could never take a stage's pod; "" if it could.

    A node that is cordoned or not ready has a taint that says so.
    """
    for taint in node.spec.taints or []:
        hard = taint.effect in ("NoSchedule", "NoExecute")
        if hard and not any(_tolerates(entry, taint) for entry in job.pod.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"has the taint {taint.key}{value}:{taint.effect}, which is not tolerated"
    resources = job.container.resources.model_dump(by_alias=True, exclude_none=True)
    # Kubernetes takes a limit for a request that is not written.
    for resource, size in (resources["limits"] | resources["requests"]).items():
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
            edit = "Edit k8s/base/settings.yaml, then kubectl apply -f k8s/base/settings.yaml; for "
            yield MISSING, text, f"{edit}a pipeline,\ngive --parameters instead."
            continue
        values |= {key.removeprefix("RAFT_").lower(): value for key, value in data.items()}
        yield OK, text, ""


def _kubeflow(host: str, ca_certificate: str, context: str) -> Findings:
    client = connect_to_kubeflow(host, ca_certificate, context)
    yield OK, f"Kubeflow Pipelines 2 answers at {client.address}", ""
