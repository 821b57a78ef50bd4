"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the user's flags instead of the
manifest's. Flags are checked by the stage's config class first, so a typo does not wait for a GPU.
"""

import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.config import flag
from components.core.errors import ClusterError, ConfigError, NotPermitted, RunError
from components.core.progress import headline, say
from pipelines import manifests
from pipelines.cluster.connection import Cluster, NotThere, connect
from pipelines.cluster.parameters import is_local
from pipelines.cluster.polling import poll
from pipelines.k8s.job import Job
from pipelines.stages import config_class

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_KEPT = 24 * 3600
"""The cluster itself removes a finished Job after this time, should we have been killed."""

HOPELESS = {"InvalidImageName", "ErrImageNeverPull"}
UNPULLED = HOPELESS | {"ErrImagePull", "ImagePullBackOff"}


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
        ClusterError: the cluster cannot be reached or refuses.
        RunError: the stage failed, and its exit code is the container's; or it does not start.
    """
    arguments = None if settings is None else checked_flags(stage, settings)
    body = job_body(manifests.load_all(jobs)[stage], namespace, arguments)
    name = body["metadata"]["name"]
    cluster = connect(context)
    try:
        cluster.batch.create_namespaced_job(namespace, body)
    except (KeyboardInterrupt, SystemExit):
        _remove(cluster, namespace, name)
        raise
    if detach:
        print(name, flush=True)
        say(f"  follow  kubectl -n {namespace} logs --follow job/{name}")
        say(f"  remove  kubectl -n {namespace} delete job {name}")
        return
    try:
        headline(stage, f"Job {name} in {namespace}")
        follower = _Follower(cluster, namespace, name, stage, start_minutes * 60)
        poll(follower.look, SECONDS_BETWEEN_LOOKS, answered=True)
    finally:
        _remove(cluster, namespace, name)


def checked_flags(stage: str, settings: Mapping[str, object]) -> list[str]:
    """The stage's settings as flags, one word each.

    Raises:
        ConfigError: a setting is missing or out of range, or a location that a pod does not see.
    """
    config = config_class(stage)
    config.parse(settings)
    for name, value in settings.items():
        if is_local(config, name, value) and "$(" not in str(value):  # a variable of the manifest
            raise ConfigError(
                f"{flag(name)} {value!r} is a path on this machine, which the pod does not see "
                "(allowed: gs://BUCKET/PREFIX)",
                hint=f"gcloud storage cp --recursive {value} gs://BUCKET/ brings a folder there.",
            )
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


def _remove(cluster: Cluster, namespace: str, name: str) -> None:
    """Delete the Job and its pods; prints the command when the cluster does not let us."""
    try:
        cluster.batch.delete_namespaced_job(name, namespace, propagation_policy="Background")
        say(f"Job {name} is removed")
    except NotThere:
        pass
    except ClusterError as error:
        command = f"kubectl -n {namespace} delete job {name}"
        say(f"Job {name} is left behind ({error}): {command}")


