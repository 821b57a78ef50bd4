"""Runs one stage as a Kubernetes Job and stays with it: log, exit code, clean-up.

The Job is the stage's manifest with a name of its own and the given flags instead of the
manifest's. Flags are checked by the stage's config class first, so a typo does not wait for a GPU.
"""

import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.core.config import INPUT, OUTPUT, flag
from components.core.errors import ClusterError, ConfigError, NotPermitted, RunError
from components.core.progress import headline, say
from components.core.storage import SCHEME
from pipelines import manifests
from pipelines.cluster.connection import Cluster, NotThere, connect
from pipelines.stages import config_class

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_WITHOUT_ANSWER = 300.0
SECONDS_KEPT = 24 * 3600
"""The cluster itself removes a finished Job after this time, should we have been killed."""

HOPELESS = {"InvalidImageName", "ErrImageNeverPull"}
UNPULLED = HOPELESS | {"ErrImagePull", "ImagePullBackOff"}


def run(
    stage: str,
    given: Mapping[str, object] | None = None,
    *,
    namespace: str = "raft",
    context: str = "",
    jobs: Path = manifests.BASE,
    detach: bool = False,
    start_minutes: float = 30,
) -> None:
    """Run a stage in the cluster; its log goes to standard output.

    Args:
        stage: the stage's stem, such as "quantize-check".
        given: the stage's settings by name; None keeps the flags of the manifest.
        namespace: where the Job runs.
        context: context of the kubeconfig; "" takes the current one.
        jobs: folder of the Job manifests.
        detach: leave the Job alone once it is created, and print its name.
        start_minutes: give up when the pod has not started by then.

    Raises:
        ConfigError: a setting or the manifest is wrong, or a location that a pod does not see.
        ClusterError: the cluster cannot be reached or refuses, or the pod does not start.
        RunError: the stage failed; its exit code is the container's.
    """
    arguments = None if given is None else checked(stage, given)
    body = manifest(stage, arguments, namespace, jobs)
    name = body["metadata"]["name"]
    cluster = connect(context)
    try:
        _create(cluster, namespace, body)
        headline(stage, f"Job {name} in {namespace}")
        if not detach:
            _Follower(cluster, namespace, name, stage, start_minutes * 60).follow()
    except _Refused:
        raise
    except BaseException:
        _remove(cluster, namespace, name)
        raise
    if not detach:
        _remove(cluster, namespace, name)
        return
    print(name, flush=True)
    say(
        f"  follow  kubectl -n {namespace} logs --follow job/{name}\n"
        f"  remove  {_removal(namespace, name)}"
    )


class _Refused(ClusterError):
    """The cluster did not take the Job, so there is nothing to remove."""


def _create(cluster: Cluster, namespace: str, body: dict[str, Any]) -> None:
    try:
        cluster.ask(cluster.batch.create_namespaced_job, namespace, body)
    except NotThere as error:
        raise _Refused(
            str(error), hint="kubectl apply -k k8s/base -l app.kubernetes.io/component=setup"
        ) from None
    except ClusterError as error:
        raise _Refused(str(error), hint=error.hint) from None


def checked(stage: str, given: Mapping[str, object]) -> list[str]:
    """The stage's settings as flags, one word each.

    Raises:
        ConfigError: a setting is missing or out of range, or a location that a pod does not see.
    """
    check_locations(config_class(stage).parse(given))
    return [f"{flag(name)}={value}" for name, value in given.items()]


