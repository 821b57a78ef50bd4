"""Secrets stay where they were given: no log, traceback or artifact holds one, in any spelling.

Every command runs with all kinds of credentials at once, and talks to a server that repeats to
each client what it was sent. Then all that was printed or written is searched.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from components.core import breaker, redaction
from components.core.storage import bucket
from pipelines.cluster import watch
from tests.conftest import REPOSITORY
from tests.faults.conftest import Leave, Tally
from tests.generate.teacher_server import Answer, asks_for_answer, good, teacher_server
from tests.pipelines.kubeflow.server import KfpServer, serving
from tests.pipelines.kubernetes_server import kubeconfig

SECRETS = {
    "OPENAI_API_KEY": "sk-teacher/4f+9a=7cQ",
    "HF_TOKEN": "hf_hubtoken81c2ea",
    "RAFT_KFP_TOKEN": "kfp-bearer-51d0",
    "RAFT_KFP_COOKIES": "authservice_session=kfp-cookie-77ab",
    "proxy": "proxy-p%40ss-90fe",
    "url": "endpoint-passw0rd",
    "kubeconfig": "kube-bearer-23ba",
    "google": "MIIEgoogleprivatekeyline0123456789",
}

RUN = [
    "--set", "documents=gs://bucket/documents", "--set", "questions=gs://bucket/q.json",
    "--set", "teacher=extractive",
]  # fmt: skip


def spellings(secret: str) -> set[bytes]:
    """A secret as a log may spell it."""
    data = secret.encode()
    return {
        data, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(),
        base64.b64encode(data).rstrip(b"="), base64.urlsafe_b64encode(data).rstrip(b"="),
    }  # fmt: skip


def leaks(text: bytes) -> list[str]:
    return [
        name for name, secret in SECRETS.items() if any(map(text.__contains__, spellings(secret)))
    ]


def search(folder: Path) -> tuple[int, list[str]]:
    """How many files there are, and which hold a secret; the credentials' own aside."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and "credentials" not in path.parts
    ]
    return len(files), [f"{path}: {names}" for path in files if (names := leaks(path.read_bytes()))]


