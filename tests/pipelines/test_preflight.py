"""`raft preflight` with the real Kubernetes client against recorded answers of clusters."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.compile import compiled
from pipelines.manifests import OVERLAYS
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY
from tests.pipelines.kubernetes_server import (
    KubernetesServer,
    kubeconfig,
    recorded,
    serving,
    status,
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


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket with documents and questions on an emulator of GCS."""
    from gcp_storage_emulator.server import create_server
    from google.cloud import storage

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            port = server._api._httpd.socket.getsockname()[1]
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            patch.setenv("GOOGLE_CLOUD_PROJECT", "test")
            bucket = storage.Client().bucket("bucket")
            for name in ("documents/a.txt", "questions.json"):
                bucket.blob(name).upload_from_string("text")
            yield bucket
    finally:
        server.stop()


MODEL = "/meta-llama/Llama-3.1-8B-Instruct/resolve/main/config.json"


@pytest.fixture
def preflight(
    tmp_path: Path,
    bucket: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Preflight:
    """Exit code, lines and standard error on a cluster of recordings; the hub has the model."""
    from kubernetes.config import kube_config

    monkeypatch.setenv("HF_TOKEN", "hf-t0ken")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)

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
            path = str(kubeconfig(cluster.url, tmp_path / "kubeconfig"))
            monkeypatch.setenv("KUBECONFIG", path)
            # Read when kfp's client imports it, which another test may have done.
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", path)
            with pytest.raises(SystemExit) as leave:
                main(["preflight", "--pipeline", str(pipeline), *map(str, arguments)])
        out, err = capfd.readouterr()
        requests = {line.rpartition(" ")[0] for line in cluster.requests}
        assert requests <= {"GET", "dry run of POST"}, "nothing is changed"
        for secret in ("kube-t0ken", "hf-t0ken", "aGZfc2VjcmV0", "c2tfc2VjcmV0"):
            assert secret not in out + err
        assert "Traceback" not in err
        return int(leave.value.code or 0), out.splitlines(), err

    return run


RUN = ("--set", "documents=gs://bucket/documents", "--set", "questions=gs://bucket/questions.json")

TEACHER = ("--set", "documents=gs://bucket/documents", "--set", "questions=gs://bucket/q",
           "--set", "teacher=openai", "--set", "teacher_model=m")  # fmt: skip


def lines(printed: list[str], state: str) -> list[str]:
    return [line[13:] for line in printed if line.startswith(state)]


def test_a_cluster_with_everything(preflight: Preflight) -> None:
    code, printed, err = preflight(*RUN, "--pipeline-root", "gs://bucket/runs/first")
    assert code == 0, "\n".join(printed)
    assert not err
    ok = lines(printed, "ok")
    assert len(ok) == len(printed) == 14
    for text in (
        "service account raft: acts as raft@project.iam.gserviceaccount.com",
        "secret raft-huggingface, optional key token: is there",
        *(f"pod of {stage}: the API server would take it" for stage in STAGES),
        "node for generate: gke-default-1",
        "node for train, quantize-check, eval: gke-a100-1",
        "documents: gs://bucket/documents is readable from here",
        "run: gs://bucket/runs/first is writable from here",
        "base_model: meta-llama/Llama-3.1-8B-Instruct may be fetched",
        "Kubeflow: Pipelines 2 answers at",
    ):
        assert any(text in line for line in ok), text


def test_a_cluster_without_the_gpu(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("without-gpus",))
    assert code == 2
    assert lines(printed, "missing") == [
        "node for train, quantize-check, eval: none of 2 has "
        "cloud.google.com/gke-accelerator=nvidia-tesla-a100"
    ]
    text = "\n".join(printed)
    assert "gcloud container node-pools create" in text
    assert "--machine-type a2-highgpu-1g" in text
    assert "--accelerator type=nvidia-tesla-a100,count=1,gpu-driver-version=latest" in text
    assert "error: 1 thing is missing" in err
    code, printed, _ = preflight("--scale-from-zero", "true", clusters=("without-gpus",))
    assert code == 0
    assert "none of 2 has cloud.google.com/gke-accelerator" in lines(printed, "cannot tell")[0]


