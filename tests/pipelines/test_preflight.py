"""`raft preflight` with the real Kubernetes client against recorded answers of clusters."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.core.hardware import GPU_STEPS
from pipelines.cluster.job import job_body
from pipelines.compile import compiled
from pipelines.manifests import OVERLAYS, load_all
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import Leave
from tests.pipelines.kubernetes_server import (
    KubernetesServer,
    kubeconfig,
    recorded,
    serving,
)

PIPELINE = REPOSITORY / "pipelines" / "raft.yaml"
Preflight = Callable[..., tuple[int, list[str], str]]


@contextmanager
def answering(answers: dict[str, tuple[int, Any]], seen: list[str]) -> Iterator[str]:
    """A web server with fixed answers by path, which notes who asks with which token."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            code, value = answers.get(self.path, (404, {}))
            text = b"" if self.command == "HEAD" else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_HEAD = _serve  # noqa: N815 (the base class names them)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


MODEL = "/meta-llama/Llama-3.1-8B-Instruct/resolve/main/config.json"


@pytest.fixture
def preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave) -> Preflight:
    """Exit code, lines and standard error on a cluster of recordings; the hub has the model."""
    monkeypatch.setenv("HF_TOKEN", "hf-t0ken")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(
        *arguments: object,
        cluster: KubernetesServer | None = None,
        clusters: tuple[str, ...] = (),
        hub: tuple[int, list[str]] = (200, []),
        pipeline: Path = PIPELINE,
    ) -> tuple[int, list[str], str]:
        cluster = cluster or KubernetesServer(answers=recorded("good", *clusters))
        with answering({MODEL: (hub[0], {})}, hub[1]) as url, serving(cluster):
            monkeypatch.setenv("HF_ENDPOINT", url)
            path = kubeconfig(cluster.url, tmp_path / "kubeconfig")
            monkeypatch.setenv("KUBECONFIG", str(path))
            code, out, err = leave("preflight", "--pipeline", pipeline, *arguments)
        requests = {line.rpartition(" ")[0] for line in cluster.requests}
        assert requests <= {"GET", "dry run of POST"}, "nothing is changed"
        for secret in ("kube-t0ken", "hf-t0ken", "aGZfc2VjcmV0", "c2tfc2VjcmV0"):
            assert secret not in out + err
        return code, out.splitlines(), err

    return run


DATA = ("--set", "documents=gs://bucket/documents", "--set", "questions=gs://bucket/questions.json")
RUN = (*DATA, "--set", "teacher=extractive")
TEACHER = (*DATA, "--set", "teacher=openai", "--set", "teacher_model=m")


def lines(printed: list[str], state: str) -> list[str]:
    return [line[13:] for line in printed if line.startswith(state)]


def test_a_cluster_with_everything(preflight: Preflight) -> None:
    code, printed, err = preflight(*RUN)
    assert code == 0, "\n".join(printed)
    assert not err
    ok = lines(printed, "ok")
    assert len(ok) == len(printed) == 12
    for text in (
        "service account raft: acts as raft@project.iam.gserviceaccount.com",
        "secret raft-huggingface, optional key token: is there",
        *(f"pod of {stage}: the API server would take it" for stage in STAGES),
        "node for generate: gke-default-1",
        *(f"node for {stage}: gke-a100-1" for stage in GPU_STEPS),
        "base model meta-llama/Llama-3.1-8B-Instruct: the hub answers 200 to http://",
    ):
        assert any(text in line for line in ok), text


def test_a_cluster_without_the_gpu(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("without-gpus",))
    assert code == 2
    assert lines(printed, "missing") == [
        f"node for {stage}: none has cloud.google.com/gke-accelerator=nvidia-tesla-a100"
        for stage in GPU_STEPS
    ]
    assert "docs/gke.md creates a pool of such nodes" in "\n".join(printed)
    assert "error: 3 things are missing" in err
    code, printed, _ = preflight("--scale-from-zero", "true", clusters=("without-gpus",))
    assert code == 0
    assert "none has cloud.google.com/gke-accelerator" in lines(printed, "cannot tell")[0]


def test_nodes_that_no_pod_could_have_are_explained(preflight: Preflight) -> None:
    code, printed, _ = preflight(clusters=("unfit",))
    assert code == 2
    assert lines(printed, "missing") == [
        f"node for {stage}: "
        "gke-a100-1 has the taint dedicated=research:NoSchedule; "
        "gke-a100-2 has the taint node.kubernetes.io/unreachable=:NoSchedule; "
        "gke-a100-3 has the taint node.kubernetes.io/unschedulable=:NoSchedule; "
        "gke-a100-4 offers 0 of nvidia.com/gpu, not 1"
        for stage in GPU_STEPS
    ]
    assert any("kubectl describe node gke-a100-1" in line for line in printed)