class Echo(BaseHTTPRequestHandler):
    """Refuses everybody, and repeats what it was sent, as careless servers do."""

    protocol_version = "HTTP/1.1"

    def _refuse(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        sent = f"{self.requestline} {dict(self.headers)} {body[:200]}"
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        answer = {"error": {"message": f"Incorrect API key provided: {bearer}", "code": "401"},
                "message": f"no such account: {sent}", "detail": sent}  # fmt: skip
        data = json.dumps(answer).encode()
        self.send_response(401, "Unauthorized")
        self.send_header("X-Error-Message", f"Invalid token {bearer}")
        self.send_header("Set-Cookie", f"session={bearer}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_CONNECT = _refuse  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echo_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def echo() -> Iterator[str]:
    with echo_server() as url:
        yield url


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All credentials, where each is looked for."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "RAFT_KFP_TOKEN", "RAFT_KFP_COOKIES"):
        monkeypatch.setenv(name, SECRETS[name])
    account = folder / "google.json"
    account.write_text(json.dumps({
        "type": "service_account", "client_email": "a@b.iam", "project_id": "p",
        "token_uri": "http://127.0.0.1:9", "private_key_id": SECRETS["google"],
        "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRETS['google']}\n-----END",
    }))  # fmt: skip
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    kubeconfig("http://127.0.0.1:9", folder / "kubeconfig", token=SECRETS["kubeconfig"])
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://someone:{SECRETS['proxy']}@127.0.0.1:9")
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.01)
    return folder


def teacher_flags(endpoint: str, documents: Path, output: Path) -> list[object]:
    return ["generate", "--documents", documents, "--output", output, "--teacher", "openai",
            "--teacher-endpoint", endpoint, "--teacher-model", "m", "--distractors", 1]  # fmt: skip


@pytest.mark.fault("Secrets", "a teacher that repeats the key in its answers", "found nowhere")
@pytest.mark.parametrize("as_file", [False, True])
def test_a_reply_that_repeats_the_key(
    texts: Path, tmp_path: Path, credentials: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch,
    as_file: bool,
) -> None:  # fmt: skip
    key = SECRETS["OPENAI_API_KEY"]
    if as_file:
        (credentials / "key").write_text(key + "\n")
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.setenv("OPENAI_API_KEY_FILE", str(credentials / "key"))

    def repeats(body: dict[str, Any]) -> Answer:
        answer = good(body)
        if asks_for_answer(body):
            answer.text = f"With {key}, {base64.b64encode(key.encode()).decode()}: {answer.text}"
        return answer

    with teacher_server(repeats) as server:
        code, printed = leave(*teacher_flags(server.endpoint, texts, tmp_path / "dataset"))
    assert code == 0, printed
    assert not leaks(printed.encode())
    count, leaking = search(tmp_path)
    assert count >= 6 and not leaking
    assert redaction.MASK in (tmp_path / "dataset" / "train.jsonl").read_text()


@pytest.mark.fault("Secrets", "servers that repeat what they were sent in a 401", "found nowhere")
@pytest.mark.parametrize("debug", [False, True])
def test_a_refusal_that_repeats_the_key(
    texts: Path, tmp_path: Path, credentials: Path, echo: str, leave: Leave, tally: Tally,
    monkeypatch: pytest.MonkeyPatch, debug: bool,
) -> None:  # fmt: skip
    kubeconfig(echo, credentials / "kubeconfig", token=SECRETS["kubeconfig"])
    commands: list[list[object]] = [
        teacher_flags(f"{echo}/v1", texts, tmp_path / "dataset"),
        ["submit", *RUN, "--host", echo],
        ["watch", "some-run", "--host", echo],
        ["terminate", "some-run", "--host", echo],
        ["job", "train"],
        ["preflight"],
    ]
    for command in commands:
        code, printed = leave(*command, *(["--debug"] if debug else []))
        assert not leaks(printed.encode()), (command, printed)
        if command[0] != "preflight":  # which says what it cannot tell, and goes on
            assert code in (1, 2), (command, printed)
            assert ("Traceback" in printed) == debug, printed
        tally.tried(1)
    assert not search(tmp_path)[1]


@pytest.mark.fault(
    "Secrets", "passwords in URLs: of a proxy, an endpoint, a server", "found nowhere"
)
def test_passwords_in_urls(
    texts: Path, tmp_path: Path, leave: Leave, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE", 0.001)
    password = SECRETS["url"]
    inside = f"http://me:{password}@127.0.0.1:9"
    for command, allowed in (
        (teacher_flags("http://teacher.invalid/v1", texts, tmp_path / "a"), "cannot be reached"),
        (teacher_flags(f"{inside}/v1", texts, tmp_path / "b"), "--teacher-endpoint"),
        (["submit", *RUN, "--host", "http://127.0.0.1:9", "--set", "teacher=openai",
          "--set", f"teacher_endpoint={inside}/v1", "--set", "teacher_model=m"],
         "user name or password"),
        (["submit", *RUN, "--host", inside], "127.0.0.1:9"),
        (["generate", "--teacher", "extractive", "--documents", f"{inside}/x",
            "--output", tmp_path / "c"], "--documents"),
    ):  # fmt: skip
        code, printed = leave(*command)
        assert code == 2, printed
        assert not leaks(printed.encode()), printed
        assert allowed in printed
        tally.tried(1)
    assert not search(tmp_path)[1]


@pytest.mark.fault("Secrets", "a Google key that cannot be used", "found nowhere")
@pytest.mark.parametrize("debug", [False, True])
def test_a_google_key(
    tmp_path: Path, credentials: Path, leave: Leave, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "SECONDS_OF_RETRIES", 0.5)  # nobody answers for a token
    for text in (None, "{", SECRETS["google"], json.dumps([SECRETS["google"]])):
        if text is not None:
            (credentials / "google.json").write_text(text)
        code, printed = leave("export", "--dataset", "gs://bucket/a", "--output", tmp_path / "out",
                           *(["--debug"] * debug))  # fmt: skip
        assert code in (1, 2)
        assert not leaks(printed.encode()), printed
        assert ("Traceback" in printed) == debug, printed
    assert not search(tmp_path)[1]


@pytest.mark.fault("Secrets", "all stages, a pipeline compiled and submitted", "found nowhere")
def test_runs_that_succeed(
    world_dataset: Path, world_adapter: Path, demo_model: Path, tmp_path: Path, leave: Leave,
    tally: Tally,
) -> None:  # fmt: skip
    model = ["--base-model", demo_model, "--adapter", world_adapter]
    with serving(KfpServer()) as kfp:
        commands: list[list[object]] = [
            ["export", "--dataset", world_dataset, "--output", tmp_path / "export"],
            ["quantize-check", "--dataset", world_dataset, *model, "--max-rows", 1,
             "--max-new-tokens", 4, "--output", tmp_path / "quantization"],
            ["merge-adapter", *model, "--bits", 4, "--output", tmp_path / "merged"],
            ["card", "--adapter", world_adapter, "--output", tmp_path / "published"],
            ["rows", world_dataset, "--output", tmp_path / "rows.html"],
            ["serve", "--adapter", world_adapter],
            ["ask", "--adapter", world_adapter, "--documents", world_dataset.parent / "documents",
             "--max-new-tokens", 4, "Where was it built?"],
            ["eval", "--questions", world_dataset, *model, "--output", tmp_path / "evaluation",
             "--max-questions", 1, "--arms", "base,raft", "--max-new-tokens", 4],
            ["summary", "--folders", tmp_path, "--output", tmp_path / "summary"],
            ["compile", "--output", tmp_path / "raft.yaml"],
            ["check"],
            ["plan", "--base-model", demo_model, "--gpu", "l4"],
            ["submit", *RUN, "--host", kfp.url],
        ]  # fmt: skip
        for command in commands:
            code, printed = leave(*command)
            assert code == 0, printed
            assert not leaks(printed.encode()), printed
            tally.tried(1)
        (run,) = kfp.runs.values()
        assert not leaks(json.dumps(run.request).encode())
    count, leaking = search(tmp_path)
    assert count >= 20 and not leaking


@pytest.mark.fault("Secrets", "a training that is stopped: its checkpoints", "found nowhere")
def test_checkpoints(world_dataset: Path, demo_model: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    command = [
        sys.executable, "-m", "pipelines", "train", "--dataset", str(world_dataset), "--base-model",
        str(demo_model), "--output", str(tmp_path / "adapter"), "--checkpoints", str(checkpoints),
        "--checkpoint-steps", "1", "--epochs", "1000", "--rank", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while not list(checkpoints.rglob("manifest.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert not leaks(printed.encode())
    count, leaking = search(tmp_path)
    assert count >= 10 and not leaking


def test_the_search_finds_what_it_looks_for() -> None:
    for secret in SECRETS.values():
        for form in spellings(secret):
            assert leaks(b"x" + form + b"y")


def test_what_is_no_secret_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with redaction.guarded():
        for text in ("none", "gs://bucket/a@b", "a@b.example", "http://host:80/v1", "x://y z@"):
            print(text)
            assert capsys.readouterr().out.strip() in (text, "gs://***@b")
            assert redaction.redact(text) == text, "what is written may be a document's words"


@pytest.mark.parametrize("stage", ["generate", "train", "quantize-check", "eval"])
def test_no_build_asks_for_a_secret(stage: str) -> None:
    lines = (REPOSITORY / "images" / stage / "Dockerfile").read_text().splitlines()
    declared = [line.split()[1] for line in lines if line.split()[:1] in (["ARG"], ["ENV"])]
    assert declared and not [name for name in declared if redaction.SAYS_SO.search(name)]
    copied = [line for line in lines if line.startswith(("COPY", "ADD"))]
    assert copied and not [line for line in copied if line.split()[1:2] in (["."], ["./"])]
