"""Storage that fails, breaks, lies, vanishes or is full, under the real client and stages."""

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.api_core.retry import retry_unary

from components.core import storage
from components.core.errors import AccessError, DataError, RaftError, StorageError
from components.core.storage import bucket, fetch, finish_artifact, publish
from components.generate.config import GenerateConfig
from components.generate.export import ExportConfig
from pipelines.stages import run_stage
from tests.conftest import REPOSITORY, lacking
from tests.faults.conftest import Leave, Tally, refused
from tests.gcs import (
    BUCKET,
    FLIPPED,
    LOST,
    RESET,
    SHORT,
    SILENT,
    Emulator,
    artifact,
    same,
    upload_files,
)
from tests.generate.teacher_server import teacher_server

KIND = "Bad storage"
SHARE = 0.2  # of the requests that fail
FILES = ("train.jsonl", "validation.jsonl", "report.json", "README.md")
PASSING = [503, 429, 408, RESET, LOST, SHORT, FLIPPED]

Fault = Callable[[str, str], int | str]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits a hundredth of the time between its tries."""
    quick = SimpleNamespace(
        sleep=lambda seconds: time.sleep(seconds / 100), monotonic=time.monotonic
    )
    monkeypatch.setattr(retry_unary, "time", quick)


def sometimes(fault: int | str, rng: random.Random) -> Fault:
    lock = threading.Lock()

    def decide(method: str, path: str) -> int | str:
        with lock:
            return fault if rng.random() < SHARE else 0

    return decide


def nth(number: int, fault: int | str, *, from_then_on: bool = False) -> Fault:
    """A fault of one request, or of all from one on."""
    count = itertools.count()

    def decide(method: str, path: str) -> int | str:
        now = next(count)
        return fault if now == number or (from_then_on and now > number) else 0

    return decide


@pytest.fixture
def expected(texts: Path, tmp_path: Path) -> dict[str, bytes]:
    """The dataset of `texts`, made without a bucket."""
    output = tmp_path / "expected"
    run_stage(GenerateConfig(teacher="extractive", documents=str(texts), output=str(output)))
    return {name: (output / name).read_bytes() for name in FILES}


@pytest.mark.fault(
    KIND,
    f"a fifth of all requests answer {', '.join(map(str, PASSING[:3]))}, are reset, lose their "
    "answer, break off half-way or flip a bit; `generate`, then `export`, from and to gs://",
    "both end with the right bytes",
)
@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_pass_cost_nothing(
    gcs: Emulator, texts: Path, expected: dict[str, bytes], tally: Tally, fault: int | str
) -> None:
    upload_files(texts, "docs")
    for number in tally.tries(1):
        rng = random.Random(number)
        gcs.fault = sometimes(fault, rng)
        made, exported = f"gs://{BUCKET}/dataset{number}", f"gs://{BUCKET}/exported{number}"
        run_stage(
            GenerateConfig(teacher="extractive", documents=f"gs://{BUCKET}/docs", output=made)
        )
        run_stage(ExportConfig(dataset=made, output=exported, format="chat"))
        gcs.fault = lambda method, path: 0
        copy = Path(tempfile.mkdtemp()) / "copy"
        fetch(made, copy)
        assert {name: (copy / name).read_bytes() for name in FILES} == expected
        fetch(exported, copy)
        assert (copy / "train.jsonl").read_text().count("\n") == 9


@pytest.mark.fault(
    KIND,
    "each single request of a publication over another, and of a fetch, fails once, in each way",
    "both succeed; the copy is the new artifact",
)
@pytest.mark.parametrize("fault", PASSING)
def test_any_one_request_may_fail(
    gcs: Emulator, tmp_path: Path, tally: Tally, fault: int | str
) -> None:
    old, new = artifact(tmp_path / "old"), artifact(tmp_path / "new", size=1001)
    for number in range(40):
        gcs.fault = lambda method, path: 0
        storage.remove("gs://bucket/a")
        publish(old, "gs://bucket/a")
        requests = itertools.count()
        failing = nth(number, fault)

        def counted(
            method: str, path: str, requests: Iterator[int] = requests, failing: Fault = failing
        ) -> int | str:
            next(requests)
            return failing(method, path)

        gcs.fault = counted
        copy = tmp_path / f"copy{number}"
        publish(new, "gs://bucket/a")
        fetch("gs://bucket/a", copy)
        assert same(copy, new)
        tally.tried(1)
        if next(requests) <= number:
            return
    raise AssertionError("more requests than expected")


@pytest.mark.fault(
    KIND,
    "from each single request of a publication on, every one is forbidden or fails; another reads",
    "the reader gets the old artifact, the new one, or 'not finished', never a mixture; the same "
    "command then finishes it",
)
@pytest.mark.parametrize("fault", [403, 503, RESET])
def test_storage_that_fails_for_good_never_shows_half(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, fault: int | str
) -> None:
    monkeypatch.setattr(bucket, "SECONDS_OF_RETRIES", 0.05)
    old, new = artifact(tmp_path / "old"), artifact(tmp_path / "new", size=1001)
    for number in range(40):
        gcs.fault = lambda method, path: 0
        storage.remove("gs://bucket/a")
        publish(old, "gs://bucket/a")
        gcs.fault = nth(number, fault, from_then_on=True)
        failed = False
        try:
            publish(new, "gs://bucket/a")
        except StorageError as error:
            failed = True
            assert "gs://bucket/a" in str(error) and error.hint and error.exit_code == 2
        gcs.fault = lambda method, path: 0
        copy = tmp_path / f"copy{number}"
        try:
            fetch("gs://bucket/a", copy)
        except DataError as error:
            assert failed and "gs://bucket/a: this artifact is not finished" in str(error)
        else:
            assert same(copy, new) or (failed and same(copy, old))
        publish(new, "gs://bucket/a")
        fetch("gs://bucket/a", copy)
        assert same(copy, new)
        tally.tried(1)
        if not failed:
            return
    raise AssertionError("more requests than expected")


@pytest.mark.fault(
    KIND,
    "a connection is silent for a minute, at each request of a publication and a fetch",
    "left after the seconds of silence that are allowed, and asked again",
)
def test_a_silent_connection_is_left(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    monkeypatch.setattr(bucket, "SECONDS_OF_SILENCE", 0.2)
    folder = artifact(tmp_path / "artifact")
    for number in tally.tries(8):
        gcs.fault = nth(number, SILENT)
        started = time.monotonic()
        publish(folder, f"gs://bucket/{number}")
        fetch(f"gs://bucket/{number}", tmp_path / f"copy{number}")
        assert time.monotonic() - started < 20
        assert same(tmp_path / f"copy{number}", folder)


@pytest.mark.fault(
    KIND,
    "every download flips a bit, for ever",
    "refused, names the object; nothing of it is used; the same command then fetches it",
)
def test_damage_in_transit_is_never_read(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(artifact(tmp_path / "artifact"), "gs://bucket/a")
    gcs.fault = lambda method, path: FLIPPED if "/a/001.bin?" in path else 0
    with pytest.raises(StorageError, match=r"gs://bucket/a/001\.bin: arrived damaged") as error:
        fetch("gs://bucket/a", tmp_path / "copy")
    assert error.value.exit_code == 2
    assert not {"001.bin", "manifest.json"} & {path.name for path in (tmp_path / "copy").iterdir()}
    gcs.fault = lambda method, path: 0
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(tmp_path / "copy", tmp_path / "artifact")


@pytest.mark.fault(
    KIND,
    "an object of an artifact is replaced in the bucket by other bytes of the same size",
    "refused, names the object and what to do",
)
def test_damage_at_rest_is_named(gcs: Emulator, tmp_path: Path) -> None:
    publish(artifact(tmp_path / "artifact"), "gs://bucket/a")
    storage.put("x" * 1000, "gs://bucket/a/001.bin")
    with pytest.raises(DataError, match=r"gs://bucket/a/001\.bin: .*manifest\.json") as error:
        fetch("gs://bucket/a", tmp_path / "copy")
    assert "Run the stage that made" in error.value.hint and error.value.exit_code == 2
    assert not (tmp_path / "copy" / "manifest.json").exists()


@pytest.mark.fault(
    KIND,
    "an object vanishes after it was listed: of an artifact, of a folder of documents, of kept "
    "responses",
    "the artifact is refused by the object's name; the others are read without it",
)
@pytest.mark.parametrize("made_by_hand", [False, True])
def test_an_object_that_vanishes(gcs: Emulator, tmp_path: Path, made_by_hand: bool) -> None:
    publish(artifact(tmp_path / "artifact"), "gs://bucket/a")
    if made_by_hand:
        bucket.locate("gs://bucket")[0].blob("a/manifest.json").delete()

    def vanish(method: str, path: str) -> int:
        if "alt=media" in path and "/a/001.bin?" in path and "a/001.bin" in gcs.names():
            gcs.storage.delete_file(BUCKET, "a/001.bin")
        return 0

    gcs.fault = vanish
    if made_by_hand:
        fetch("gs://bucket/a", tmp_path / "copy")
        assert not (tmp_path / "copy/001.bin").exists() and (tmp_path / "copy/000.bin").exists()
    else:
        with pytest.raises(DataError, match=r"gs://bucket/a/001\.bin: .* missing"):
            fetch("gs://bucket/a", tmp_path / "copy")


def test_kept_responses_that_vanish_are_asked_for_again(gcs: Emulator) -> None:
    for name in ("a", "b"):
        storage.put(name, f"gs://bucket/kept/{name}")

    def vanish(method: str, path: str) -> int:
        if "alt=media" in path and "/kept/a?" in path and "kept/a" in gcs.names():
            gcs.storage.delete_file(BUCKET, "kept/a")
        return 0

    gcs.fault = vanish
    assert dict(storage.find("gs://bucket/kept", lambda name: True)) == {"gs://bucket/kept/b": "b"}


COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "--teacher", "extractive", "--documents", "gs://bucket/in",
        "--output", "gs://bucket/out"],
    "train": [
        "train", "--dataset", "gs://bucket/in", "--base-model", "m", "--output", "gs://bucket/out",
    ],
    "quantize-check": [
        "quantize-check", "--dataset", "gs://bucket/in", "--base-model", "m",
        "--adapter", "gs://bucket/in", "--output", "gs://bucket/out",
    ],
    "eval": [
        "eval", "--questions", "gs://bucket/in", "--base-model", "m", "--adapter", "gs://bucket/in",
        "--output", "gs://bucket/out",
    ],
    "export": ["export", "--dataset", "gs://bucket/in", "--output", "gs://bucket/out"],
    "summary": ["summary", "--folders", "gs://bucket/in", "--output", "gs://bucket/out"],
}  # fmt: skip


@pytest.mark.fault(
    KIND,
    "every command with gs:// where the token has expired (401), access is forbidden (403), or "
    "nothing lies",
    "leaves with 2, names the URI and what to do, no traceback, writes nothing",
)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (401, "out: no Google Cloud credentials are accepted"),
        (403, "out: not allowed"),  # asked before gigabytes are fetched
        (0, "in: nothing "),
    ],
)
def test_no_access_is_the_users_to_mend(
    gcs: Emulator, leave: Leave, command: str, status: int, complaint: str
) -> None:
    gcs.fault = lambda method, path: status
    text = refused(leave(*COMMANDS[command]), f"gs://bucket/{complaint}")
    assert "--debug" not in text and gcs.uploads == []


PUBLISH = """
import sys
from pathlib import Path
from components.core.errors import StorageError
from components.core.storage import publish
for _ in range(int(sys.argv[3])):
    try:
        publish(Path(sys.argv[1]), sys.argv[2])
    except StorageError as error:
        assert "somebody else" in str(error), error