def test_nodes_that_no_pod_could_have_are_explained(preflight: Preflight) -> None:
    code, printed, _ = preflight(clusters=("unfit",))
    assert code == 2
    assert lines(printed, "missing") == [
        "node for train, quantize-check, eval: "
        "gke-a100-1 has the taint dedicated=research:NoSchedule; "
        "gke-a100-2 has the taint node.kubernetes.io/unreachable=:NoSchedule; "
        "gke-a100-3 has the taint node.kubernetes.io/unschedulable=:NoSchedule; "
        "gke-a100-4 offers 0 of nvidia.com/gpu, not 1 (0: is its driver installed?)"
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
    settings = ["--set", "documents=gs://b/d", "--set", "questions=gs://b/q"]
    code, printed, _ = preflight(*settings, "--set", f"train_gpus={gpus}", clusters=clusters)
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
    assert any("kubectl -n NAMESPACE describe resourcequota,limitrange" in line for line in printed)


def test_a_webhook_without_dry_runs_proves_nothing(preflight: Preflight) -> None:
    cluster = KubernetesServer(answers=recorded("good"))
    cluster.answers["POST jobs train"] = status(
        400, "BadRequest", 'admission webhook "w.example.com" does not support dry run'
    )
    code, printed, _ = preflight(cluster=cluster)
    assert code == 0
    assert any("pod of train: the cluster refuses: admission webhook" in line
               for line in lines(printed, "cannot tell"))  # fmt: skip


def test_the_dry_run_is_of_what_raft_job_creates(preflight: Preflight) -> None:
    cluster = KubernetesServer(answers=recorded("good"))
    preflight("--service-account", "other", cluster=cluster)
    jobs, pods = cluster.dry_runs[::2], cluster.dry_runs[1::2]
    assert len(jobs) == len(STAGES)
    for job, pod in zip(jobs, pods, strict=True):
        assert (job["kind"], pod["kind"]) == ("Job", "Pod")
        assert job["metadata"]["name"].startswith(f"{pod['metadata']['generateName']}")
        assert pod["spec"] == job["spec"]["template"]["spec"]
        assert pod["spec"]["serviceAccountName"] == "other"
        assert pod["metadata"]["labels"] == job["spec"]["template"]["metadata"]["labels"]
    assert not cluster.jobs


def test_the_dry_run_of_a_pipeline_is_of_pods_alone(preflight: Preflight) -> None:
    """Kubeflow makes no Jobs, and cannot set a priority class, which may not be there."""
    cluster = KubernetesServer(answers=recorded("good"))
    settings = ["--set", "documents=gs://b/d", "--set", "questions=gs://b/q"]
    preflight(*settings, "--set", "memory=48Gi", cluster=cluster)
    assert [entry["kind"] for entry in cluster.dry_runs] == ["Pod"] * len(STAGES)
    assert not any("priorityClassName" in entry["spec"] for entry in cluster.dry_runs)
    (container,) = cluster.dry_runs[STAGES.index("train")]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "48Gi"


def test_what_may_not_be_seen_does_not_stop_the_rest(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("forbidden",))
    assert code == 0, err
    assert [line.partition(":")[0] for line in lines(printed, "cannot tell")] == [
        "service account raft", "pod of generate", "pod of train",
        "secret raft-huggingface, optional key token", "pod of quantize-check", "pod of eval",
        "Kubeflow",
    ]  # fmt: skip
    assert any("quantize-check, eval: gke-a100-1" in line for line in lines(printed, "ok"))


def test_an_empty_cluster_is_told_how_to_become_one(preflight: Preflight) -> None:
    code, printed, err = preflight(clusters=("bare",))
    assert code == 2
    assert "error: 6 things are missing" in err
    text = "\n".join(printed)
    for fix in (
        "kubectl apply -k k8s/base -l app.kubernetes.io/component=setup",
        'serviceaccounts "raft" not found',
        "kubectl -n raft create secret generic raft-huggingface --from-literal=token=VALUE",
        'services "ml-pipeline" not found',
        "raft needs a server of Kubeflow Pipelines 2",
    ):
        assert fix in text
    code, printed, _ = preflight("--kubeflow", "false", clusters=("bare",))
    assert "Kubeflow" not in "\n".join(printed)


def test_the_parameters_of_a_run_are_looked_at(preflight: Preflight, tmp_path: Path) -> None:
    seen: list[str] = []
    answers = {"/v1/models": (200, {"data": [{"id": "llama"}]})}
    with answering(answers, seen) as teacher:
        parameters = tmp_path / "parameters.yaml"
        parameters.write_text(
            "documents: gs://bucket/nothing\n"
            "questions: gs://bucket/documents\n"
            f"base_model: gs://bucket/documents\nteacher: openai\nteacher_model: qwen\n"
            f"teacher_endpoint: {teacher}/v1\n"
        )
        code, printed, _ = preflight(
            "--parameters", parameters, "--pipeline-root", "gs://elsewhere/root"
        )
        assert code == 2
        missing = lines(printed, "missing")
        assert missing[0] == "documents: gs://bucket/nothing: nothing there"
        assert missing[1].startswith("run: gs://elsewhere/root: ")
        assert missing[2].endswith("has no model qwen; it lists llama")
        assert "base_model: gs://bucket/documents is readable from here" in lines(printed, "ok")
        _, printed, _ = preflight("--parameters", parameters, "--set", "teacher_model=llama")
        assert any("teacher: llama answers" in line for line in lines(printed, "ok"))


def test_the_hardware_of_a_run_is_looked_for(preflight: Preflight) -> None:
    """A run that is started on other nodes than the manifests name needs those."""
    settings = ["--set", "documents=gs://b/d", "--set", "questions=gs://b/q"]
    chosen = ["--set", 'node_selector={"cloud.google.com/gke-accelerator": "nvidia-l4"}']
    _, printed, _ = preflight(*settings)
    assert not any("nvidia-l4" in line for line in printed)
    code, printed, _ = preflight(*settings, *chosen)
    assert code == 2
    assert any(line.startswith("missing") and "nvidia-l4" in line for line in printed)


def test_the_hardware_that_a_pipeline_was_compiled_with_is_looked_for(
    preflight: Preflight, tmp_path: Path
) -> None:
    pipeline = tmp_path / "raft-l4.yaml"
    pipeline.write_text(compiled(OVERLAYS / "l4"))
    settings = ["--set", "documents=gs://b/d", "--set", "questions=gs://b/q"]
    code, printed, _ = preflight(*settings, pipeline=pipeline)
    assert code == 2
    assert any(line.startswith("missing") and "nvidia-l4" in line for line in printed)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ((401, {}), "answers 401"),
        ((500, {}), "answers 500"),
        ((200, {"models": []}), "it lists no models"),
    ],
)
def test_a_teacher_that_answers_without_its_model(
    preflight: Preflight, answer: Any, text: str
) -> None:
    with answering({"/v1/models": answer}, []) as teacher:
        code, printed, _ = preflight(*TEACHER, "--set", f"teacher_endpoint={teacher}/v1")
    assert code == 2
    assert any(text in line for line in lines(printed, "missing"))


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
        (302, "ok", "may be fetched"),
        (401, "missing", "answers 401"),
        (403, "missing", "answers 403"),
        (404, "missing", "answers 404"),
        (500, "missing", "answers 500"),
    ],
)
def test_the_models_licence(preflight: Preflight, code: int, state: str, text: str) -> None:
    seen: list[str] = []
    left, printed, _ = preflight(*RUN, hub=(code, seen))
    assert left == (2 if state == "missing" else 0)
    assert any("meta-llama" in line and text in line for line in lines(printed, state))
    assert (state == "missing") == ("HF_TOKEN has no valid token" in "\n".join(printed))
    assert seen == [f"HEAD {MODEL} Bearer hf-t0ken"]


