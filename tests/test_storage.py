"""Storage on local folders, and with the real client against an emulator of GCS."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import summary
from components.errors import DataError, StorageError
from components.generate import generate
from components.generate.config import GenerateConfig
from components.kubeflow import Step
from components.storage import (
    atomic_write,
    download,
    find,
    localized,
    put,
    seal,
    upload,
    verify,
)
from components.summary import SummaryConfig


def test_atomic_write_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.txt"
    with atomic_write(path) as file:
        file.write("whole")
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, "others can read it"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "whole"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write here"), atomic_write(tmp_path / "file/x"):
        pass


def artifact(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("first", encoding="utf-8")
    (folder / "sub" / "b.txt").write_text("second", encoding="utf-8")
    seal(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_text("sec", encoding="utf-8"), "has 3 bytes"),
        (lambda path: path.write_text("sekond", encoding="utf-8"), "damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, complaint: str) -> None:
    folder = artifact(tmp_path / "artifact")
    verify(folder, "--dataset")
    damage(folder / "sub" / "b.txt")
    with pytest.raises(DataError, match=rf"sub/b\.txt: .*{complaint}"):
        verify(folder, "--dataset")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    manifest = folder / "manifest.json"
    text = manifest.read_text(encoding="utf-8").replace("sub/b.txt", "../b.txt")
    manifest.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="outside the artifact"):
        verify(folder, "--dataset")


def test_a_folder_made_by_hand_needs_no_manifest(tmp_path: Path) -> None:
    verify(tmp_path, "--dataset")
    with pytest.raises(DataError, match=r"no such folder"):
        verify(tmp_path / "nowhere", "--dataset")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket on an emulator of GCS that the real client talks to."""
    from gcp_storage_emulator.server import create_server
    from google.cloud import storage

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        port = server._api._httpd.socket.getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        yield storage.Client().bucket("bucket")
    finally:
        server.stop()


def test_folder_to_bucket_and_back(bucket: Any, tmp_path: Path) -> None:
    upload(artifact(tmp_path / "artifact"), "gs://bucket/run/artifact")
    download("gs://bucket/run/artifact", tmp_path / "copy")
    verify(tmp_path / "copy", "--dataset")
    assert (tmp_path / "copy" / "sub" / "b.txt").read_text(encoding="utf-8") == "second"


def test_a_stage_reads_and_writes_a_bucket(bucket: Any, texts: Path, tmp_path: Path) -> None:
    upload(texts, "gs://bucket/docs")
    config = GenerateConfig(documents="gs://bucket/docs", output="gs://bucket/run/dataset")
    with localized(config) as local:
        generate.run(local)
    download("gs://bucket/run/dataset", tmp_path / "copy")
    verify(tmp_path / "copy", "--dataset")
    direct = GenerateConfig(documents=str(texts), output=str(tmp_path / "direct"))
    generate.run(direct)
    for name in ("train.jsonl", "validation.jsonl", "report.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


def test_nothing_is_published_when_the_stage_fails(bucket: Any, texts: Path) -> None:
    upload(texts, "gs://bucket/docs")
    config = GenerateConfig(documents="gs://bucket/docs", output="gs://bucket/out", distractors=50)
    with pytest.raises(ValueError, match="--distractors 50"), localized(config) as local:
        generate.run(local)
    assert list(bucket.list_blobs(prefix="out")) == []


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("gs://bucket/nothing", "nothing there"),
        ("gs://no-such-bucket/x", "no such bucket"),
        ("gs:///x", "no bucket named"),
    ],
)
def test_bad_uris(bucket: Any, tmp_path: Path, uri: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        download(uri, tmp_path / "copy")


def test_single_files_are_found_and_put_in_a_bucket_as_in_a_folder(
    bucket: Any, tmp_path: Path
) -> None:
    for root in ("gs://bucket/runs/1", str(tmp_path / "1")):
        put("{}", f"{root}/train/adapter/ledger.json")
        put("other", f"{root}/train/adapter/weights")
        assert dict(find(root, lambda name: name == "ledger.json")) == {
            f"{root}/train/adapter/ledger.json": "{}"
        }
    put("{}", "gs://bucket/runs/10/ledger.json")
    assert len(list(find("gs://bucket/runs/1", bool))) == 2, "not those of the run 10"
    for location in ("minio://bucket/x", "s3://bucket/x"):
        with pytest.raises(StorageError, match="only local paths and gs://"):
            put("{}", location)


def test_the_summary_of_a_run_in_a_bucket_counts_an_attempt_that_failed(
    bucket: Any, tmp_path: Path
) -> None:
    root = "gs://bucket/root/raft/1a2b"
    place = {"uri": f"{root}/generate/7c/dataset"}
    told = {"outputs": {"artifacts": {"dataset": {"artifacts": [place]}}, "outputFile": "x"}}
    with (
        pytest.raises(StorageError, match="gone"),
        Step.parse(json.dumps(told)).accounted("generate"),
    ):
        raise StorageError("the documents are gone")
    place["uri"] = f"{root}/summary/9f/text"
    folders = Step.parse(json.dumps(told)).folders_to_read("summary")
    account = summary.run(SummaryConfig(folders=tuple(folders), output=str(tmp_path)))
    assert [entry.failed for entry in account.stages] == ["the documents are gone"]
    assert "**generate failed:** the documents are gone" in (tmp_path / "summary.md").read_text()