@pytest.mark.parametrize(
    ("gpus", "clusters", "complaint"),
    [
        ("1", ("without-driver",), "offers 0 of nvidia.com/gpu, not 1"),
        ("2", (), "offers 1 of nvidia.com/gpu, not 2"),
    ],
)
def test_nodes_with_too_few_gpus(
    preflight: Preflight, gpus: str, clusters: tuple[str, ...], complaint: str
) -> None:
    code, printed, _ = preflight(*RUN, "--set", f"train_gpus={gpus}", clusters=clusters)
    assert code == 2
    assert any(f"gke-a100-1 {complaint}" in line for line in lines(printed, "missing"))


def test_a_full_quota_is_the_api_servers_answer(preflight: Preflight) -> None:
    code, printed, _ = preflight(clusters=("full",))
    assert code == 2
    missing = lines(printed, "missing")
    assert [line.partition(": ")[0] for line in missing] == [
        "pod of train", "pod of quantize-check", "pod of eval",
    ]  # fmt: skip
    assert "pod of generate: the API server would take it" in lines(printed, "ok")
    assert "exceeded quota: team, requested: requests.nvidia.com/gpu=1" in missing[0]


def test_the_dry_run_is_of_the_pod_that_a_job_makes(preflight: Preflight) -> None:
    cluster = KubernetesServer(answers=recorded("good"))
    preflight("--service-account", "other", cluster=cluster)
    for stage, pod in zip(STAGES, cluster.dry_runs, strict=True):
        body = job_body(load_all()[stage], "raft")["spec"]["template"]
        body["spec"]["serviceAccountName"] = "other"
        assert pod["kind"] == "Pod"
        assert pod["metadata"]["generateName"] == f"raft-{stage}-"
        assert pod["metadata"]["labels"] == body["metadata"]["labels"]
        assert pod["spec"] == body["spec"]
    assert not cluster.jobs


def test_a_step_of_a_pipeline_has_no_priority_class(preflight: Preflight) -> None:
    """Kubeflow cannot set one, and it may not be there."""
    cluster = KubernetesServer(answers=recorded("good"))
    preflight(*RUN, "--set", "memory=48Gi", cluster=cluster)
    assert len(cluster.dry_runs) == len(STAGES)
    assert not any("priorityClassName" in entry["spec"] for entry in cluster.dry_runs)
    (container,) = cluster.dry_runs[STAGES.index("train")]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "48Gi"


def test_what_may_not_be_seen_does_not_stop_the_rest(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("forbidden",))
    assert code == 0, err
    assert [line.partition(":")[0] for line in lines(printed, "cannot tell")] == [
        "service account raft", "pod of generate", "pod of train",
        "secret raft-huggingface, optional key token", "pod of quantize-check", "pod of eval",
    ]  # fmt: skip
    assert "node for eval: gke-a100-1" in lines(printed, "ok")


def test_an_empty_cluster_is_told_how_to_become_one(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("bare",))
    assert code == 2
    assert "error: 5 things are missing" in err
    text = "\n".join(printed)
    for fix in (
        "kubectl apply -k k8s/base -l app.kubernetes.io/component=setup",
        'serviceaccounts "raft" not found',
        "kubectl -n raft create secret generic raft-huggingface --from-literal=token=VALUE",
    ):
        assert fix in text


def test_the_hardware_of_a_run_is_looked_for(preflight: Preflight, tmp_path: Path) -> None:
    """That of the run's parameters, or of the overlay that its pipeline was compiled with."""
    pipeline = tmp_path / "raft-l4.yaml"
    pipeline.write_text(compiled(OVERLAYS / "l4"))
    chosen = 'node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"}'
    assert preflight(*RUN)[0] == 0
    for words, path in (
        (("--set", chosen), PIPELINE),
        (("--set", "gpu=l4"), PIPELINE),
        ((), pipeline),
    ):
        code, printed, _ = preflight(*RUN, *words, pipeline=path)
        assert code == 2
        assert len([line for line in lines(printed, "missing") if "nvidia-l4" in line]) == 3


CLAIM = "/api/v1/namespaces/raft/persistentvolumeclaims/models"


def claim(*modes: str) -> dict[str, Any]:
    """A cluster with a volume claim of these modes; without any, with none."""
    made = {"metadata": {"name": "models"}, "spec": {"accessModes": list(modes)}}
    return recorded("good") | ({CLAIM: made} if modes else {})


@pytest.mark.parametrize(
    ("name", "limit", "modes", "state", "text"),
    [
        ("raft", None, ("ReadWriteOnce",), "ok", "ReadWriteOnce"),
        ("study", None, ("ReadOnlyMany",), "ok", "ReadOnlyMany"),
        ("raft", None, (), "missing", 'persistentvolumeclaims "models" not found'),
        ("study", None, ("ReadWriteOnce",), "missing", "4 trials mount it at once, but it is Read"),
        ("study", 2, ("ReadWriteOnce",), "missing", "2 trials mount it at once, but it is Read"),
        ("study", 1, ("ReadWriteOnce",), "ok", "ReadWriteOnce"),
        ("study", None, ("ReadWriteMany",), "ok", "ReadWriteMany"),
    ],
)
def test_the_volume_of_the_cache(
    name: str,
    limit: int | None,
    modes: tuple[str, ...],
    state: str,
    text: str,
    preflight: Preflight,
    tmp_path: Path,
) -> None:
    options = {"parallelism": limit} if name == "study" else {}
    pipeline = tmp_path / f"{name}.yaml"
    pipeline.write_text(compiled(name=name, cache_volume="models", **options))
    cluster = KubernetesServer(answers=claim(*modes))
    _, printed, _ = preflight(*RUN, cluster=cluster, pipeline=pipeline)
    (line,) = [line for line in lines(printed, state) if line.startswith("volume claim models")]
    assert text in line


