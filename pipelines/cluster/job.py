"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the given flags instead of the
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
from pipelines.k8s.job import Job
from pipelines.stages import config_class

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_WITHOUT_ANSWER = 300.0
SECONDS_KEPT = 24 * 3600
"""The cluster itself removes a finished Job after this time, should we have been killed."""

SETUP = "kubectl apply -k k8s/base -l app.kubernetes.io/component=setup"
HOPELESS = {"InvalidImageName", "ErrImageNeverPull"}
UNPULLED = HOPELESS | {"ErrImagePull", "ImagePullBackOff"}


class _Refused(ClusterError):
    """The cluster did not take the Job, so there is nothing to remove."""


class _NotStarted(ClusterError):
    """Waiting longer would not help."""


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

    Args: those of `raft job`, whose help explains them; `settings` are the stage's by name, and
    None keeps the flags of the manifest in the folder `jobs`.

    Raises:
        ConfigError: a setting or the manifest is wrong, or a location that a pod does not see.
        ClusterError: the cluster cannot be reached or refuses, or the pod does not start.
        RunError: the stage failed; its exit code is the container's.
    """
    arguments = None if settings is None else checked_flags(stage, settings)
    body = job_body(manifests.load_all(jobs)[stage], namespace, arguments)
    name = body["metadata"]["name"]
    removal = f"kubectl -n {namespace} delete job {name}"
    cluster = connect(context)
    try:
        _create(cluster, namespace, body)
        headline(stage, f"Job {name} in {namespace}")
        if detach:
            print(name, flush=True)
            follow = f"kubectl -n {namespace} logs --follow job/{name}"
            return say(f"  follow  {follow}\n  remove  {removal}")
        _Follower(cluster, namespace, name, stage, start_minutes * 60).follow()
    except BaseException as error:
        if not isinstance(error, _Refused):
            _remove(cluster, namespace, name, removal)
        raise
    _remove(cluster, namespace, name, removal)


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


def _create(cluster: Cluster, namespace: str, body: dict[str, Any]) -> None:
    try:
        cluster.batch.create_namespaced_job(namespace, body)
    except NotThere as error:
        raise _Refused(str(error), hint=SETUP) from error
    except ClusterError as error:
        raise _Refused(str(error), hint=error.hint) from error


def _remove(cluster: Cluster, namespace: str, name: str, removal: str) -> None:
    """Delete the Job and its pods; logs the command when the cluster does not let us."""
    try:
        cluster.batch.delete_namespaced_job(name, namespace, propagation_policy="Background")
        say(f"Job {name} is removed")
    except NotThere:
        pass
    except ClusterError as error:
        say(f"Job {name} is left behind ({error}): {removal}")


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
    shown: dict[str, str] = field(default_factory=dict)
    """Pod to the time of the last line of its log that was shown."""
    ended: set[str] = field(default_factory=set)

    def follow(self) -> None:
        """Return when the Job is complete.

        Raises:
            RunError: the Job failed.
            ClusterError: the pod does not start, or the cluster stays silent.
        """
        last_answer = time.monotonic()
        while True:
            try:
                if self._look():
                    return
                last_answer = time.monotonic()
            except (NotPermitted, NotThere, _NotStarted):
                raise
            except ClusterError:
                if time.monotonic() - last_answer > SECONDS_WITHOUT_ANSWER:
                    raise
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _look(self) -> bool:
        """One look at Job and pod; True when the Job is complete."""
        pods = self.cluster.core.list_namespaced_pod(
            self.namespace, label_selector=f"job-name={self.name}"
        ).items
        pod = max(pods, key=lambda entry: entry.metadata.creation_timestamp, default=None)
        if pod is None:
            self._wait(self._why_no_pod())
        elif pod.status.phase == "Pending":
            self._wait(*_why_pending(pod))
        elif pod.metadata.uid not in self.ended:
            self.waiting_since = time.monotonic()
            self._show_log(pod)
            if pod.status.phase != "Running":
                self.ended.add(pod.metadata.uid)
                code, reason = _exit(pod)
                if code:
                    say(f"  {self.stage} ended with exit code {code} ({reason})")
        try:
            job = self.cluster.batch.read_namespaced_job(self.name, self.namespace)
        except NotThere as error:
            raise RunError(f"Job {self.name} was removed by somebody else") from error
        conditions = {
            entry.type: entry for entry in job.status.conditions or [] if entry.status == "True"
        }
        if "Failed" in conditions:
            raise self._failure(pod, conditions["Failed"])
        return "Complete" in conditions

    def _wait(self, reason: str, hopeless: bool = False) -> None:
        """Show why the stage has not started, once for each reason."""
        self._show(f"waiting: {reason}")
        waited = time.monotonic() - self.waiting_since
        if hopeless or waited > self.start_seconds:
            how_long = "" if hopeless else f" in {waited / 60:.0f} min"
            raise _NotStarted(
                f"{self.stage} has not started{how_long}: {reason}",
                hint="raft preflight looks for what is missing.",
            )

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

        seen = self.shown.get(pod.metadata.uid, "")
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
                    self.shown[pod.metadata.uid] = stamp
                    sys.stdout.write(text.removesuffix("\n") + "\n")
                    sys.stdout.flush()
        except NotPermitted as error:
            self._show(f"no log: {error}")
        except (HTTPError, ClusterError):
            pass  # the node is gone, or the stream was cut: the next look tells

    def _failure(self, pod: Any, condition: Any) -> RunError:
        code, reason = (1, "") if pod is None else _exit(pod)
        why = " ".join(filter(None, [condition.reason, condition.message]))
        error = RunError(
            f"{self.stage} has failed with exit code {code}"
            + (f" ({reason})" if reason else "")
            + (f": {why}" if why else ""),
            hint=f"Raise the memory in k8s/base/{self.stage}.yaml."
            if reason == "OOMKilled"
            else "",
        )
        error.exit_code = code or 1
        return error


def _state(pod: Any, kind: str) -> Any:
    """The state of the pod's container, if it is of that kind: waiting or terminated."""
    for status in pod.status.container_statuses or []:
        return getattr(status.state, kind, None)
    return None


def _why_pending(pod: Any) -> tuple[str, bool]:
    """What the pod waits for, and whether that is hopeless."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes the pod: {condition.message}", False
    waiting = _state(pod, "waiting")
    if waiting and waiting.reason in UNPULLED:
        image = pod.spec.containers[0].image
        why = f"the image {image} cannot be pulled ({waiting.reason}: {waiting.message})"
        return why, waiting.reason in HOPELESS
    if waiting and waiting.message:
        return f"{waiting.reason}: {waiting.message}", False
    node = f" on {pod.spec.node_name}" if pod.spec.node_name else ""
    return f"the pod is being prepared{node}", False


def _exit(pod: Any) -> tuple[int, str]:
    """Exit code and reason of a pod's container; 1 where the container has none."""
    if ended := _state(pod, "terminated"):
        return int(ended.exit_code), str(ended.reason or "")
    return int(pod.status.phase != "Succeeded"), str(pod.status.reason or "")