@dataclass
class _Follower:
    """Stays with a Job through its pods: there is a new one after each failure."""

    cluster: Cluster
    namespace: str
    name: str
    stage: str
    start_seconds: float
    reason: str = ""
    """Why the stage waits, or has no log, as it was last shown."""
    waiting_since: float = field(default_factory=time.monotonic)
    last_lines: dict[str, str] = field(default_factory=dict)
    """Pod to the time of the last line of its log that was shown."""
    ended: set[str] = field(default_factory=set)

    def look(self) -> bool:
        """Look at the Job and its pod; True when the Job is complete.

        Raises:
            RunError: the Job failed, or its pod does not start.
        """
        selector = f"job-name={self.name}"
        pods = self.cluster.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        pod = max(pods, key=lambda entry: entry.metadata.creation_timestamp, default=None)
        if pod is None or pod.status.phase == "Pending":
            self._wait(pod)
        elif pod.metadata.uid not in self.ended:
            self.waiting_since = time.monotonic()
            self._show_log(pod)
            if pod.status.phase != "Running":
                self.ended.add(pod.metadata.uid)
                code, reason = _exit(pod)
                if code:
                    say(f"  {self.stage} ended with exit code {code} ({reason})")
        try:
            status = self.cluster.batch.read_namespaced_job(self.name, self.namespace).status
        except NotThere as error:
            raise RunError(f"Job {self.name} was removed by somebody else") from error
        true = {entry.type: entry for entry in status.conditions or [] if entry.status == "True"}
        if "Failed" in true:
            raise self._failure(pod, true["Failed"])
        return "Complete" in true

    def _wait(self, pod: Any) -> None:
        """Show why the stage has not started, once for each reason."""
        reason = self._why_no_pod() if pod is None else _why_pending(pod)
        self._show(f"waiting: {reason}")
        waiting = pod and _state(pod, "waiting")
        waited = time.monotonic() - self.waiting_since
        hopeless = waiting and waiting.reason in HOPELESS
        if hopeless or waited > self.start_seconds:
            how_long = "" if hopeless else f" in {waited / 60:.0f} min"
            problem = f"{self.stage} has not started{how_long}: {reason}"
            error = RunError(problem, hint="raft preflight looks for what is missing.")
            error.exit_code = ClusterError.exit_code
            raise error

    def _show(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            say(f"  {reason}")

    def _why_no_pod(self) -> str:
        """What keeps the Job from making a pod: a quota, a policy, a missing service account."""
        try:
            events = self.cluster.core.list_namespaced_event(
                self.namespace, field_selector=f"involvedObject.name={self.name}"
            ).items
        except ClusterError:
            events = []
        warnings = [event.message for event in events if event.type == "Warning"]
        return f"the Job can make no pod: {warnings[-1]}" if warnings else "the Job has no pod yet"

    def _show_log(self, pod: Any) -> None:
        """Copy the log to standard output from where it was left, until the stream ends."""
        from urllib3.exceptions import HTTPError

        seen = self.last_lines.get(pod.metadata.uid, "")
        try:
            stream = self.cluster.core.read_namespaced_pod_log(
                pod.metadata.name,
                self.namespace,
                container=self.stage,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(30, None),
            )
            for line in stream:
                stamp, _, text = line.decode("utf-8", errors="replace").partition(" ")
                # RFC 3339, whose fractions of a second vary in length.
                second, _, fraction = stamp.removesuffix("Z").partition(".")
                stamp = f"{second}.{fraction:0<9}"
                if stamp > seen:
                    self.last_lines[pod.metadata.uid] = stamp
                    sys.stdout.write(text.removesuffix("\n") + "\n")
                    sys.stdout.flush()
        except NotPermitted as error:
            self._show(f"no log: {error}")
        except (HTTPError, ClusterError):
            pass  # the node is gone, or the stream was cut: the next look tells

    def _failure(self, pod: Any, condition: Any) -> RunError:
        code, reason = _exit(pod) if pod else (1, "")
        ended = f"exit code {code} ({reason})" if reason else f"exit code {code}"
        why = " ".join(filter(None, [condition.reason, condition.message]))
        hint = f"Raise the memory in k8s/base/{self.stage}.yaml." if reason == "OOMKilled" else ""
        error = RunError(f"{self.stage} has failed with {ended}: {why}", hint=hint)
        error.exit_code = code or 1
        return error


def _state(pod: Any, kind: str) -> Any:
    """The state of the pod's one container, if it is of that kind: waiting or terminated."""
    statuses = pod.status.container_statuses or []
    return getattr(statuses[0].state, kind, None) if statuses else None


def _why_pending(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes the pod: {condition.message}"
    waiting = _state(pod, "waiting")
    if waiting and waiting.reason in UNPULLED:
        image = pod.spec.containers[0].image
        return f"the image {image} cannot be pulled ({waiting.reason}: {waiting.message})"
    if waiting and waiting.message:
        return f"{waiting.reason}: {waiting.message}"
    node = f" on {pod.spec.node_name}" if pod.spec.node_name else ""
    return f"the pod is being prepared{node}"


def _exit(pod: Any) -> tuple[int, str]:
    """Exit code and reason of a pod's container; 1 where the container has none."""
    if ended := _state(pod, "terminated"):
        return int(ended.exit_code), str(ended.reason or "")
    return int(pod.status.phase != "Succeeded"), str(pod.status.reason or "")