def check_locations(config: BaseModel) -> None:
    """Refuse locations on this machine: a pod does not see them, and its own disk goes with it.

    Raises:
        ConfigError: names the flag.
    """
    for name, entry in type(config).model_fields.items():
        value = str(getattr(config, name))
        if not value or value.startswith(SCHEME) or "$(" in value:  # $(VARIABLE) of the manifest
            continue
        if name == "base_model" and not value.startswith(("/", ".", "~")):
            if not Path(value).exists():
                continue  # a hub id
        elif not {INPUT, OUTPUT} & {mark for mark in entry.metadata if isinstance(mark, str)}:
            continue
        raise ConfigError(
            f"{flag(name)} {value!r} is a path on this machine, which the pod does not see "
            "(allowed: gs://BUCKET/PREFIX)",
            hint=f"gcloud storage cp --recursive {value} gs://BUCKET/ brings a folder there.",
        )


def manifest(stage: str, arguments: list[str] | None, namespace: str, jobs: Path) -> dict[str, Any]:
    """The Job to create: the stage's manifest, renamed, with other flags.

    Raises:
        ConfigError: the manifest is missing or not understood.
    """
    job = manifests.load_all(jobs)[stage]
    body: dict[str, Any] = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body["metadata"] |= {"name": f"raft-{stage}-{secrets.token_hex(3)}", "namespace": namespace}
    body["spec"]["ttlSecondsAfterFinished"] = SECONDS_KEPT
    if arguments is not None:
        body["spec"]["template"]["spec"]["containers"][0]["args"] = arguments
    return body


def _removal(namespace: str, name: str) -> str:
    return f"kubectl -n {namespace} delete job {name}"


def _remove(cluster: Cluster, namespace: str, name: str) -> None:
    """Delete the Job and its pods; says so, and how, when the cluster does not let us."""
    try:
        cluster.ask(
            cluster.batch.delete_namespaced_job, name, namespace, propagation_policy="Background"
        )
        say(f"Job {name} is removed")
    except NotThere:
        pass
    except ClusterError as error:
        say(f"Job {name} is left behind ({error}): {_removal(namespace, name)}")


@dataclass
class _Follower:
    """Stays with a Job through its pods: there is a new one after each failure."""

    cluster: Cluster
    namespace: str
    name: str
    stage: str
    start_seconds: float
    said: str = ""
    waiting_since: float = field(default_factory=time.monotonic)
    read: dict[str, "_Moment"] = field(default_factory=dict)
    """Pod to the moment of the last line of its log that was shown."""
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
        core, batch = self.cluster.core, self.cluster.batch
        pods = self.cluster.ask(
            core.list_namespaced_pod, self.namespace, label_selector=f"job-name={self.name}"
        ).items
        pod = max(pods, key=lambda entry: entry.metadata.creation_timestamp, default=None)
        if pod is None:
            self._wait(self._why_no_pod())
        elif pod.status.phase == "Pending":
            self._wait(_why_pending(pod), hopeless=_waiting(pod)[0] in HOPELESS)
        elif pod.metadata.uid not in self.ended:
            self.waiting_since = time.monotonic()
            self._show_log(pod)
            if pod.status.phase != "Running":
                self.ended.add(pod.metadata.uid)
                code, reason = _end(pod)
                if code:
                    say(f"  {self.stage} ended with exit code {code} ({reason})")
        try:
            job = self.cluster.ask(batch.read_namespaced_job, self.name, self.namespace)
        except NotThere:
            raise RunError(f"Job {self.name} was removed by somebody else") from None
        state = {entry.type: entry for entry in job.status.conditions or []}
        if "Complete" in state and state["Complete"].status == "True":
            return True
        if "Failed" in state and state["Failed"].status == "True":
            raise self._failure(pod, state["Failed"])
        return False

    def _wait(self, why: str, *, hopeless: bool = False) -> None:
        """Say why the stage has not started, once for each reason."""
        if why and why != self.said:
            self.said = why
            say(f"  waiting: {why}")
        waited = time.monotonic() - self.waiting_since
        if hopeless or waited > self.start_seconds:
            raise _NotStarted(
                f"{self.stage} has not started{'' if hopeless else f' in {waited / 60:.0f} min'}: "
                f"{why or 'no reason is known'}",
                hint="raft preflight looks for what is missing.",
            )

    def _why_no_pod(self) -> str:
        """What keeps the Job from making a pod: a quota, a policy, a missing service account."""
        try:
            events = self.cluster.ask(
                self.cluster.core.list_namespaced_event,
                self.namespace,
                field_selector=f"involvedObject.name={self.name}",
            ).items
        except ClusterError:
            events = []
        told = [event.message for event in events if event.type == "Warning"]
        return f"the Job can make no pod: {told[-1]}" if told else "the Job has no pod yet"

    def _show_log(self, pod: Any) -> None:
        """Copy the log to standard output from where it was left, until the stream ends."""
        from urllib3.exceptions import HTTPError

        read = self.read.get(pod.metadata.uid)
        options: dict[str, Any] = {}
        if read is not None:
            age = datetime.now(UTC).timestamp() - read.seconds
            options["since_seconds"] = max(1, int(age) + 10)
        try:
            stream = self.cluster.ask(
                self.cluster.core.read_namespaced_pod_log,
                pod.metadata.name,
                self.namespace,
                container=self.stage,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(30, None),
                **options,
            )
            for line in _lines(stream):
                stamp, _, text = line.partition(" ")
                moment = _Moment.parse(stamp)
                if read is not None and moment <= read:
                    continue
                read = self.read[pod.metadata.uid] = moment
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
        except NotPermitted as error:
            if self.said != str(error):
                self.said = str(error)
                say(f"  no log: {error}")
        except (HTTPError, ClusterError):
            pass  # the node is gone, or the stream was cut: the next look tells

    def _failure(self, pod: Any, condition: Any) -> RunError:
        code, reason = (1, "") if pod is None else _end(pod)
        told = " ".join(filter(None, [condition.reason, condition.message]))
        error = RunError(
            f"{self.stage} has failed with exit code {code}"
            + (f" ({reason})" if reason else "")
            + (f": {told}" if told else ""),
            hint=f"Raise the memory in k8s/base/{self.stage}.yaml."
            if reason == "OOMKilled"
            else "",
        )
        error.exit_code = code or 1
        return error