"""


@pytest.mark.fault(
    KIND,
    "two processes write different artifacts to one URI over and over, a third reads",
    "every copy is one of the two, whole; else 'not finished' or 'somebody keeps changing it'",
)
def test_two_writers_and_a_reader(gcs: Emulator, tmp_path: Path, tally: Tally) -> None:
    both = [artifact(tmp_path / "mine"), artifact(tmp_path / "theirs", size=1001)]
    writers = [
        subprocess.Popen([sys.executable, "-c", PUBLISH, str(folder), "gs://bucket/a", "15"],
                         cwd=REPOSITORY)
        for folder in both
    ]  # fmt: skip
    whole = 0
    while any(writer.poll() is None for writer in writers):
        copy = tmp_path / "copy"
        try:
            fetch("gs://bucket/a", copy)
        except (DataError, StorageError):
            pass
        else:
            assert any(same(copy, folder) for folder in both)
            whole += 1
        shutil.rmtree(copy, ignore_errors=True)
        tally.tried(1)
    assert [writer.wait() for writer in writers] == [0, 0]
    publish(both[0], "gs://bucket/a")
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(tmp_path / "copy", both[0])
    tally.note(f"{whole} reads gave a whole copy")


# ---- disks -------------------------------------------------------------------------------------


def _as_root(*command: str) -> bool:
    """Whether a command worked, as root."""
    line = command if os.geteuid() == 0 else ("sudo", "-n", *command)
    try:
        return subprocess.run(line, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for 192 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    owner = f"size=192k,uid={os.geteuid()},mode=755"
    if not _as_root("mount", "-t", "tmpfs", "-o", owner, "tmpfs", str(place)):
        lacking("only root can mount a small disk")
    try:
        yield place
    finally:
        _as_root("umount", "-l", str(place))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with one file of 300 kB of documents, each of two sentences."""
    folder = tmp_path / "many"
    folder.mkdir()
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number in range(3000):
            text = f"Town{number} was founded in {1000 + number}. It lies by the sea, far away."
            file.write(json.dumps({"text": text}) + "\n")
    return folder


