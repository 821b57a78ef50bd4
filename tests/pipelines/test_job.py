"""`raft job` with the real Kubernetes client against a small API server that plays a Job's life."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import manifests
from pipelines.cli import main
from pipelines.cluster import job
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY
from tests.pipelines.kubernetes_server import (
    COMPLETE,
    Frame,
    KubernetesServer,
    failed,
    kubeconfig,
    pod,
    serving,
    status,
)

FLAGS = ["--dataset", "gs://b/dataset", "--base-model", "org/model", "--output", "gs://b/adapter"]
LOG = [
    "2026-01-02T03:04:05.1Z first line",
    "2026-01-02T03:04:05.12Z second line",
    "2026-01-02T03:04:06Z third, with spaces – and more",
]
FORBIDDEN = 'jobs.batch is forbidden: User "ada@example.com" cannot delete resource "jobs"'
RUNNING = Frame([pod("Running")])
SUCCEEDED = Frame([pod("Succeeded", exit_code=0, reason="Completed")], COMPLETE)

Leave = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    monkeypatch.setattr(job, "SECONDS_BETWEEN_LOOKS", 0.01)
    with serving(KubernetesServer(logs={"pod-1": LOG})) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(server.url, tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str]) -> Leave:
    """Exit code, standard output and standard error of `raft job train`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from components.core.progress import console

        console.cache_clear()  # it keeps the standard error of an earlier test
        with pytest.raises(SystemExit) as left:
            main(["job", "train", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "kube-t0ken" not in out + err
        return int(left.value.code or 0), out, err

    return run


def test_from_creation_to_success(cluster: KubernetesServer, leave: Leave) -> None:
    created: list[dict[str, Any]] = []
    cluster.play = [
        Frame(),
        Frame([pod("Pending", unschedulable="0/2 nodes are available: 2 Insufficient gpu.")]),
        Frame([pod("Pending", unschedulable="0/2 nodes are available: 2 Insufficient gpu.")]),
        Frame([pod("Pending", waiting=("ContainerCreating", ""))]),
        Frame([pod("Pending", waiting=("ImagePullBackOff", "Back-off pulling image"))]),
        RUNNING,
        SUCCEEDED,
    ]
    original = cluster._change_job

    def change(*arguments: Any) -> dict[str, Any]:
        answer = original(*arguments)
        created.append(answer)
        return answer

    cluster._change_job = change  # type: ignore[method-assign]
    code, out, err = leave("--", *FLAGS, "--rank=16", "--target-modules", "q_proj,v_proj")
    assert code == 0, err
    assert out.splitlines() == [line.partition(" ")[2] for line in LOG]
    messages = [line.strip() for line in err.splitlines()]
    assert messages[1:] == [
        "waiting: the Job has no pod yet",
        "waiting: no node takes the pod: 0/2 nodes are available: 2 Insufficient gpu.",
        "waiting: the pod is being prepared",
        "waiting: ImagePullBackOff: Back-off pulling image",
        "pod-1: exit code 0 (Completed)",
        f"Job {cluster.deleted[0]} is removed",
    ]
    sent = created[0]
    assert sent["metadata"]["name"].startswith("raft-train-")
    assert sent["metadata"]["name"] == cluster.deleted[0]
    (container,) = sent["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "--output=gs://b/adapter", "--dataset=gs://b/dataset", "--base-model=org/model",
        "--rank=16", "--target-modules=q_proj,v_proj",
    ]  # fmt: skip
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1, "the manifest's hardware"
    assert not cluster.jobs


@pytest.mark.parametrize("overlay", ["l4", str(manifests.OVERLAYS / "l4")])
def test_an_overlay_gives_the_hardware(
    overlay: str, cluster: KubernetesServer, leave: Leave
) -> None:
    code, _, err = leave("--overlay", overlay, "--detach", "--", *FLAGS)
    assert code == 0, err
    (created,) = cluster.jobs.values()
    pod = created["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "36Gi"


def test_an_unknown_overlay(leave: Leave) -> None:
    code, _, err = leave("--overlay", "h300", "--", *FLAGS)
    assert code == 2
    assert "--overlay 'h300': no such overlay (allowed: a100-80gb, " in err


@pytest.mark.parametrize(
    ("exit_code", "reason", "hint"),
    [(2, "Error", ""), (137, "OOMKilled", "Raise the memory in k8s/base/train.yaml")],
)
def test_the_containers_exit_code_comes_back(
    cluster: KubernetesServer, leave: Leave, exit_code: int, reason: str, hint: str
) -> None:
    end = pod("Failed", exit_code=exit_code, reason=reason)
    cluster.play = [RUNNING, Frame([end], failed("PodFailurePolicy", "exit code 2 matches"))]
    code, out, err = leave("--", *FLAGS)
    assert code == exit_code
    assert out.count("\n") == 3
    assert f"train has failed with exit code {exit_code} ({reason}): PodFailurePolicy" in err
    assert hint in err
    assert cluster.deleted


def test_a_job_that_tries_again_is_followed_into_its_next_pod(
    cluster: KubernetesServer, leave: Leave
) -> None:
    cluster.logs["pod-2"] = ["2026-01-02T03:05:00Z second try"]
    first = pod("Failed", exit_code=1)
    cluster.play = [
        RUNNING,
        Frame([first]),
        Frame([first, pod("Running", uid="2")]),
        Frame([first, pod("Succeeded", uid="2", exit_code=0)], COMPLETE),
    ]
    code, out, err = leave("--", *FLAGS)
    assert code == 0
    assert out.splitlines()[-1] == "second try"
    assert out.count("first line") == 1
    assert "pod-1: exit code 1 (Error)" in err


def test_a_log_that_is_cut_goes_on_without_repeating_itself(
    cluster: KubernetesServer, leave: Leave
) -> None:
    cluster.cut_log_after = 2
    cluster.broken = 2
    cluster.play = [RUNNING, RUNNING, SUCCEEDED]
    code, out, _ = leave("--", *FLAGS)
    assert code == 0
    assert out.splitlines() == [line.partition(" ")[2] for line in LOG]


def test_times_in_a_log_compare_whatever_their_digits(
    cluster: KubernetesServer, leave: Leave
) -> None:
    cluster.logs["pod-1"] = [
        "2026-01-02T03:04:05.1Z first",
        "2026-01-02T03:04:05.100000000Z the same time, from before the cut",
        "2026-01-02T03:04:05.12Z second",
        "2026-01-02T03:04:05.9Z third",
        "2026-01-02T03:04:06Z fourth",
    ]
    cluster.cut_log_after = 2
    cluster.play = [RUNNING, RUNNING, SUCCEEDED]
    code, out, _ = leave("--", *FLAGS)
    assert code == 0
    assert out.splitlines() == [
        "first", "the same time, from before the cut", "second", "third", "fourth",
    ]  # fmt: skip


def test_a_pod_that_does_not_start_is_given_up(cluster: KubernetesServer, leave: Leave) -> None:
    cluster.play = [Frame([pod("Pending", unschedulable="no node has a GPU")])]
    code, _, err = leave("--start-minutes", "0.001", "--", *FLAGS)
    assert code == 2
    assert "train has not started in 0 min: no node takes the pod: no node has a GPU" in err
    assert "raft preflight" in err
    assert cluster.deleted


def test_an_image_name_that_cannot_be_right_is_not_waited_for(
    cluster: KubernetesServer, leave: Leave
) -> None:
    cluster.play = [Frame([pod("Pending", waiting=("InvalidImageName", "couldn't parse"))])]
    code, _, err = leave("--", *FLAGS)
    assert code == 2
    assert "train has not started in 0 min: InvalidImageName: couldn't parse" in err


def test_why_a_job_makes_no_pod(cluster: KubernetesServer, leave: Leave) -> None:
    cluster.answers["/api/v1/namespaces/raft/events"] = {
        "kind": "EventList",
        "apiVersion": "v1",
        "items": [
            {"metadata": {"name": "e"}, "involvedObject": {}, "type": "Warning",
             "reason": "FailedCreate", "message": "exceeded quota: team"},
        ],
    }  # fmt: skip
    cluster.play = [Frame()]
    code, _, err = leave("--start-minutes", "0.001", "--", *FLAGS)
    assert code == 2
    assert "the Job can make no pod: exceeded quota: team" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_removes_the_job(cluster: KubernetesServer, number: signal.Signals) -> None:
    cluster.play = [RUNNING]
    cluster.endless_log = True
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "job", "train", "--", *FLAGS],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "third" in line:
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert len(cluster.deleted) == 1
    assert f"Job {cluster.deleted[0]} is removed" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("stage", STAGES)
def test_the_job_is_the_manifest_but_for_name_flags_and_end(stage: str) -> None:
    written = yaml.safe_load((manifests.BASE / f"{stage}.yaml").read_text())
    made = job.job_body(manifests.load_all()[stage], "team", ["--rank=8"])
    assert made["metadata"].pop("name") != written["metadata"].pop("name")
    assert made["metadata"].pop("namespace") == "team"
    assert made["spec"].pop("ttlSecondsAfterFinished") == job.SECONDS_KEPT
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container.pop("args") == ["--rank=8"]
    del written["metadata"]["namespace"]
    del written["spec"]["template"]["spec"]["containers"][0]["args"]
    assert made == written


def test_detached(cluster: KubernetesServer, leave: Leave) -> None:
    code, out, err = leave("--detach", "--", *FLAGS)
    assert code == 0
    assert list(cluster.jobs) == [out.strip()]
    assert not cluster.deleted
    assert f"kubectl -n raft logs --follow job/{out.strip()}" in err


def test_without_flags_the_manifests_own_are_kept(cluster: KubernetesServer, leave: Leave) -> None:
    code, out, _ = leave("--detach", "--namespace", "team")
    assert code == 0
    sent = cluster.jobs[out.strip()]
    assert sent["metadata"]["namespace"] == "team"
    (container,) = sent["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "--dataset=$(RAFT_RUN)/dataset"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--rank", "0"], "--rank '0'"),
        (["--rnk", "8"], "No such option '--rnk'"),
        (["--output", "adapter"], "--output 'adapter' is a path on this machine"),
        (["--dataset", "/data"], "--dataset '/data' is a path on this machine"),
        (["--base-model", "./llama"], "--base-model './llama' is a path on this machine"),
    ],
)
def test_flags_are_checked_before_the_cluster_is_asked(
    cluster: KubernetesServer, leave: Leave, flags: list[str], complaint: str
) -> None:
    code, _, err = leave("--", *_instead(*flags))
    assert code == 2
    assert complaint in err
    assert not cluster.requests


