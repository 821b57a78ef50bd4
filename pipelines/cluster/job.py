"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the user's flags instead of the
manifest's. Flags are checked by the stage's config class first, so a typo does not wait for a GPU.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.config import flag
from components.core.errors import ClusterError, ConfigError, NotPermitted, RunError
from components.core.progress import headline, say
from pipelines import manifests
from pipelines.cluster.connection import Cluster, NotThere, connect, poll
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
        poll(follower.look, SECONDS_BETWEEN_LOOKS)
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
        say(f"Job {name} is left behind ({error}): kubectl -n {namespace} delete job {name}")


@dataclass
class _Follower:
    """Stays with a Job through its pods: there is a new one after each failure."""

    cluster: Cluster
    namespace: str
    name: str
    stage: str
    start_seconds: float
    shown: str = ""
    """Why the stage waits, or has no log, as it was last shown."""
    waiting_since: float = field(default_factory=time.monotonic)
    last_line: str = ""
    """The time of the last line of a log that was shown."""
    ended: str = ""
    """The last pod that has ended."""

    def look(self) -> bool:
        """Look at the Job and its last pod; True when the Job is complete.

        Raises:
            RunError: the Job failed, or its pod does not start.
        """
        selector = f"job-name={self.name}"
        pods = self.cluster.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        pod = max(pods, key=lambda entry: entry.metadata.creation_timestamp, default=None)
        code, ending = _exit(pod)
        if pod is None or pod.status.phase == "Pending":
            self._wait(self._why_no_pod() if pod is None else _why_pending(pod))
        elif pod.metadata.name != self.ended:
            self.waiting_since = time.monotonic()
            self._copy_log(pod.metadata.name)
            if pod.status.phase != "Running":
                self.ended = pod.metadata.name
                say(f"  {self.stage} ended with {ending}")
        try:
            status = self.cluster.batch.read_namespaced_job(self.name, self.namespace).status
        except NotThere as error:
            raise RunError(f"Job {self.name} was removed by somebody else") from error
        true = {entry.type: entry for entry in status.conditions or [] if entry.status == "True"}
        if condition := true.get("Failed"):
            why = " ".join(filter(None, [condition.reason, condition.message]))
            hint = f"Raise the memory in k8s/base/{self.stage}.yaml." if "OOM" in ending else ""
            raise _failure(f"{self.stage} has failed with {ending}: {why}", hint, code or 1)
        return "Complete" in true

    def _wait(self, reason: str) -> None:
        """Show why the stage has not started, once, and give up when that has lasted too long."""
        self._show(f"waiting: {reason}")
        waited = time.monotonic() - self.waiting_since
        if waited > self.start_seconds or reason.startswith("InvalidImageName"):
            problem = f"{self.stage} has not started in {waited / 60:.0f} min: {reason}"
            hint = "raft preflight looks for what is missing."
            raise _failure(problem, hint, ClusterError.exit_code)

    def _show(self, line: str) -> None:
        if line != self.shown:
            self.shown = line
            say(f"  {line}")

    def _why_no_pod(self) -> str:
        """What keeps the Job from making a pod: a quota, a policy, a missing service account."""
        reasons = ["the Job has no pod yet"]
        with suppress(ClusterError):
            selector = f"involvedObject.name={self.name},type=Warning"
            list_events = self.cluster.core.list_namespaced_event
            events = list_events(self.namespace, field_selector=selector).items
            reasons += [f"the Job can make no pod: {event.message}" for event in events]
        return reasons[-1]

    def _copy_log(self, pod: str) -> None:
        """Print the log from where it was left, until the stream ends."""
        from urllib3.exceptions import HTTPError

        seen = self.last_line
        options = {"follow": True, "timestamps": True, "_preload_content": False}
        try:
            for line in self.cluster.core.read_namespaced_pod_log(
                pod, self.namespace, container=self.stage, _request_timeout=(30, None), **options
            ):
                stamp, _, text = line.decode("utf-8", errors="replace").partition(" ")
                # RFC 3339, whose fractions of a second vary in length.
                second, _, fraction = stamp.removesuffix("Z").partition(".")
                stamp = f"{second}.{fraction:0<9}"
                if stamp > seen:
                    self.last_line = stamp
                    print(text.removesuffix("\n"), flush=True)
        except NotPermitted as error:
            self._show(f"no log: {error}")
        except (HTTPError, ClusterError):
            pass  # the node is gone, or the stream was cut: the next look tells


def _failure(problem: str, hint: str, exit_code: int) -> RunError:
    error = RunError(problem, hint=hint)
    error.exit_code = exit_code
    return error


def _why_pending(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes the pod: {condition.message}"
    for status in pod.status.container_statuses or []:
        if status.state.waiting and status.state.waiting.message:
            return f"{status.state.waiting.reason}: {status.state.waiting.message}"
    return "the pod is being prepared"


def _exit(pod: Any) -> tuple[int, str]:
    """Exit code of a pod's container, 1 where it has none, and the words for it and its reason."""
    statuses = (pod and pod.status.container_statuses) or []
    ended = next((status.state.terminated for status in statuses), None)
    code = int(ended.exit_code) if ended else int(pod is None or pod.status.phase != "Succeeded")
    reason = (ended or pod.status).reason if pod else ""
    return code, f"exit code {code} ({reason})" if reason else f"exit code {code}"
