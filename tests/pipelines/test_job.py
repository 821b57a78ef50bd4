"""`raft job` with the real Kubernetes client against a small API server that plays a Job's life."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import manifests
from pipelines.cluster import connection, job
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import Leave
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
LOG = ["first line", "second line", "third, with spaces – and more"]
FORBIDDEN = 'jobs.batch is forbidden: User "ada@example.com" cannot delete resource "jobs"'
RUNNING = Frame([pod("Running")])
SUCCEEDED = Frame([pod("Succeeded", ended=(0, "Completed"))], COMPLETE)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    monkeypatch.setattr(job, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setitem(connection.RETRIES, "backoff_factor", 0.01)
    with serving(KubernetesServer(logs={"pod-1": LOG})) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(server.url, tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
def trained(leave: Leave) -> Leave:
    """The same of `raft job train`."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code, out, err = leave("job", "train", *arguments)
        assert "kube-t0ken" not in out + err
        return code, out, err

    return run


def created(
    cluster: KubernetesServer, trained: Leave, *words: str
) -> tuple[tuple[int, str, str], dict[str, Any]]:
    """How a command that succeeds ends, and the Job that it has created."""
    cluster.play = cluster.play or [RUNNING, SUCCEEDED]
    ended = trained(*words)
    assert ended[0] == 0, ended[2]
    (sent,) = cluster.created
    return ended, sent


def test_from_creation_to_success(cluster: KubernetesServer, trained: Leave) -> None:
    unschedulable = {"FailedScheduling": "0/2 nodes are available: 2 Insufficient gpu."}
    no_image = {"Failed": "Failed to pull image: not found"}
    cluster.play = [
        Frame(warnings={"FailedCreate": "exceeded quota: team"}),
        Frame([pod("Pending")], warnings=unschedulable),
        Frame([pod("Pending")], warnings=unschedulable),
        Frame([pod("Pending")], warnings=unschedulable | no_image),
        RUNNING,
        SUCCEEDED,
    ]
    flags = (*FLAGS, "--rank=16", "--target-modules", "q_proj,v_proj")
    (_, out, err), sent = created(cluster, trained, "--", *flags)
    assert out.splitlines() == LOG
    messages = [line.strip() for line in err.splitlines()]
    assert messages[1:] == [
        "FailedCreate: exceeded quota: team",
        "FailedScheduling: 0/2 nodes are available: 2 Insufficient gpu.",
        "Failed: Failed to pull image: not found",
        "pod-1: exit code 0 (Completed)",
        f"Job {cluster.deleted[0]} is removed",
    ]
    assert sent["metadata"]["name"].startswith("raft-train-")
    assert sent["metadata"]["name"] == cluster.deleted[0]
    (container,) = sent["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "--output=gs://b/adapter", "--base-model=org/model", "--dataset=gs://b/dataset",
        "--rank=16", "--target-modules=q_proj,v_proj",
    ]  # fmt: skip
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1, "the manifest's hardware"
    assert not cluster.jobs