def _instead(name: str, value: str) -> list[str]:
    """The flags with another value for one of them."""
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | {name: value}
    return [word for pair in flags.items() for word in pair]


def test_variables_of_the_manifest_may_be_used(cluster: KubernetesServer, leave: Leave) -> None:
    code, _, err = leave("--detach", *_instead("--output", "$(RAFT_RUN)/adapter"))
    assert code == 0, err


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (status(404, "NotFound", 'namespaces "raft" not found'), "kubectl apply -k k8s/base"),
        (status(403, "Forbidden", FORBIDDEN), "kubectl auth whoami shows the account"),
        (status(403, "Forbidden", "exceeded quota: team"), "the cluster refuses: exceeded quota"),
        (status(422, "Invalid", "spec.template: bad"), "the cluster refuses: spec.template: bad"),
    ],
)
def test_a_cluster_that_refuses_the_job(
    cluster: KubernetesServer, leave: Leave, answer: dict, complaint: str
) -> None:
    cluster.answers["POST jobs"] = answer
    code, _, err = leave("--", *FLAGS)
    assert code == 2
    assert complaint in err
    assert not cluster.deleted


def test_a_job_that_cannot_be_removed_is_named(cluster: KubernetesServer, leave: Leave) -> None:
    cluster.play = [RUNNING, SUCCEEDED]
    cluster.answers["DELETE jobs"] = status(403, "Forbidden", FORBIDDEN)
    code, _, err = leave("--", *FLAGS)
    (name,) = cluster.jobs
    assert code == 0
    assert f"Job {name} was not removed ({FORBIDDEN}): kubectl -n raft delete job" in err


def test_a_job_that_somebody_removes(cluster: KubernetesServer, leave: Leave) -> None:
    cluster.play = [RUNNING]
    original = cluster.answer

    def forgetful(method: str, path: str, body: bytes) -> dict[str, Any]:
        answer = original(method, path, body)
        if path.endswith("/pods"):
            cluster.jobs.clear()
        return answer

    cluster.answer = forgetful  # type: ignore[method-assign]
    code, _, err = leave("--", *FLAGS)
    assert code == 2
    assert '" not found' in err