def test_a_bucket_that_may_only_be_read(
    preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud import storage

    monkeypatch.setattr(
        storage.Bucket,
        "test_iam_permissions",
        lambda _, permissions, **__: [
            name for name in permissions if name.endswith(("get", "list"))
        ],
    )
    code, printed, _ = preflight(*RUN, "--pipeline-root", "gs://bucket/runs/first")
    assert code == 0
    assert lines(printed, "cannot tell") == [
        "run: gs://bucket/runs/first: not allowed (storage.objects.create, storage.objects.delete)"
    ]


def test_without_a_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as leave:
        main(["preflight"])
    out, err = capfd.readouterr()
    assert leave.value.code == 2
    assert not out
    assert "no usable kubeconfig" in err
    assert "gcloud container clusters get-credentials" in err


def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = kubeconfig("http://127.0.0.1:1", tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(SystemExit) as leave:
        main(["preflight"])
    err = capfd.readouterr().err
    assert leave.value.code == 2
    assert "the cluster at http://127.0.0.1:1 does not answer ([Errno 111] Conn" in err
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
    ],
)
def test_tolerations(toleration: dict, taint: tuple, tolerated: bool) -> None:
    from kubernetes.client import V1Taint

    from pipelines.cluster.preflight import _tolerates
    from pipelines.k8s.job import Toleration

    key, value, effect = taint
    entry = V1Taint(key=key, value=value, effect=effect)
    assert _tolerates(Toleration.model_validate(toleration), entry) is tolerated
