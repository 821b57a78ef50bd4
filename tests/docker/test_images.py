"""The four images, built and run: the documented lines, locked-down containers, buckets, faults.

Not tried here: a GPU, and the GPU libraries (`images/check.sh` installs and imports those).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.core.ledger import RunLedger
from components.core.records import Evaluation, read_json
from components.core.storage import MANIFEST, fetch, publish, verify
from components.core.storage.bucket import locate
from components.generate import generate
from components.generate.config import GenerateConfig
from pipelines.demo.world import articles, write_documents, write_questions
from pipelines.stages import STAGES
from tests.conftest import REPOSITORY
from tests.docker.engine import docker
from tests.docker.images import SECRETS
from tests.docker.local import run_in_images
from tests.gcs import Emulator, emulator

pytestmark = pytest.mark.timeout(1800)

VERSION = "0.1.0-cpu"
LOCKED_DOWN = (
    "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--user=12345",
)  # fmt: skip
ARTIFACTS = {
    "generate": "dataset",
    "train": "adapter",
    "quantize-check": "quantization",
    "eval": "evaluation",
}
SHORT = {
    "quantize-check": " --max-rows 16",
}
SCHEME = "gs://bucket"

Ready = Callable[[str], bool]
"""Whether a container has come far enough, by what it said."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """What docs/docker.md puts in the mounted folder: docs/, questions.json and model/."""
    folder = tmp_path_factory.mktemp("inputs")
    folder.chmod(0o755)  # other users may read it
    known = articles(30, seed=3)
    unseen = articles(20, seed=4, exclude={article.title for article in known})
    write_documents(known, folder / "docs")
    write_questions(unseen, 6, 2, 3, folder / "questions.json")
    shutil.copytree(demo_model, folder / "model")
    return folder


def run(
    host: str, stage: str, *flags: object, options: tuple[object, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """One container of a stage, offline unless an option says otherwise."""
    network = () if any("--network" in str(option) for option in options) else ("--network=none",)
    teacher = ()
    if stage == "generate" and not any(str(flag).startswith("--teacher=") for flag in flags):
        teacher = ("--teacher=extractive",)
    words = ("run", "--rm", *network, *options, f"raft-{stage}:{VERSION}", *teacher, *flags)
    return docker(host, *map(str, words))


def documented_lines() -> dict[str, str]:
    """The `docker run` line of each stage in docs/docker.md, for local folders on a CPU."""
    text = (REPOSITORY / "docs" / "docker.md").read_text(encoding="utf-8")
    section = text.split("## With a GPU")[0]
    lines = re.findall(r"^docker run .* raft-([\w-]+):0\.1\.0-cpu .*$", section, re.MULTILINE)
    found = re.findall(r"^docker run .*$", section, re.MULTILINE)
    return dict(zip(lines, found, strict=True))


@pytest.fixture(scope="module")
def alone(images: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the four documented lines leave, each typed as it stands there.

    Answers are cut short: a model that was trained on a few rows does not stop by itself.
    """
    lines = documented_lines()
    assert list(lines) == list(STAGES)
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(inputs, folder / "data")
    for stage, line in lines.items():
        offline = line.replace("docker run", "docker run --network none")  # there is no bridge
        done = subprocess.run(
            offline + SHORT.get(stage, ""),
            shell=True, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"▸ {stage}" in done.stderr
    return folder / "data"


def test_each_container_runs_alone_from_the_documented_line(alone: Path) -> None:
    for name in ARTIFACTS.values():
        verify(alone / name, "--output")
        assert (alone / name).stat().st_uid == os.getuid()
    result = read_json(alone / "evaluation" / "results.json", Evaluation)
    assert [arm.name for arm in result.arms] == ["base", "raft", "base-4bit", "raft-4bit"]
    assert all(arm.n == 6 for arm in result.arms)
    assert (alone / "evaluation" / "report.html").stat().st_size > 10_000


def test_locked_down_all_stages_work(images: str, alone: Path, tmp_path: Path) -> None:
    """As any user, without capabilities, nothing writable but the output and /tmp."""
    tmp_path.chmod(0o777)
    common = (*LOCKED_DOWN, f"--volume={alone}:/data:ro", f"--volume={tmp_path}:/out")
    dataset, model = ("--dataset=/out/dataset",), ("--base-model=/data/model",)
    flags = {
        "generate": ("--documents=/data/docs",),
        "train": (*dataset, *model, "--epochs=1"),
        "quantize-check": (*dataset, *model, "--adapter=/out/adapter", "--max-rows=1",
                           "--max-new-tokens=8"),
        "eval": (
            "--questions=/data/questions.json", *model, "--adapter=/out/adapter", "--arms=raft",
            "--max-questions=2", "--max-new-tokens=8",
        ),
    }  # fmt: skip
    for stage, name in ARTIFACTS.items():
        done = run(images, stage, *flags[stage], f"--output=/out/{name}", options=common)
        assert done.returncode == 0, done.stderr
        verify(tmp_path / name, "--output")
        assert (tmp_path / name).stat().st_uid == 12345


def test_the_committed_pipeline_in_containers_gives_the_bytes_of_the_stages_themselves(
    images: str, inputs: Path, tmp_path: Path
) -> None:
    flags = {
        "generate": {
            "teacher": "extractive",
            "max_chunks": 0,
            "questions_per_chunk": 3,
            "oracle_probability": 1.0,
        },
        "train": {"epochs": 1.0, "batch_size": 8, "gradient_accumulation": 1},
        "quantize-check": {"max_memory_ratio": 0.6, "max_rows": 16, "max_new_tokens": 96},
        "eval": {"max_new_tokens": 96, "batch_size": 50},
    }
    places = {"documents": "docs", "questions": "questions.json", "base_model": "model"}
    given = {name: inputs / place for name, place in places.items()}
    steps = run_in_images("raft", tmp_path / "steps", given, flags)
    here = tmp_path / "dataset"
    generate.run(
        GenerateConfig(
            documents=str(inputs / "docs"),
            output=str(here),
            eval_questions=str(inputs / "questions.json"),
            **flags["generate"],
        )
    )
    for name in ("train.jsonl", "validation.jsonl", "report.json", "README.md"):
        assert (steps / "generate" / "dataset" / name).read_bytes() == (here / name).read_bytes()
    training = json.loads((steps / "train" / "adapter" / "training.json").read_text())
    assert training["settings"]["batch_size"] == 8, "a flag that the pipeline has no parameter for"
    report = (steps / "eval" / "report").read_text(encoding="utf-8")
    assert "raft-4bit" in report
    account = read_json(steps / "summary" / "account" / "ledger.json", RunLedger)
    assert [entry.stage for entry in account.stages] == list(STAGES)


# ---- buckets -----------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[Emulator]:
    with emulator() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


def test_generate_and_eval_read_and_write_a_bucket(
    images: str, alone: Path, bucket: Emulator, tmp_path: Path
) -> None:
    options = (*LOCKED_DOWN, "--network=host", f"--env=STORAGE_EMULATOR_HOST={bucket.url}")
    there, _ = locate(SCHEME)
    for path in (alone / "questions.json", *alone.glob("docs/*"), *alone.glob("model/*")):
        there.blob(str(path.relative_to(alone))).upload_from_filename(str(path))
    publish(alone / "adapter", f"{SCHEME}/adapter")

    made = run(
        images, "generate", f"--documents={SCHEME}/docs", f"--output={SCHEME}/dataset",
        "--max-chunks=0", "--oracle-probability=1", options=options,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    fetch(f"{SCHEME}/dataset", tmp_path / "dataset")
    for name in ("train.jsonl", "validation.jsonl"):
        theirs, ours = (folder / "dataset" / name for folder in (alone, tmp_path))
        assert theirs.read_bytes() == ours.read_bytes()

    judged = run(
        images, "eval", f"--questions={SCHEME}/questions.json", f"--base-model={SCHEME}/model",
        f"--adapter={SCHEME}/adapter", f"--output={SCHEME}/evaluation", "--arms=raft",
        "--max-questions=2", "--max-new-tokens=8", options=options,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert f"evaluation/{MANIFEST}" in bucket.names()
    assert "evaluation/report.html" in bucket.names()

    gone = run(
        images, "generate", f"--documents={SCHEME}/nothing", f"--output={SCHEME}/x",
        options=options,
    )  # fmt: skip
    assert gone.returncode == 2 and "gs://bucket/nothing: nothing there" in gone.stderr


def test_credentials_that_cannot_be_read(images: str, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text("{}")
    key.chmod(0o600)
    done = run(
        images, "generate", "--documents=gs://bucket/docs", "--output=/tmp/dataset",
        options=(*LOCKED_DOWN, f"--volume={key}:/key.json:ro",
                 "--env=GOOGLE_APPLICATION_CREDENTIALS=/key.json"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Permission denied" in done.stderr and "--user" in done.stderr


# ---- faults ------------------------------------------------------------------------------------


def small(host: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`generate` as in docs/docker.md, from /data/docs to /data/dataset."""
    mounted = (f"--volume={folder}:/data", *options)
    flags = ("--documents=/data/docs", "--output=/data/dataset")
    return run(host, "generate", *flags, options=mounted)


def test_a_folder_of_somebody_else_says_what_to_pass(
    images: str, texts: Path, tmp_path: Path
) -> None:
    texts.rename(tmp_path / "docs")
    tmp_path.chmod(0o755)
    done = small(images, tmp_path, "--user=12345")
    assert done.returncode == 2
    assert "cannot write here (Permission denied)" in done.stderr
    assert '--user "$(id -u):$(id -g)"' in done.stderr
    owner = f"--user={os.getuid()}:{os.getgid()}"
    assert small(images, tmp_path, owner).returncode == 0


def test_an_input_of_somebody_else_says_what_to_pass(
    images: str, texts: Path, tmp_path: Path
) -> None:
    texts.rename(tmp_path / "docs")
    (tmp_path / "docs").chmod(0o700)
    tmp_path.chmod(0o777)
    done = small(images, tmp_path, "--user=12345")
    assert done.returncode == 2
    assert "Permission denied: '/data/docs'" in done.stderr
    assert '--user "$(id -u):$(id -g)"' in done.stderr


def test_an_output_that_is_read_only(images: str, texts: Path, tmp_path: Path) -> None:
    texts.rename(tmp_path / "docs")
    output = tmp_path / "out"
    output.mkdir()
    done = small(images, tmp_path, "--user=0", f"--volume={output}:/data/dataset:ro")
    assert done.returncode == 2
    assert "/data/dataset" in done.stderr
    assert "cannot write here (Read-only file system)" in done.stderr


@pytest.mark.parametrize("room", ["16k", "64k"])
def test_no_space_left(images: str, tmp_path: Path, room: str) -> None:
    """At the first file, and in the middle of the rows."""
    write_documents(articles(200, seed=3), tmp_path / "docs")
    done = small(images, tmp_path, "--user=0", f"--tmpfs=/data/dataset:size={room}")
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr and "with room" in done.stderr


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("generate", ("--documents=/data/docs",)),
        ("train", ("--dataset=/data/dataset", "--base-model=/data/model")),
        (
            "quantize-check",
            ("--dataset=/data/dataset", "--base-model=/data/model", "--adapter=/data/adapter"),
        ),
        (
            "eval",
            ("--questions=/data/q.json", "--base-model=/data/model", "--adapter=/data/adapter"),
        ),
    ],
)
def test_an_input_that_is_not_there(images: str, stage: str, flags: tuple[str, ...]) -> None:
    done = run(images, stage, *flags, "--output=/tmp/out", options=LOCKED_DOWN)
    assert done.returncode == 2
    assert re.search(r"error: /data/\w+.*: no such", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_flag_and_help(images: str) -> None:
    for stage in STAGES:
        wrong = run(images, stage, "--seed=soon", "--output=/tmp/out", options=LOCKED_DOWN)
        assert wrong.returncode == 2 and "--seed 'soon'" in wrong.stderr
        usage = run(images, stage, "--help", options=LOCKED_DOWN)
        assert usage.returncode == 0 and f"Usage: raft {stage}" in usage.stdout


def test_a_gpu_is_asked_for_where_there_is_none(images: str, alone: Path) -> None:
    if shutil.which("nvidia-container-cli"):
        pytest.skip("this machine can give containers a GPU")
    done = run(images, "train", "--help", options=("--gpus=all",))
    assert done.returncode == 125
    message = 'could not select device driver "" with capabilities: [[gpu]]'
    assert message in done.stderr
    assert message in (REPOSITORY / "docs" / "docker.md").read_text(encoding="utf-8")


def stopped(host: str, options: tuple[str, ...], words: tuple[str, ...], ready: Ready) -> str:
    """Start a container, stop it once it is `ready`, and return what it said on stderr."""
    started = docker(host, "run", "--detach", *LOCKED_DOWN, *options, *words, check=True)
    name = started.stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while not ready(docker(host, "logs", name).stderr):
            state = docker(host, "inspect", "--format={{.State.Status}}", name).stdout.strip()
            said = docker(host, "logs", name).stderr
            assert state == "running" and time.monotonic() < deadline, said
            time.sleep(0.1)
        before = time.monotonic()
        docker(host, "stop", "--time=60", name, check=True)
        assert time.monotonic() - before < 20, "SIGTERM did not reach the stage"
        said = docker(host, "logs", name).stderr
        code = docker(host, "inspect", "--format={{.State.ExitCode}}", name).stdout.strip()
        assert code == "143", said
        return said
    finally:
        docker(host, "rm", "--force", name)


def test_docker_stop_reaches_the_stage(images: str, alone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a teacher that never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        said = stopped(
            images,
            (f"--volume={alone}:/data:ro", "--network=host"),
            (
                f"raft-generate:{VERSION}", "--documents=/data/docs", "--output=/tmp/out",
                "--teacher=openai", "--teacher-model=x", f"--teacher-endpoint={endpoint}",
            ),
            lambda said: "asking about" in said,
        )  # fmt: skip
    assert "Traceback" not in said


def test_docker_stop_during_training_leaves_a_checkpoint_that_goes_on(
    images: str, alone: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    mounts = (f"--volume={alone}:/data:ro", f"--volume={tmp_path}:/out")
    flags = (
        "--dataset=/data/dataset", "--base-model=/data/model", "--output=/out/adapter",
        "--epochs=8", "--gradient-accumulation=1", "--checkpoint-steps=5",
    )  # fmt: skip
    said = stopped(
        images,
        ("--network=none", *mounts),
        (f"raft-train:{VERSION}", *flags),
        lambda said: any(tmp_path.glob("adapter/checkpoints/checkpoint-*/manifest.json")),
    )
    found = re.search(r"stopped after step (\d+); the same command resumes there", said)
    assert found, said
    step = int(found[1])
    assert (tmp_path / "adapter/checkpoints" / f"checkpoint-{step}" / MANIFEST).exists()
    again = run(images, "train", *flags, options=(*LOCKED_DOWN, *mounts))
    assert again.returncode == 0, again.stderr
    assert f"resuming after step {step}" in again.stderr
    verify(tmp_path / "adapter", "--output")


# ---- what is in them ---------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_left_from_the_build(images: str, stage: str) -> None:
    image = f"raft-{stage}:{VERSION}"
    (described,) = json.loads(docker(images, "image", "inspect", image, check=True).stdout)
    settings = described["Config"]
    labels = {key.rpartition(".")[2]: value for key, value in settings["Labels"].items()}
    assert labels["version"] == VERSION.removesuffix("-cpu")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert settings["Entrypoint"] == ["raft", stage], "not through a shell, which keeps SIGTERM"
    assert settings["User"] == "10001:10001"
    look = (
        "for tool in cc gcc g++ ld make git; do command -v $tool; done; "
        "find / -xdev '(' -name .cache -o -path '/opt/*.whl' -o -name .netrc ')' -print"
    )
    shell = docker(
        images, "run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", image, "-c", look
    )
    assert shell.stdout == ""
    ours = docker(
        images, "run", "--rm", "--network=none", "--entrypoint=python", image, "-c",
        "import components, pathlib\n"
        "for path in pathlib.Path(components.__file__).parent.iterdir():\n"
        "    if path.is_dir() and path.name != '__pycache__': print(path.name)",
    )  # fmt: skip
    rooms = {stage.replace("-", "_"), "core", "report"} | ({"use"} if stage == "eval" else set())
    assert set(ours.stdout.split()) == rooms, "its own stage and no other"


def test_no_layer_holds_a_secret_of_whoever_builds(images: str) -> None:
    """All layers are read, uncompressed and each once, and the configs, which have the history."""
    wanted = {secret.encode() for secret in SECRETS.values()}
    known = b"Adapt a language model to your own documents"
    found = 0  # of what is known to be in each image: the search would find a secret too
    names = [f"raft-{stage}:{VERSION}" for stage in STAGES]
    with subprocess.Popen(
        ["docker", "--host", images, "save", *names], stdout=subprocess.PIPE
    ) as saving:
        assert saving.stdout is not None
        before = b""
        while block := saving.stdout.read(2**24):
            read = before + block
            assert not [secret for secret in wanted if secret in read]
            found += read.count(known)
            before = block[-len(known) + 1 :]
    assert saving.returncode == 0 and found >= len(STAGES)


def test_the_code_lies_above_the_libraries_which_images_share(images: str) -> None:
    layers = {}
    for stage in STAGES:
        image = f"raft-{stage}:{VERSION}"
        listed = docker(images, "history", "--human=false", "--format={{.Size}}", image, check=True)
        code, *below = [int(size) for size in listed.stdout.split() if size != "0"]
        assert code < 3_000_000 < 100_000_000 < sum(below), "newest first"
        (described,) = json.loads(docker(images, "image", "inspect", image, check=True).stdout)
        layers[stage] = described["RootFS"]["Layers"]
    # Above what they share: the stage's own list, its libraries, the code.
    shared = layers["train"][:-3]
    assert len(shared) >= 4
    assert layers["quantize-check"][:-3] == shared == layers["eval"][: len(shared)]