def raft(*arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and messages of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *map(str, arguments)],
        capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | environment, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr


def generate(
    documents: object, output: object, *more: object, **environment: str
) -> tuple[int, str]:
    most = () if "--max-chunks" in more else ("--max-chunks", 0)
    teacher = () if "--teacher" in more else ("--teacher", "extractive")
    return raft(
        "generate", *teacher, "--documents", documents, "--text-field", "text",
        "--output", output, *most, *more, **environment,
    )  # fmt: skip


def succeeded(result: tuple[int, str]) -> None:
    assert result[0] == 0, result[1]


@pytest.mark.fault(
    KIND,
    "the disk of --output is full",
    "leaves with 2, names the file; a reader finds nothing finished; with room, the same command "
    "makes it",
)
def test_a_full_disk_under_the_output(disk: Path, many: Path, tally: Tally) -> None:
    for _ in tally.tries(1):
        refused(generate(many, disk / "dataset"), disk / "dataset", "No space left", "room")
        refused(
            raft("export", "--dataset", disk / "dataset", "--output", disk / "x"), "not finished"
        )
        _as_root("mount", "-o", "remount,size=64m", str(disk))
        succeeded(generate(many, disk / "dataset"))
        storage.verify(disk / "dataset", "--dataset")


@pytest.mark.fault(
    KIND,
    "the disk of --output is full where a library writes (safetensors)",
    "leaves with 2, names --output; nothing finished is there",
)
def test_a_full_disk_under_a_library(disk: Path, world_adapter: Path, demo_model: Path) -> None:
    result = raft(
        "merge-adapter", "--base-model", demo_model, "--adapter", world_adapter, "--bits", 4,
        "--output", disk / "x",
    )  # fmt: skip
    refused(result, f"--output {disk / 'x'}", "No space left", "room")
    with pytest.raises(DataError, match="not finished"):
        storage.verify(disk / "x", "--dataset")