def test_a_secret_that_a_run_names_must_be_there(preflight: Preflight) -> None:
    named = ("--set", "huggingface_secret=hub", "--set", "teacher_secret=raft-teacher")
    code, printed, err = preflight(*RUN, *named)
    assert code == 2
    assert lines(printed, "missing") == ["secret hub, key token: is not there"]
    assert "kubectl -n raft create secret generic hub --from-literal=token=VALUE" in "".join(
        printed
    )
    assert "1 thing is missing" in err


@pytest.mark.parametrize(
    ("answer", "state", "text"),
    [
        ((200, {"data": []}), "ok", "/v1/models answers"),
        ((401, {}), "missing", "/v1/models answers 401"),
        ((500, {}), "missing", "/v1/models answers 500"),
    ],
)
def test_a_teacher_that_answers(preflight: Preflight, answer: Any, state: str, text: str) -> None:
    with answering({"/v1/models": answer}, []) as teacher:
        _, printed, _ = preflight(*TEACHER, "--set", f"teacher_endpoint={teacher}/v1")
    (line,) = [line for line in lines(printed, state) if line.startswith("teacher: ")]
    assert line.endswith(text)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1/v1", "http://teacher:8000/v1"])
def test_a_teacher_that_does_not_answer_may_answer_the_pods(
    preflight: Preflight, endpoint: str
) -> None:
    _, printed, _ = preflight(*TEACHER, "--set", f"teacher_endpoint={endpoint}")
    assert any(
        f"{endpoint}/models does not answer here" in line for line in lines(printed, "cannot tell")
    )


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        (302, "ok", "answers 302"),
        (401, "missing", "answers 401"),
        (403, "missing", "answers 403"),
        (404, "missing", "answers 404"),
        (500, "cannot tell", "answers 500"),
    ],
)
def test_the_models_licence(preflight: Preflight, code: int, state: str, text: str) -> None:
    seen: list[str] = []
    left, printed, _ = preflight(*RUN, hub=(code, seen))
    assert left == (2 if state == "missing" else 0)
    assert any("meta-llama" in line and text in line for line in lines(printed, state))
    assert (state == "missing") == ("Check name and revision." in "\n".join(printed))
    assert seen == [f"HEAD {MODEL} Bearer hf-t0ken"]


def test_the_models_of_a_study(preflight: Preflight) -> None:
    seen: list[str] = []
    preflight(*RUN, pipeline=PIPELINE.with_name("study.yaml"), hub=(200, seen))
    assert sorted(seen) == [
        f"HEAD /meta-llama/{model}/resolve/main/config.json Bearer hf-t0ken"
        for model in ("Llama-3.1-8B-Instruct", "Meta-Llama-3-8B-Instruct")
    ]


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ("", "no usable kubeconfig at "),
        ("http://127.0.0.1:1", "the cluster at http://127.0.0.1:1 does not answer ([Errno 111] C"),
    ],
)
def test_no_cluster(
    server: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    path = kubeconfig(server, tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path if server else tmp_path / "none"))
    code, out, err = leave("preflight")
    assert (code, out) == (2, "")
    assert complaint in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("toleration", "taint", "tolerated"),
    [
        ({"operator": "Exists"}, ("a", "b", "NoSchedule"), True),
        ({"key": "a", "operator": "Exists"}, ("a", "b", "NoSchedule"), True),
        ({"key": "a", "value": "b"}, ("a", "b", "NoExecute"), True),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, ("a", "b", "NoExecute"), False),
        ({"key": "a", "value": "c"}, ("a", "b", "NoSchedule"), False),
        ({"key": "a"}, ("a", None, "NoSchedule"), True),
        ({"key": "c", "operator": "Exists"}, ("a", "b", "NoSchedule"), False),
        ({"key": "c", "operator": "Exists"}, ("a", "b", "PreferNoSchedule"), True),
    ],
)
def test_tolerations(preflight: Preflight, toleration: dict, taint: tuple, tolerated: bool) -> None:
    answers = recorded("good")
    nodes = answers["/api/v1/nodes"]["items"]
    key, value, effect = taint
    for node in nodes:
        node["spec"]["taints"] = [{"key": key, "value": value, "effect": effect}]
    chosen = f"tolerations={json.dumps([toleration])}"
    _, printed, _ = preflight(*RUN, "--set", chosen, cluster=KubernetesServer(answers=answers))
    assert ("node for train: gke-a100-1" in lines(printed, "ok")) == tolerated
