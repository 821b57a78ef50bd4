"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the user's flags instead of the
manifest's. Flags are checked by the stage's config class first, so a typo does not wait for a GPU.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.core.config import flag
from components.core.errors import ClusterError, ConfigError, NotPermitted, RunError
from components.core.progress import headline, say
from pipelines import manifests
from pipelines.cluster.connection import connect, poll
from pipelines.cluster.parameters import is_local
from pipelines.k8s.job import Job
from pipelines.stages import config_class

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_KEPT = 24 * 3600
"""The cluster itself removes a finished Job after this time, should we have been killed."""


def run_job(
    stage: str,
    settings: Mapping[str, object] | None = None,
    *,
    namespace: str = "raft",
    context: str = "",
    jobs: Path = manifests.BASE,
    detach: bool = False,
    start_minutes: float = 30,
) -> None:
    """Run a stage in the cluster; its log goes to standard output.

    The arguments are those of `raft job`, whose help explains them; `settings` are the stage's by
    name, and None keeps the flags of the manifest in the folder `jobs`.

    Raises:
        ConfigError: a setting or the manifest is wrong, or a location that a pod does not see.
        ClusterError: the cluster cannot be reached or refuses, or the stage does not start.
        RunError: the stage failed; the exit code is the container's.
    """
    arguments = None if settings is None else _flags(stage, settings)
    body = job_body(manifests.load_all(jobs)[stage], namespace, arguments)
    name = body["metadata"]["name"]
    core, batch = connect(context)
    try:
        batch.create_namespaced_job(namespace, body)
    except (KeyboardInterrupt, SystemExit):
        _remove(batch, namespace, name)
        raise
    if detach:
        print(name, flush=True)
        say(f"  follow  kubectl -n {namespace} logs --follow job/{name}")
        return say(f"  remove  kubectl -n {namespace} delete job {name}")
    try:
        headline(stage, f"Job {name} in {namespace}")
        _follow(core, batch, namespace, name, stage, start_minutes)
    finally:
        _remove(batch, namespace, name)


def _flags(stage: str, settings: Mapping[str, object]) -> list[str]:
    """The stage's settings, checked, as flags."""
    config = config_class(stage)
    config.parse(settings)
    for name, value in settings.items():
        if is_local(config, name, value) and "$(" not in str(value):  # a variable of the manifest
            problem = f"{flag(name)} {value!r} is a path on this machine, which no pod sees"
            hint = f"gcloud storage cp --recursive {value} gs://BUCKET/ brings a folder there."
            raise ConfigError(f"{problem} (allowed: gs://BUCKET/PREFIX)", hint=hint)
    return [f"{flag(name)}={value}" for name, value in settings.items()]


def job_body(job: Job, namespace: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """The Job to create: the manifest's, with a new name and, if given, with other flags."""
    body: dict[str, Any] = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    name = f"raft-{job.stage}-{secrets.token_hex(3)}"
    body["metadata"] |= {"name": name, "namespace": namespace}
    body["spec"]["ttlSecondsAfterFinished"] = SECONDS_KEPT
    if arguments is not None:
        body["spec"]["template"]["spec"]["containers"][0]["args"] = arguments
    return body


def _remove(batch: Any, namespace: str, name: str) -> None:
    """Delete the Job and its pods; prints the command when the cluster does not let us."""
    try:
        batch.delete_namespaced_job(name, namespace, propagation_policy="Background")
        say(f"Job {name} is removed")
    except ClusterError as error:
        say(f"Job {name} was not removed ({error}): kubectl -n {namespace} delete job {name}")


def _follow(
    core: Any, batch: Any, namespace: str, name: str, stage: str, start_minutes: float
) -> None:
    """Stay with a Job through its pods, of which there is a new one after each failure."""
    shown = last_line = ""
    waiting_since = time.monotonic()
    while True:
        conditions, pod = poll(lambda: _look(core, batch, namespace, name), SECONDS_BETWEEN_LOOKS)
        code, ending = 1, "no pod"
        if pod is None or pod.status.phase == "Pending":
            reason = _why_waiting(core, namespace, name, pod)
            line = f"waiting: {reason}"
            minutes = (time.monotonic() - waiting_since) / 60
            if minutes > start_minutes or reason.startswith("InvalidImageName"):
                problem = f"{stage} has not started in {minutes:.0f} min: {reason}"
                raise ClusterError(problem, hint="raft preflight looks for what is missing.")
        else:
            waiting_since = time.monotonic()
            code, ending = _exit(pod)
            line = shown if pod.status.phase == "Running" else f"{pod.metadata.name}: {ending}"
            if line != shown or pod.status.phase == "Running":
                last_line = _print_log(core, namespace, pod.metadata.name, stage, last_line)
        if line != shown:
            shown = line
            say(f"  {line}")
        if failed := conditions.get("Failed"):
            why = f"{failed.reason} {failed.message or ''}"
            hint = f"Raise the memory in k8s/base/{stage}.yaml." if "OOM" in ending else ""
            failure = RunError(f"{stage} has failed with {ending}: {why}", hint=hint)
            failure.exit_code = code or 1
            raise failure
        if "Complete" in conditions:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _look(core: Any, batch: Any, namespace: str, name: str) -> tuple[dict[str, Any], Any]:
    """The conditions that hold for a Job by type, and its newest pod or None."""
    status = batch.read_namespaced_job(name, namespace).status
    conditions = {entry.type: entry for entry in status.conditions or [] if entry.status == "True"}
    pods = core.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
    return conditions, max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)


def _why_waiting(core: Any, namespace: str, name: str, pod: Any) -> str:
    """Why the Job makes no pod (a quota, a policy, no service account), or the pod does not run."""
    if pod is None:
        selector = f"involvedObject.name={name},type=Warning"
        with suppress(ClusterError, IndexError):  # not every account may see events
            events = core.list_namespaced_event(namespace, field_selector=selector).items
            return f"the Job can make no pod: {events[-1].message}"
        return "the Job has no pod yet"
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes the pod: {condition.message}"
    for status in pod.status.container_statuses or []:
        if status.state.waiting and status.state.waiting.message:
            return f"{status.state.waiting.reason}: {status.state.waiting.message}"
    return "the pod is being prepared"


def _exit(pod: Any) -> tuple[int, str]:
    """Exit code of a pod's container, 1 where it has none, and the words for it and its reason."""
    statuses = pod.status.container_statuses or []
    ended = next((status.state.terminated for status in statuses), None) or pod.status
    code = getattr(ended, "exit_code", 1)
    return code, f"exit code {code} ({ended.reason or pod.status.phase})"


def _print_log(core: Any, namespace: str, pod: str, stage: str, after: str) -> str:
    """Print a log's lines after a time until the stream ends; the time of the last one."""
    from urllib3.exceptions import HTTPError

    last = after
    options = {"follow": True, "timestamps": True, "_preload_content": False}
    try:
        for line in core.read_namespaced_pod_log(
            pod, namespace, container=stage, _request_timeout=(30, None), **options
        ):
            stamp, _, text = line.decode("utf-8", errors="replace").partition(" ")
            stamp = stamp.removesuffix("Z")  # it would be greater than a further digit
            if stamp > after:
                last = stamp
                print(text.removesuffix("\n"), flush=True)
    except NotPermitted:
        raise
    except (HTTPError, ClusterError):
        pass  # the node is gone, or the stream was cut: the next look tells
    return last
