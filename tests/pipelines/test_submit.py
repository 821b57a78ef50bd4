"""`raft submit`, `watch` and `terminate` with the real kfp client against the recorded server."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster import connection, kubeflow
from tests.conftest import REPOSITORY
from tests.pipelines import kubernetes_server
from tests.pipelines.conftest import INPUTS, PIPELINE, Leave
from tests.pipelines.kubeflow.executors import Result
from tests.pipelines.kubeflow.server import KfpServer
from tests.pipelines.kubeflow.specification import Refused
from tests.pipelines.kubernetes_server import KubernetesServer

STEPS = ("hardware", "generate", "train", "quantize-check", "eval", "summary")


def test_a_run_is_started_and_watched_to_its_end(server: KfpServer, submitted: Leave) -> None:
    code, out, err = submitted(
        "--set", "rank=16", "--set", "learning_rate=1e-4", "--name", "mine",
        "--pipeline-root", "gs://bucket/root", "--service-account", "runner",
    )  # fmt: skip
    (run,) = server.runs.values()
    assert code == 0, err
    assert out == f"{server.url}/#/runs/details/{run.id}\n"
    assert run.parameters == {**INPUTS, "rank": 16, "learning_rate": 1e-4}
    assert run.request["display_name"] == "mine"
    assert run.request["service_account"] == "runner"
    assert run.request["runtime_config"]["pipeline_root"] == "gs://bucket/root"
    assert [entry["display_name"] for entry in server.experiments] == ["raft"]
    messages = [line.strip() for line in err.splitlines() if not line.startswith(("#", "**", "|"))]
    for step in STEPS:
        phases = [message for message in messages if message.startswith(f"{step}: ")]
        assert phases == [f"{step}: {p}" for p in ("driver", "waiting for its pod", "succeeded")]
    steps = {line.partition(":")[0] for line in messages if line.endswith(": succeeded")}
    assert steps == set(STEPS), "Kubeflow's own tasks are not shown"
    assert messages[-1] == f"run {run.id} has succeeded"


def test_a_second_run_joins_the_experiment(server: KfpServer, submitted: Leave) -> None:
    for _ in range(2):
        assert submitted("--wait", "false")[0] == 0
    assert len(server.experiments) == 1
    assert len(server.runs) == 2


@pytest.mark.parametrize(
    ("fault", "shown", "problem"),
    [
        ({"executors": {"train": lambda _: Result(exit_code=2)}},
         ["driver", "waiting for its pod", "a pod has failed; waiting for the next attempt",
          "failed"],
         "train failed at attempt 1: it left no ledger entry"),
        ({"driver_faults": {"train": 1}}, ["driver", "did not start"],
         "train did not start: its driver failed"),
    ],
    ids=["step", "driver"],
)  # fmt: skip
def test_a_failed_run_names_the_step_and_exits_1(
    server: KfpServer, submitted: Leave, fault: dict[str, Any], shown: list[str], problem: str
) -> None:
    vars(server).update(fault)
    code, out, err = submitted("--retries", 0)
    (run,) = server.runs.values()
    assert code == 1
    assert f"run {run.id}: {problem}" in err
    assert err.count(out.strip()) == 1, "the link to the logs"
    messages = [line.strip() for line in err.splitlines()]
    assert [m for m in messages if m.startswith("train: ")] == [f"train: {s}" for s in shown]
    assert "summary: succeeded" in messages
    assert not any(line.startswith("eval:") for line in messages), "it was never to start"


NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
PULL = "Back-off pulling image raft-train:0.1.0"


def waiting(**state: str) -> list[dict[str, Any]]:
    status = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    return [status | {"state": {"waiting": state}}]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
          "reason": "Unschedulable", "message": NO_NODE}]}, f"waiting for a node ({NO_NODE})"),
        ({"phase": "Pending", "containerStatuses": waiting(reason="ContainerCreating")},
         "pulling its image (ContainerCreating)"),
        ({"phase": "Pending", "containerStatuses": waiting(reason="ErrImagePull", message=PULL)},
         f"pulling its image ({PULL})"),
        ({"phase": "Running"}, "training: 120/300 steps, 40.2 steps/min loss=0.5"),
    ],
)  # fmt: skip
def test_what_a_pod_waits_for_and_its_progress_are_shown_where_a_cluster_answers(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    status: dict[str, Any], shown: str,
) -> None:  # fmt: skip
    lines = ["loading the model", "  training: 119/300 steps", f"  {shown}", "a warning"]
    cluster = KubernetesServer(logs={"pod-1": lines})
    older, newer = kubernetes_server.pod("Failed", uid="0"), kubernetes_server.pod("Pending")
    for pod in (older, newer):
        pod["metadata"]["labels"] = {"app.kubernetes.io/component": "train"}
    newer["status"] = status
    pods = "/api/v1/namespaces/kubeflow/pods"
    cluster.answers[pods] = {"kind": "PodList", "apiVersion": "v1", "items": [newer, older]}
    server.executors = {"train": lambda _: Result(ticks=4)}
    with kubernetes_server.serving(cluster):
        config = kubernetes_server.kubeconfig(cluster.url, tmp_path / "config")
        monkeypatch.setenv("KUBECONFIG", str(config))
        code, _, err = submitted()
    (run,) = server.runs.values()
    assert code == 0
    assert f"  train: {shown}\n" in err
    assert set(cluster.selectors) == {f"pipeline/runid={run.id},app.kubernetes.io/component"}


def test_a_cluster_that_refuses_is_asked_once(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with kubernetes_server.serving(KubernetesServer()) as cluster:
        config = kubernetes_server.kubeconfig(cluster.url, tmp_path / "config")
        monkeypatch.setenv("KUBECONFIG", str(config))
        code, _, err = submitted()
    assert (code, len(cluster.requests)) == (0, 1)
    assert err.count("what pods wait for is not shown: the cluster at") == 1


def test_without_waiting_it_says_how_to_go_on_and_a_run_can_be_stopped(
    server: KfpServer, submitted: Leave, leave: Leave
) -> None:
    server.executors = {"generate": lambda _: Result(ticks=10**6)}
    code, _, err = submitted("--wait", "false")
    (run,) = server.runs.values()
    assert code == 0
    assert f"raft watch {run.id} --host {server.url}" in err
    assert f"raft terminate {run.id} --host {server.url}" in err
    while not any(pod.task == "generate" for pod in run.tasks.pods):
        run.advance()
    assert leave("terminate", run.id, "--host", server.url)[0] == 0
    code, _, err = leave("watch", run.id, "--host", server.url)
    assert code == 1
    assert f"run {run.id}: terminated in generate: it is not retried" in err


def test_a_server_that_restarts_is_waited_for(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = server.look_at

    def stumble(run: Any) -> dict[str, Any]:
        if not server.requests.count("stumbled"):
            server.requests.append("stumbled")
            server.broken = 3
        return looked(run)

    monkeypatch.setattr(server, "look_at", stumble)
    assert submitted()[0] == 0
    assert server.broken == 0


def test_a_server_that_stays_away_is_given_up(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.RETRIES, "total", 3)
    server.broken = 10**6
    code, _, err = submitted()
    (run,) = server.runs.values()
    assert code == 2
    assert f"raft watch {run.id}" in err
    assert f"{server.url} answers 503: " in err


def test_ctrl_c_leaves_the_run_running(server: KfpServer, parameters: Path) -> None:
    server.executors = {"hardware": lambda _: Result(ticks=10**6)}
    script = (
        "import sys; from pipelines.cluster import watch; from pipelines.cli import main; "
        "watch.SECONDS_BETWEEN_LOOKS = 0.01; main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "submit", "--parameters", parameters, "--host", server.url],
        cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "hardware: running" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    (run,) = server.runs.values()
    assert run.state == "RUNNING"
    assert f"raft terminate {run.id} --host {server.url}" in "".join(lines)


# ---- the server --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "token", "complaint"),
    [
        ("1", "", "raft needs a server of Kubeflow Pipelines 2"),
        ("login", "", "answers, but not as its API does"),
        ("2", "s3cret", "answers 401: unauthenticated"),
    ],
)
def test_a_server_that_cannot_be_used(
    server: KfpServer, submitted: Leave, kind: str, token: str, complaint: str
) -> None:
    server.kind, server.token = kind, token
    code, out, err = submitted()
    assert code == 2
    assert not out
    assert complaint in err
    assert f"put a bearer token in {kubeflow.TOKEN}" in err
    assert "cookie=" not in err.lower() and "secret-cookie" not in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--host", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer ([Errno 111] Conn"),
        ([], "Missing option '--host'"),
    ],
)
def test_no_server(words: list[str], complaint: str, parameters: Path, leave: Leave) -> None:
    code, _, err = leave("submit", "--pipeline", PIPELINE, "--parameters", parameters, *words)
    assert code == 2
    assert complaint in err
    assert len(err.splitlines()) == 2, "no warnings of the client's retries"


@pytest.mark.parametrize("root", ["bucket/root", "/data/root"])
def test_a_pipeline_root_without_a_scheme(root: str, server: KfpServer, submitted: Leave) -> None:
    code, _, err = submitted("--pipeline-root", root)
    assert code == 2 and not server.runs
    assert f"--pipeline-root '{root}': no scheme (allowed: a URI such as" in err


def test_what_the_settings_can_give_is_told(submitted: Leave) -> None:
    _, _, err = submitted()
    assert "  at most 300 rows: --max-chunks 300 × --questions-per-chunk 1\n" in err
    assert "Rules wrote these questions (--teacher extractive)" in err
    _, _, err = submitted("--set", "max_chunks=50")
    assert "  Only 50 rows: a few hundred to a thousand are recommended.\n" in err


def test_the_token_comes_from_the_environment_and_is_not_printed(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "s3cret"
    for token, expected in (("s3cret", 0), ("wr0ng", 2)):
        monkeypatch.setenv(kubeflow.TOKEN, token)
        code, out, err = submitted()
        assert code == expected, err
        assert token not in out + err


def test_the_servers_refusal_is_passed_on(
    server: KfpServer, submitted: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise Refused('unknown field "resourceCpuLimit"')

    monkeypatch.setattr(server, "check", refuse)
    code, _, err = submitted()
    assert code == 2
    assert 'answers 400: unknown field "resourceCpuLimit"' in err
    assert "raft needs a server of Kubeflow Pipelines 2" in err


def test_an_unknown_run(server: KfpServer, leave: Leave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    code, _, err = leave("watch", "no-such-run")
    assert code == 2
    assert "/runs/no-such-run not found" in err