@pytest.mark.parametrize("overlay", ["l4", str(manifests.OVERLAYS / "l4")])
def test_an_overlay_gives_the_hardware(
    overlay: str, cluster: KubernetesServer, trained: Leave
) -> None:
    _, sent = created(cluster, trained, "--overlay", overlay, "--", *FLAGS)
    spec = sent["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert spec["containers"][0]["resources"]["limits"]["memory"] == "36Gi"


def test_an_unknown_overlay(trained: Leave) -> None:
    code, _, err = trained("--overlay", "h300", "--", *FLAGS)
    assert code == 2
    assert "--overlay 'h300': no such overlay (allowed: a100-80gb, " in err


@pytest.mark.parametrize(("exit_code", "reason"), [(2, "Error"), (137, "OOMKilled")])
def test_the_containers_exit_code_comes_back(
    cluster: KubernetesServer, trained: Leave, exit_code: int, reason: str
) -> None:
    end = pod("Failed", ended=(exit_code, reason))
    cluster.play = [RUNNING, Frame([end], failed("PodFailurePolicy", "exit code 2 matches"))]
    code, out, err = trained("--", *FLAGS)
    assert code == exit_code
    assert out.count("\n") == 3
    assert "train has failed: PodFailurePolicy exit code 2 matches" in err
    assert f"(pod-1: exit code {exit_code} ({reason}))" in err
    assert cluster.deleted


def test_a_job_that_fails_without_a_pod(cluster: KubernetesServer, trained: Leave) -> None:
    cluster.play = [Frame(conditions=failed("DeadlineExceeded", "active longer than specified"))]
    code, _, err = trained("--", *FLAGS)
    assert code == 1
    assert "train has failed: DeadlineExceeded active longer than specified (no pod)" in err


def test_a_job_that_tries_again_is_followed_into_its_next_pod(
    cluster: KubernetesServer, trained: Leave
) -> None:
    cluster.logs["pod-2"] = ["second try"]
    first = pod("Failed", ended=(1, "Error"))
    cluster.play = [
        RUNNING,
        Frame([first]),
        Frame([first, pod("Running", uid="2")]),
        Frame([first, pod("Succeeded", uid="2", ended=(0, "Completed"))], COMPLETE),
    ]
    code, out, err = trained("--", *FLAGS)
    assert code == 0
    assert out.splitlines()[-1] == "second try"
    assert out.count("first line") == 1
    assert "pod-1: exit code 1 (Error)" in err


def test_a_log_that_is_cut_goes_on_without_repeating_itself(
    cluster: KubernetesServer, trained: Leave
) -> None:
    cluster.cut_log_after = 2
    cluster.broken = 2
    cluster.play = [RUNNING, RUNNING, SUCCEEDED]
    code, out, _ = trained("--", *FLAGS)
    assert code == 0
    assert out.splitlines() == LOG


@pytest.mark.parametrize(
    ("path", "log", "said"), [("events", LOG, 0), ("pods/pod-1/log", [], 1)], ids=["events", "log"]
)
def test_what_an_account_may_not_see(
    cluster: KubernetesServer, trained: Leave, path: str, log: list[str], said: int
) -> None:
    cluster.answers[f"/api/v1/namespaces/raft/{path}"] = status(403, "Forbidden", FORBIDDEN)
    cluster.play = [Frame(), RUNNING, RUNNING, SUCCEEDED]
    code, out, err = trained("--", *FLAGS)
    assert code == 0, err
    assert out.splitlines() == log
    assert err.count(f"answers 403: {FORBIDDEN}") == err.count("no log: ") == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_removes_the_job(cluster: KubernetesServer, number: signal.Signals) -> None:
    cluster.play = [RUNNING]
    cluster.endless_log = True
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "job", "train", "--", *FLAGS],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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


def test_without_flags_the_manifests_own_are_kept(
    cluster: KubernetesServer, trained: Leave
) -> None:
    _, sent = created(cluster, trained, "--namespace", "team")
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
    cluster: KubernetesServer, trained: Leave, flags: list[str], complaint: str
) -> None:
    code, _, err = trained("--", *_instead(*flags))
    assert code == 2
    assert complaint in err
    assert not cluster.requests


def _instead(name: str, value: str) -> list[str]:
    """The flags with another value for one of them."""
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | {name: value}
    return [word for pair in flags.items() for word in pair]


def test_variables_of_the_manifest_may_be_used(cluster: KubernetesServer, trained: Leave) -> None:
    _, sent = created(cluster, trained, "--", *_instead("--output", "$(RAFT_RUN)/adapter"))
    (container,) = sent["spec"]["template"]["spec"]["containers"]
    assert "--output=$(RAFT_RUN)/adapter" in container["args"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (status(404, "NotFound", 'namespaces "raft" not found'), "kubectl apply -k k8s/base "),
        (status(403, "Forbidden", FORBIDDEN), "answers 403: jobs.batch is forbidden: User"),
        (status(403, "Forbidden", "exceeded quota: team"), "answers 403: exceeded quota"),
        (status(422, "Invalid", "spec.template: bad"), "answers 422: spec.template: bad"),
    ],
)
def test_a_cluster_that_refuses_the_job(
    cluster: KubernetesServer, trained: Leave, answer: dict, complaint: str
) -> None:
    cluster.answers["POST jobs"] = answer
    code, _, err = trained("--", *FLAGS)
    assert code == 2
    assert complaint in err
    assert not cluster.deleted


def test_a_job_that_cannot_be_removed_is_named(cluster: KubernetesServer, trained: Leave) -> None:
    cluster.play = [RUNNING, SUCCEEDED]
    cluster.answers["DELETE jobs"] = status(403, "Forbidden", FORBIDDEN)
    code, _, err = trained("--", *FLAGS)
    (name,) = cluster.jobs
    assert code == 0
    assert f"answers 403: {FORBIDDEN}): kubectl -n raft delete job {name}" in err


def test_a_job_that_somebody_removes(cluster: KubernetesServer, trained: Leave) -> None:
    cluster.play = [RUNNING]
    original = cluster.answer

    def forgetful(method: str, path: str, body: bytes) -> dict[str, Any]:
        answer = original(method, path, body)
        if path.endswith("/pods"):
            cluster.jobs.clear()
        return answer

    cluster.answer = forgetful  # type: ignore[method-assign]
    code, _, err = trained("--", *FLAGS)
    assert code == 2
    assert '" not found' in err
