"""Storage on local folders, and with the real client against an emulator of GCS."""

import errno
import itertools
import json
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.core import storage
from components.core.errors import ConfigError, DataError, StorageError
from components.core.kubeflow import Step
from components.core.storage import (
    MANIFEST,
    PARTIAL_MANIFEST,
    atomic_write,
    begin_artifact,
    bucket,
    copies,
    fetch,
    find,
    finish_artifact,
    is_up_to_date,
    locked,
    provenance,
    publish,
    put,
    scratch,
    verify,
    with_local_copies,
)
from components.core.storage.bucket import locate
from components.generate import generate
from components.generate.config import GenerateConfig
from components.report import summary
from components.report.summary import SummaryConfig
from components.train.config import TrainConfig
from pipelines.stages import run_stage
from tests.conftest import REPOSITORY, Raft, by_rules
from tests.core.test_kubeflow import executor_input
from tests.gcs import BUCKET, Emulator, artifact, same, upload_files


def test_atomic_write_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.txt"
    with atomic_write(path) as file:
        file.write("whole")
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, "others can read it"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "whole"
    assert [sibling.name for sibling in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write here"), atomic_write(tmp_path / "file/x"):
        pass


def test_a_manifest_guards_itself(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    begin_artifact(folder, "train", settings={"epochs": 3.0})
    finish_artifact(folder)
    whole = (folder / MANIFEST).read_text(encoding="utf-8")
    verify(folder, "--dataset")
    for word, other in (("3.0", "4.0"), ("epochs", "epoch"), ("train", "eval")):
        assert word in whole
        (folder / MANIFEST).write_text(whole.replace(word, other), encoding="utf-8")
        with pytest.raises(DataError, match="its own crc32c differs"):
            verify(folder, "--dataset")


@pytest.mark.parametrize("where", ["local", "gs"])
def test_a_finished_artifact_is_not_destroyed(
    where: str, gcs: Emulator, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "rows") if where == "local" else f"gs://{BUCKET}/run/rows"

    def make(**settings: Any) -> object:
        defaults = {"teacher": "extractive", "documents": str(texts), "distractors": 2}
        return run_stage(GenerateConfig.parse(defaults | {"output": output} | settings))

    def content() -> dict[str, str]:
        return dict(find(output, lambda _: True))

    assert make() is not None
    before = content()
    uploads = len(gcs.uploads)
    assert "next: raft train --dataset" in capfd.readouterr().err
    assert make(documents=f"{texts}/") is None
    assert "up to date: " in capfd.readouterr().err
    with pytest.raises(ConfigError) as refused:
        make(distractors=3, seed=1)
    assert "--distractors was 2 there and is 3 now" in str(refused.value)
    assert "--seed was 0 there and is 1 now" in str(refused.value)
    assert "--overwrite true" in refused.value.hint
    assert content() == before and len(gcs.uploads) == uploads

    manifest = json.loads(next(text for name, text in before.items() if name.endswith(MANIFEST)))
    older = {"files": manifest["files"], "stage": "generate"}
    put(json.dumps(older), f"{output}/{MANIFEST}")
    with pytest.raises(ConfigError, match="an earlier version made it"):
        make()
    put(json.dumps(manifest), f"{output}/{MANIFEST}")

    put("damaged", f"{output}/train.jsonl")
    assert make() is not None, "what is damaged is made again"
    rows = f"{output}/train.jsonl"
    assert content()[rows] == before[rows]
    assert make(distractors=3, overwrite="true") is not None
    assert content()[rows] != before[rows]


@pytest.mark.parametrize("where", ["local", "gs"])
def test_an_artifact_of_an_input_that_was_made_anew(
    where: str, gcs: Emulator, tmp_path: Path
) -> None:
    def dataset(text: str) -> str:
        folder = tmp_path / "dataset"
        begin_artifact(folder)
        (folder / "train.jsonl").write_text(text, encoding="utf-8")
        finish_artifact(folder)
        if where == "local":
            return str(folder)
        publish(folder, f"gs://{BUCKET}/dataset")
        return f"gs://{BUCKET}/dataset"

    adapter = tmp_path / "adapter"
    config = TrainConfig(dataset=dataset("first"), base_model="model", output=str(adapter))
    begin_artifact(adapter, "train", settings=provenance(config))
    finish_artifact(adapter)
    assert is_up_to_date(config)
    dataset("second")
    with pytest.raises(ConfigError, match="--dataset was made again since"):
        is_up_to_date(config)


def test_two_commands_on_one_output(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new" / "rows"
    config = by_rules(texts, output)
    with locked(str(output)):
        for _ in range(2):
            with pytest.raises(StorageError, match="another raft writes to --output .*/rows"):
                run_stage(config)
            begin_artifact(output, "generate")
            finish_artifact(output)
            assert [path.name for path in output.iterdir()] == [MANIFEST]
        (output / MANIFEST).unlink()
    assert not (tmp_path / "new").exists(), "a folder made for the lock alone does not stay"

    # A process that was killed leaves no lock.
    code = (
        "import os, sys; from components.core.storage import locked\n"
        "with locked(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(output)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL and output.exists()
    run_stage(config)

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(str(tmp_path / "network")), locked(str(tmp_path / "network")):
        pass


def test_an_output_that_is_a_file(tmp_path: Path, raft: Raft) -> None:
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--output .*file'?: is a file, not a folder"):
        GenerateConfig.parse(
            {"documents": str(tmp_path), "teacher": "extractive", "output": str(tmp_path / "file")}
        )
    done = raft("demo", "--output", tmp_path / "file")
    assert done.returncode == 2 and "file' is a file" in done.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "keep"


def test_a_folder_made_by_hand_needs_no_manifest(tmp_path: Path) -> None:
    verify(tmp_path, "--dataset")
    with pytest.raises(DataError, match="no such file or folder"):
        verify(tmp_path / "nowhere", "--dataset")


def test_nothing_of_an_artifact_is_left_in_the_next(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    (folder / "unlisted").write_text("a checkpoint", encoding="utf-8")
    begin_artifact(folder)
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == {"unlisted", PARTIAL_MANIFEST}, "the rest is somebody's, and is not removed"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret", encoding="utf-8")
    (tmp_path / "id_rsa").chmod(0o600)
    with pytest.raises(StorageError, match="the folder holds something else"):
        begin_artifact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["id_rsa"]
    assert stat.S_IMODE((tmp_path / "id_rsa").stat().st_mode) == 0o600


def test_leftovers_of_a_killed_attempt_are_not_listed(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    (folder / ".half").write_text("x", encoding="utf-8")
    (folder / ".sweep").mkdir()
    (folder / ".sweep" / "weights").write_text("x", encoding="utf-8")
    begin_artifact(folder)
    finish_artifact(folder)
    assert "weights" not in (folder / MANIFEST).read_text(encoding="utf-8")
    assert not (folder / ".half").exists()


def test_what_an_attempt_with_other_settings_left_is_not_listed(tmp_path: Path) -> None:
    begin_artifact(tmp_path / "a")
    for name in ("model/of-before", "rows.parquet", "checkpoints/1"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("x", encoding="utf-8")
    begin_artifact(tmp_path / "a", keep="checkpoints")
    finish_artifact(tmp_path / "a", without="checkpoints")
    assert '"files": []' in (tmp_path / "a" / MANIFEST).read_text(encoding="utf-8")
    assert (tmp_path / "a" / "checkpoints" / "1").exists()


def test_killed_at_its_very_first_write_the_folder_is_still_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / f".{storage.PARTIAL_MANIFEST}.x7f3").write_text("{", encoding="utf-8")
    begin_artifact(folder)
    assert [path.name for path in folder.iterdir()] == [storage.PARTIAL_MANIFEST]


# ---- gs:// -------------------------------------------------------------------------------------


def test_artifact_to_bucket_and_back(gcs: Emulator, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    publish(folder, "gs://bucket/run/artifact")
    assert gcs.uploads[0].endswith(PARTIAL_MANIFEST) and gcs.uploads[-1].endswith(f"/{MANIFEST}")
    names = ("000.bin", "001.bin", "sub/002.bin", MANIFEST)
    assert gcs.names() == {f"run/artifact/{name}" for name in names}
    fetch("gs://bucket/run/artifact", tmp_path / "copy")
    verify(tmp_path / "copy", "--dataset")
    assert same(folder, tmp_path / "copy")


def test_only_what_changed_is_copied_again(gcs: Emulator, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    publish(folder, "gs://bucket/a")
    fetch("gs://bucket/a", tmp_path / "copy")
    gcs.uploads.clear()
    gcs.downloads.clear()
    publish(folder, "gs://bucket/a")
    fetch("gs://bucket/a", tmp_path / "copy")
    assert gcs.uploads == [] and set(gcs.downloads) == {f"a/{MANIFEST}"}

    (folder / "000.bin").write_bytes(b"changed")
    (folder / "sub" / "002.bin").unlink()
    finish_artifact(folder)
    publish(folder, "gs://bucket/a")
    assert {name for name in gcs.uploads if name.endswith(".bin")} == {"a/000.bin"}
    assert "a/sub/002.bin" not in gcs.names()
    gcs.downloads.clear()
    fetch("gs://bucket/a", tmp_path / "copy")
    assert {name for name in gcs.downloads if name.endswith(".bin")} == {"a/000.bin"}
    assert same(folder, tmp_path / "copy")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An artifact with one file of ten parts, the last of them short."""
    monkeypatch.setattr(copies, "PART", 2**16)
    monkeypatch.setattr(bucket, "TRANSFERS", 2)
    return artifact(tmp_path / "large", 1, 9 * 2**16 + 5)


@pytest.mark.parametrize("after", [0, 1, 7, 10])
def test_a_large_file_goes_on_with_the_parts_that_are_missing(
    gcs: Emulator, large: Path, tmp_path: Path, after: int
) -> None:
    """Refused after so many parts; the last case, when they are to become one object."""
    sent = itertools.count()
    gcs.fault = lambda method, path: (
        (403 if ".parts" in path and method == "POST" and next(sent) >= after else 0)
        or (403 if path.split("?")[0].endswith("/compose") else 0)
    )
    with pytest.raises(StorageError, match="not allowed"):
        publish(large, "gs://bucket/a")
    with pytest.raises(DataError, match="not finished"):
        fetch("gs://bucket/a", tmp_path / "copy")
    gcs.fault = lambda method, path: 0
    publish(large, "gs://bucket/a")
    parts = Counter(name for name in gcs.uploads if ".parts/" in name)
    assert len(parts) == 10 and max(parts.values()) == 1, "a part was sent again"
    assert gcs.names("a/") == {"a/000.bin", "a/manifest.json"}, "parts are taken away"
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(large, tmp_path / "copy")


def test_parts_that_do_not_make_the_file_are_thrown_away(
    gcs: Emulator, large: Path, tmp_path: Path
) -> None:
    gcs.fault = lambda method, path: 403 if path.split("?")[0].endswith("/compose") else 0
    with pytest.raises(StorageError, match="not allowed"):
        publish(large, "gs://bucket/a")
    gcs.fault = lambda method, path: 0
    part = min(gcs.names("a/.parts/"))
    locate("gs://bucket")[0].blob(part).upload_from_string(b"x" * 2**16)
    with pytest.raises(StorageError, match="do not make the file"):
        publish(large, "gs://bucket/a")
    publish(large, "gs://bucket/a")
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(large, tmp_path / "copy")


def test_a_download_that_was_killed_is_not_taken_for_whole(
    gcs: Emulator, large: Path, tmp_path: Path
) -> None:
    publish(large, "gs://bucket/a")
    copy = tmp_path / "copy"
    copy.mkdir()
    whole = (large / "000.bin").read_bytes()
    (copy / "000.bin").write_bytes(whole[: 2**16] + bytes(len(whole) - 2**16))
    fetch("gs://bucket/a", copy)
    assert same(large, copy) and len(gcs.ranges) == 10


@pytest.mark.parametrize(("size", "post"), [(1000, 3), (2**14, 3), (2**14, 6), (2**14, 14)])
def test_two_writers_do_not_mix(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, post: int
) -> None:
    """A second one comes while files are sent, or parts, or when parts become a file."""
    monkeypatch.setattr(bucket, "TRANSFERS", 1)  # nothing else of the first is under way
    monkeypatch.setattr(copies, "PART", 2**12)
    mine, theirs = artifact(tmp_path / "mine", 3, size), artifact(tmp_path / "theirs", 3, 2 * size)

    posts = itertools.count(1)

    def interfere(method: str, path: str) -> int:
        if method == "POST" and next(posts) == post:
            gcs.fault = lambda method, path: 0
            publish(theirs, "gs://bucket/a")
        return 0

    gcs.fault = interfere
    with pytest.raises(StorageError, match="somebody else is writing here"):
        publish(mine, "gs://bucket/a")
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(theirs, tmp_path / "copy")


def test_a_stage_reads_and_writes_a_bucket(gcs: Emulator, texts: Path, tmp_path: Path) -> None:
    upload_files(texts, "docs")
    config = by_rules("gs://bucket/docs", "gs://bucket/run/dataset")
    with with_local_copies(config) as local:
        generate.run(local)
    fetch("gs://bucket/run/dataset", tmp_path / "copy")
    verify(tmp_path / "copy", "--dataset")
    generate.run(by_rules(texts, tmp_path / "direct"))
    for name in ("train.jsonl", "validation.jsonl", "report.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


@pytest.mark.parametrize("left", [MANIFEST, PARTIAL_MANIFEST])
def test_what_another_stage_published_is_left_alone(
    gcs: Emulator, texts: Path, tmp_path: Path, left: str
) -> None:
    begin_artifact(tmp_path / "adapter", "train")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    finish_artifact(tmp_path / "adapter")
    publish(tmp_path / "adapter", "gs://bucket/run/1")
    if left == PARTIAL_MANIFEST:  # the writer was killed
        put((tmp_path / "adapter" / MANIFEST).read_text(), f"gs://bucket/run/1/{left}")
        locate("gs://bucket")[0].blob(f"run/1/{MANIFEST}").delete()
    before = gcs.names("run")
    config = by_rules(texts, "gs://bucket/run/1")
    with (
        pytest.raises(StorageError, match="gs://bucket/run/1: holds what raft train wrote"),
        with_local_copies(config),
    ):
        pytest.fail("the stage began")
    assert gcs.names("run") == before
    with with_local_copies(config.model_copy(update={"output": "gs://bucket/run/10"})) as local:
        generate.run(local)
    with with_local_copies(config.model_copy(update={"output": "gs://bucket/run/10"})) as local:
        generate.run(local)  # its own it may replace


def test_nothing_is_published_when_the_stage_fails(gcs: Emulator, texts: Path) -> None:
    upload_files(texts, "docs")
    config = by_rules("gs://bucket/docs", "gs://bucket/out", distractors=50)
    with pytest.raises(ConfigError, match="--distractors 50"), with_local_copies(config) as local:
        generate.run(local)
    assert gcs.names("out") == set()


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("gs://bucket/nothing", "nothing there"),
        ("gs://no-such-bucket/x", "no such bucket"),
        ("gs:///x", "no bucket named"),
    ],
)
def test_bad_uris(gcs: Emulator, tmp_path: Path, uri: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        fetch(uri, tmp_path / "copy")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no-key.json"))
    with pytest.raises(StorageError, match="no Google Cloud credentials"):
        fetch("gs://bucket/x", tmp_path / "copy")


def test_the_credentials_of_a_person_name_no_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = tmp_path / "application_default_credentials.json"
    login.write_text(json.dumps({"type": "authorized_user", "client_id": "x",
                                 "client_secret": "y", "refresh_token": "z"}))  # fmt: skip
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(login))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    bucket, prefix = locate("gs://bucket/a/b")
    assert (bucket.name, prefix) == ("bucket", "a/b")


def test_single_files_are_found_and_put_in_a_bucket_as_in_a_folder(
    gcs: Emulator, tmp_path: Path
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
        with pytest.raises(
            StorageError, match="//bucket/x: .*:// is not read here .allowed: a local path, gs://"
        ):
            put("{}", location)


def test_the_summary_of_a_run_in_a_bucket_counts_an_attempt_that_failed(
    gcs: Emulator, tmp_path: Path
) -> None:
    root = "gs://bucket/runs/raft/1a2b"
    generate_step = Step.parse(executor_input(f"{root}/generate", dataset="Dataset"))
    with (
        pytest.raises(StorageError, match="gone"),
        generate_step.ledger_on_failure("generate"),
    ):
        raise StorageError("the documents are gone")
    summary_step = Step.parse(executor_input(f"{root}/summary", text="Markdown"))
    folders = summary_step.folders_to_read("summary")
    ledger = summary.run(SummaryConfig(folders=tuple(folders), output=str(tmp_path)))
    assert [entry.failed for entry in ledger.stages] == ["the documents are gone"]
    assert "**generate failed:** the documents are gone" in (tmp_path / "summary.md").read_text()


def test_two_processes_at_one_uri_do_not_share_a_folder(tmp_path: Path) -> None:
    with scratch("input", "gs://bucket/model") as first:
        (first / "weights").write_text("x", encoding="utf-8")
        with scratch("input", "gs://bucket/model") as second:
            assert second != first
        assert (first / "weights").exists() and not second.exists()
    assert not first.exists()