class _NotStarted(ClusterError):
    """Waiting longer would not help."""


@dataclass(frozen=True, order=True)
class _Moment:
    """A log line's time: RFC 3339, whose fractions of a second vary in length."""

    seconds: float
    fraction: str

    @classmethod
    def parse(cls, text: str) -> "_Moment":
        whole, _, fraction = text.removesuffix("Z").partition(".")
        try:
            seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
        except ValueError:
            seconds = 0.0
        return cls(seconds, fraction.ljust(9, "0"))


def _lines(stream: Any) -> Iterator[str]:
    """Lines of a log as they arrive, whatever pieces the network makes of them."""
    rest = b""
    for piece in stream.stream(amt=None):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


def _waiting(pod: Any) -> tuple[str, str]:
    """Reason and message of the container that waits; two empty texts if none does."""
    for status in pod.status.container_statuses or []:
        if status.state and status.state.waiting:
            return status.state.waiting.reason or "", status.state.waiting.message or ""
    return "", ""


def _why_pending(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"no node takes the pod: {condition.message}"
    reason, message = _waiting(pod)
    if reason in UNPULLED:
        image = pod.spec.containers[0].image
        return f"the image {image} cannot be pulled ({reason}: {message})"
    if message:
        return f"{reason}: {message}"
    node = f" on {pod.spec.node_name}" if pod.spec.node_name else ""
    return f"the pod is being prepared{node}"


def _end(pod: Any) -> tuple[int, str]:
    """Exit code and reason of a pod's container; 1 where the container has none."""
    for status in pod.status.container_statuses or []:
        if status.state and status.state.terminated:
            ended = status.state.terminated
            return int(ended.exit_code), str(ended.reason or "")
    return int(pod.status.phase != "Succeeded"), str(pod.status.reason or "")
