import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.core.records import RaftRow, read_jsonl
from components.core.storage import verify
from components.generate import export, generate
from components.generate.config import GenerateConfig
from components.generate.export import PUBLISHED, ExportConfig, read_raft_rows
from tests.conftest import REPOSITORY


@pytest.fixture
def dataset(texts: Path, tmp_path: Path) -> Path:
    generate.run(GenerateConfig(documents=str(texts), output=str(tmp_path / "dataset")))
    return tmp_path / "dataset"


def exported(source: Path, output: Path, form: str, kind: str, **more: str) -> Path:
    export.run(
        ExportConfig.parse(
            {"dataset": str(source), "output": str(output), "format": form, "type": kind, **more}
        )
    )
    verify(output, "--dataset")
    return output


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("hf", list(PUBLISHED)),
        ("completion", ["prompt", "completion"]),
        ("chat", ["messages"]),
        ("eval", ["id", "question", "context", "answer", "oracle_context"]),
    ],
)
def test_datasets_reads_every_format(
    dataset: Path, tmp_path: Path, form: str, columns: list[str], kind: str
) -> None:
    import datasets

    folder = exported(dataset, tmp_path / "out", form, kind)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 9, "validation": 1}
    assert loaded["train"].column_names == columns
    row = loaded["train"][0]
    ours = next(read_jsonl(dataset / "train.jsonl", RaftRow))
    if form == "hf":
        assert RaftRow.model_validate(row).context == ours.context
    if form == "completion":
        assert row == {"prompt": ours.instruction, "completion": ours.cot_answer}
    if form == "chat":
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] == ours.cot_answer
    if form == "eval":
        assert row["answer"] == ours.answer
        assert row["context"] + "\n" + row["question"] == ours.instruction


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_published_files_are_read_back(dataset: Path, tmp_path: Path, kind: str) -> None:
    folder = exported(dataset, tmp_path / "published", "hf", kind)
    found = list(read_raft_rows(folder / f"train.{kind}"))
    ours = list(read_jsonl(dataset / "train.jsonl", RaftRow))
    for theirs, mine in zip(found, ours, strict=True):
        assert theirs.model_dump(include=set(PUBLISHED)) == mine.model_dump(include=set(PUBLISHED))
        assert theirs.answer == ""
    again = exported(folder / f"train.{kind}", tmp_path / "again", "eval", "jsonl")
    first = json.loads((again / "train.jsonl").open(encoding="utf-8").readline())
    assert first["answer"] == ours[0].answer, "read from the chain of thought"


def test_a_system_prompt_opens_every_chat(dataset: Path, tmp_path: Path) -> None:
    told = {"system_prompt": "Quote, then answer."}
    folder = exported(dataset, tmp_path / "out", "chat", "jsonl", **told)
    for line in (folder / "train.jsonl").open(encoding="utf-8"):
        first, *rest = json.loads(line)["messages"]
        assert first == {"role": "system", "content": "Quote, then answer."} and len(rest) == 2


def test_what_holds_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"id": 5}\n', encoding="utf-8")
    (tmp_path / "bad.parquet").write_text("not parquet", encoding="utf-8")
    for name, complaint in (
        ("empty", "no RAFT rows here"),
        ("none.jsonl", "no RAFT rows here"),
        ("bad.jsonl", "bad.jsonl:1: "),
        ("bad.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(DataError, match=complaint):
            exported(tmp_path / name, tmp_path / "out", "hf", "jsonl")


class Hub:
    """The calls of the hub's client that publish files, answered as the hub answers them."""

    def __init__(self) -> None:
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuses = False

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, dict[str, object]]:
        self.tokens.add(token)
        if self.refuses:
            return 403, {"error": "You don't have the rights to create a dataset here"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.private = asked.get("visibility") == "private" or asked.get("private", False)
            return 200, {"url": f"{self.url}/datasets/me/rows"}
        if path == "/api/datasets/me/rows/preupload/main":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": files}
        assert path == "/api/datasets/me/rows/commit/main", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return 200, {"commitUrl": f"{self.url}/datasets/me/rows/commit/1", "commitOid": "1"}

    url = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, value = found.answer(
                self.path.partition("?")[0], body, self.headers.get("Authorization", "")
            )
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield found
        server.shutdown()


def push(dataset: Path, output: Path, hub: Hub) -> "subprocess.CompletedProcess[str]":
    # A process of its own: the client reads HF_HUB_OFFLINE, which tests set, when it is imported.
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "export", "--dataset", dataset, "--output", output,
         "--push-to-hub", "me/rows"],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_s3cret"},
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_rows_are_published_on_the_hub(dataset: Path, tmp_path: Path, hub: Hub) -> None:
    done = push(dataset, tmp_path / "out", hub)
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"train.jsonl", "validation.jsonl"}
    assert hub.files["train.jsonl"] == (tmp_path / "out" / "train.jsonl").read_bytes()
    assert hub.private is True
    assert hub.tokens == {"Bearer hf_s3cret"}
    assert f"published at {hub.url}/datasets/me/rows" in done.stderr


def test_a_hub_that_refuses(dataset: Path, tmp_path: Path, hub: Hub) -> None:
    hub.refuses = True
    done = push(dataset, tmp_path / "out", hub)
    assert done.returncode == 2
    assert "--push-to-hub me/rows: " in done.stderr and "HF_TOKEN" in done.stderr
    assert "hf_s3cret" not in done.stderr + done.stdout and "Traceback" not in done.stderr
    verify(tmp_path / "out", "--dataset")
