"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the user's flags instead of the
manifest's. Flags are checked by the stage's config class first, so a typo does not wait for a GPU.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from components.core.config import flag
from components.core.errors import ClusterError, ConfigError, NotPermitted, RunError
from components.core.progress import headline, say
from pipelines import manifests
from pipelines.cluster.connection import connect, outlast_restarts
from pipelines.k8s.job import Job
from pipelines.parameters import is_local
from pipelines.stages import config_class

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_KEPT = 24 * 3600
"""The cluster itself removes a finished Job after this time, should we have been killed."""


def run_job(
    job_name: str,
    settings: Mapping[str, object] | None = None,
    *,
    namespace: str = "raft",
    context: str = "",
    overlay: str = "",
) -> None:
    """Run a stage in the cluster; its log goes to standard output.

    The arguments are those of `raft job`, whose help explains them; `settings` are the stage's by
    name, and None keeps the flags of the manifest.

    Raises:
        ConfigError: a setting or the manifest is wrong, or a location that a pod does not see.
        ClusterError: the cluster cannot be reached or refuses.
        RunError: the stage failed; the exit code is the container's.
    """
    manifest = manifests.load_all(manifests.overlay(overlay))[job_name]
    stage = manifest.stage
    arguments = None if settings is None else _flags(manifest, settings)
    body = job_body(manifest, namespace, arguments)
    name = body["metadata"]["name"]
    core, batch = connect(context)
    batch.create_namespaced_job(namespace, body)
    try:
        outlast_restarts(batch.api_client)
        headline(stage, f"Job {name} in {namespace}")
        _follow(core, batch, namespace, name, stage)
    finally:
        _remove(batch, namespace, name)


def _flags(manifest: Job, settings: Mapping[str, object]) -> list[str]:
    config = config_class(manifest.stage)
    config.parse(settings)
    for name, value in settings.items():
        is_variable = "$(" in str(value)  # of the manifest
        if not is_variable and is_local(config, name, value, manifest.pod.claims):
            problem = f"{flag(name)} {value!r} is a path on this machine, which no pod sees"
            hint = f"gcloud storage cp --recursive {value} gs://BUCKET/ brings a folder there."
            raise ConfigError(f"{problem} (allowed: gs://BUCKET/PREFIX)", hint=hint)
    return [f"{flag(name)}={value}" for name, value in settings.items()]


def job_body(job: Job, namespace: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """The Job to create: the manifest's, with a new name and, if given, with other flags."""
    body: dict[str, Any] = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    name = f"raft-{job.name}-{secrets.token_hex(3)}"
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


def _follow(core: Any, batch: Any, namespace: str, name: str, stage: str) -> None:
    """Stay with a Job through its pods, of which there is a new one after each failure."""
    reported: set[str] = set()
    printed: dict[str, int] = {}
    while True:
        conditions, pod = _look(core, batch, namespace, name)
        lines = _warnings(core, namespace, name)
        phase = pod.status.phase if pod else "Pending"
        code, ending = _exit(pod) if pod else (1, "no pod")
        if phase != "Pending" and ending not in reported:
            lines += _print_log(core, namespace, pod.metadata.name, stage, printed)
        if phase in ("Succeeded", "Failed"):
            lines.append(ending)
        for line in lines:
            if line not in reported:
                say(f"  {line}")
        reported.update(lines)
        if failed := conditions.get("Failed"):
            problem = f"{stage} has failed: {failed.reason} {failed.message or ''} ({ending})"
            failure = RunError(problem)
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


def _warnings(core: Any, namespace: str, name: str) -> list[str]:
    """What the cluster reports of a Job and its pods: a full quota, no node, image or secret."""
    with suppress(NotPermitted):  # not every account may see events
        events = core.list_namespaced_event(namespace, field_selector="type=Warning").items
        about = [event for event in events if event.involved_object.name.startswith(name)]
        return [f"{event.reason}: {event.message}" for event in about]
    return []


def _exit(pod: Any) -> tuple[int, str]:
    """Exit code of a pod's container, 1 where it has none, and the words for how it ended."""
    statuses = pod.status.container_statuses or []
    ended = next((status.state.terminated for status in statuses), None) or pod.status
    code = getattr(ended, "exit_code", 1)
    return code, f"{pod.metadata.name}: exit code {code} ({ended.reason or pod.status.phase})"


def _print_log(
    core: Any, namespace: str, pod: str, stage: str, printed: dict[str, int]
) -> list[str]:
    """Print what follows the printed lines of a pod's log, until the stream ends; why it cannot."""
    from urllib3.exceptions import HTTPError

    follow = {"follow": True, "_preload_content": False, "_request_timeout": (30, None)}
    try:
        stream = core.read_namespaced_pod_log(pod, namespace, container=stage, **follow)
        for number, line in enumerate(stream):
            if number >= printed.get(pod, 0):
                print(line.decode("utf-8", errors="replace").removesuffix("\n"), flush=True)
                printed[pod] = number + 1
    except ClusterError as error:
        return [f"no log: {error}"]
    except HTTPError:
        pass  # the stream was cut: the next look shows it
    return []