@pytest.mark.fault(
    KIND,
    "the disk of temporary files (TMPDIR) is full: in reading documents, in fetching from gs://",
    "leaves with 2, names the place and TMPDIR; with room, the same command works",
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_full_disk_under_temporary_files(
    gcs: Emulator, disk: Path, many: Path, tmp_path: Path, remote: bool, tally: Tally
) -> None:
    if remote:
        upload_files(many, "docs")
    documents = "gs://bucket/docs" if remote else many
    for number in tally.tries(1):
        output = tmp_path / f"out{number}"
        refused(generate(documents, output, TMPDIR=str(disk)), disk, "No space left", "TMPDIR")
        _as_root("mount", "-o", "remount,size=64m", str(disk))
        succeeded(generate(documents, output, TMPDIR=str(disk)))


@pytest.mark.fault(
    KIND,
    "the disk of the kept responses is full in the middle of a paid run",
    "leaves with 2, names the folder; with room, only what was not kept is paid again",
)
def test_a_full_disk_under_the_responses(
    disk: Path, many: Path, tmp_path: Path, tally: Tally
) -> None:
    for number in tally.tries(1):
        with teacher_server() as server:
            line = (
                many, tmp_path / f"out{number}", "--responses", disk / "kept",
                "--teacher", "openai", "--teacher-endpoint", server.endpoint,
                "--teacher-model", "t", "--max-chunks", 600,
            )  # fmt: skip
            refused(generate(*line), disk / "kept", "No space left", "room")
            paid = len(server.seen)
            assert paid > 100
            _as_root("mount", "-o", "remount,size=64m", str(disk))
            succeeded(generate(*line))
            assert len(server.seen) <= 1200 + 16, "only what was under way is paid again"
            tally.note(f"{paid} calls paid before, {len(server.seen) - 1200} twice")


@pytest.mark.fault(
    KIND,
    "--output, or TMPDIR, is on a disk that was mounted read-only, with or without an artifact",
    "leaves with 2, names the place and what to do",
)
@pytest.mark.parametrize("before", [False, True])
def test_a_read_only_disk(
    disk: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave,
    before: bool,
) -> None:  # fmt: skip
    (disk / "dataset").mkdir()
    if before:
        (disk / "dataset" / ".train.jsonl.killed").write_text("what a killed attempt left")
        finish_artifact(disk / "dataset")
    _as_root("mount", "-o", "remount,ro", str(disk))
    result = generate(texts, disk / "dataset", "--overwrite", "true")
    refused(result, disk / "dataset", "Read-only", "--output")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(disk)])
        result = leave("generate", "--teacher", "extractive", "--documents", texts,
                       "--output", tmp_path / "out")  # fmt: skip
    assert "--debug" not in refused(result, "TMPDIR", disk)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit on the size of files, as a quota sets it; for this process and its children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault(
    KIND,
    "no file may grow beyond so many kilobytes (RLIMIT_FSIZE)",
    "leaves with 2, names a path; nothing finished is there",
)
@pytest.mark.parametrize("kilobytes", [1, 20, 200, 800])
def test_files_that_may_not_grow(many: Path, tmp_path: Path, kilobytes: int) -> None:
    with largest_file(kilobytes * 1000):
        result = generate(many, tmp_path / "out", TMPDIR=str(tmp_path))
    refused(result, tmp_path, "File too large")
    with pytest.raises(RaftError, match=r"not finished|no such (file or )?folder"):
        storage.verify(tmp_path / "out", "--dataset")


@pytest.mark.fault(
    KIND,
    "the bucket of kept responses refuses every write in the middle of a paid run",
    "leaves with 2, says where what was paid is kept; the same command pays nothing again",
)
def test_paid_responses_that_cannot_be_published_are_not_lost(
    gcs: Emulator, texts: Path, tmp_path: Path
) -> None:
    from components.generate import generate as stage

    gcs.fault = lambda method, path: 403 if method == "POST" else 0
    with teacher_server() as server:
        config = GenerateConfig(
            documents=str(texts), output=str(tmp_path / "out"), teacher="openai",
            teacher_endpoint=server.endpoint, teacher_model="t", responses="gs://bucket/kept",
        )  # fmt: skip
        with pytest.raises(AccessError, match="gs://bucket/kept.*not allowed") as error:
            stage.run(config)
        assert len(server.seen) == 20 and "Paid responses are kept in" in error.value.hint
        gcs.fault = lambda method, path: 0
        stage.run(config)
        assert len(server.seen) == 20
