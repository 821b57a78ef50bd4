"""The images' registry stands in one place, and Jobs, overlays and pipelines follow it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.cli import main
from pipelines.k8s.images import images_of, warn_without_registry
from pipelines.manifests import check_manifests
from pipelines.stages import JOBS
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import job_of, kubectl_kustomize

REGISTRY = "europe-docker.pkg.dev/my-project/raft"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
BARE = [f"raft-{stage}:0.1.0" for stage in JOBS]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of k8s/ that commands read and write, in the folder that they are given in."""
    shutil.copytree(REPOSITORY / "k8s", tmp_path / "k8s")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manifests, "BASE", tmp_path / "k8s" / "base")
    monkeypatch.setattr(manifests, "OVERLAYS", tmp_path / "k8s" / "overlays")
    return manifests.BASE


def compile_with(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leave:
        main(["compile", *arguments])
    return int(leave.value.code or 0)


def images_in(folder: Path) -> dict[str, str]:
    """The image of each stage, as we and as kubectl read it."""
    objects = kubectl_kustomize(folder)
    images = {stage: job.container.image for stage, job in manifests.load_all(folder).items()}
    for stage, image in images.items():
        (container,) = job_of(objects, stage)["spec"]["template"]["spec"]["containers"]
        assert image == container["image"]
    return images


def test_a_registry_reaches_both_pipelines_and_every_manifest(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (base / "kustomization.yaml").read_text()
    command = ("--registry", REGISTRY, "--tag", "0.2.0", "--digest", f"train={DIGEST}")
    assert compile_with(*command) == 0
    assert capsys.readouterr().err.splitlines() == [
        "wrote k8s/base/kustomization.yaml",
        "wrote k8s/base/serve/kustomization.yaml",
        "wrote pipelines/raft.yaml",
        "wrote pipelines/study.yaml",
        "wrote docs/settings.md",
    ]
    images = {stage: f"{REGISTRY}/raft-{stage}:0.2.0" for stage in JOBS}
    images["train"] += f"@{DIGEST}"
    for name in ("raft", "study"):
        assert set(images_of(tmp_path / "pipelines" / f"{name}.yaml")) == set(images.values())
    folders = [base, *manifests.overlays()]
    assert len(folders) == 10
    for folder in folders:
        assert images_in(folder) == images
    server = next(one for one in kubectl_kustomize(base / "serve") if one["kind"] == "Deployment")
    pod = server["spec"]["template"]["spec"]
    served = {one["image"] for one in (*pod["initContainers"], *pod["containers"])}
    assert served == {images["eval"]}
    text = (base / "kustomization.yaml").read_text()
    assert text.startswith(before)
    assert compile_with(*command) == 0
    assert (base / "kustomization.yaml").read_text() == text


def test_what_is_not_given_stays_but_a_digest_belongs_to_its_tag(base: Path) -> None:
    assert compile_with("--registry", REGISTRY, "--tag", "1", "--digest", f"eval={DIGEST}") == 0
    assert compile_with("--digest", f"train={DIGEST}") == 0
    images = images_in(base)
    assert images["eval"] == f"{REGISTRY}/raft-eval:1@{DIGEST}"
    assert images["train"] == f"{REGISTRY}/raft-train:1@{DIGEST}"
    assert compile_with("--tag", "2") == 0
    assert images_in(base)["train"] == f"{REGISTRY}/raft-train:2"
    assert compile_with("--registry", "localhost:5000") == 0
    assert images_in(base)["train"] == "localhost:5000/raft-train:2"


BLOCK = (
    "images: # of everything\n  # ours\n  - name: raft-train\n    newTag: '7' # tried\n"
    "  # another\n  - name: busybox\n    newTag: '1.36'\n"
)
FLOW = (
    "images: [\n  # ours\n  {name: raft-train, newTag: '7'},\n  # another\n"
    "  {name: busybox,\n   newTag: '1.36'},\n]\n"
)


@pytest.mark.parametrize("images", [BLOCK, FLOW], ids=["block", "flow"])
def test_comments_and_other_images_stay(images: str, base: Path) -> None:
    path = base / "kustomization.yaml"
    path.write_text(path.read_text() + images)
    assert compile_with("--tag", "8") == 0
    text = path.read_text()
    for comment in ("  # ours\n", "  # another\n"):
        assert text.count(comment) == 1
    entries = yaml.safe_load(text)["images"]
    assert {entry["name"]: entry["newTag"] for entry in entries} == {
        "busybox": "1.36", **{f"raft-{stage}": "8" for stage in JOBS},
    }  # fmt: skip


def test_compile_alone_writes_no_manifest(base: Path) -> None:
    before = {path: path.read_bytes() for path in base.parent.rglob("*") if path.is_file()}
    assert compile_with() == 0
    assert compile_with("--overlay", "h100") == 0
    assert before == {path: path.read_bytes() for path in base.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--registry", f"https://{REGISTRY}"), f"'https://{REGISTRY}/raft-generate:0' is not"),
        (("--registry", f"{REGISTRY}/"), "is not a pinned image (allowed: name:version or "),
        (("--registry", "a b"), "'a b/raft-generate:0' is not a pinned image"),
        (("--tag", "latest"), "'raft-generate:latest' is not a pinned image (allowed: "),
        (("--tag", "a/b"), "'raft-generate:a/b' is not a pinned image"),
        (("--digest", "train=sha256:1234"), "'raft-train:0@sha256:1234' is not a pinned image"),
        (("--digest", "train"), "'raft-train:0@' is not a pinned image"),
        (("--digest", f"trian={DIGEST}"),
         "--digest 'trian': no such image (allowed: generate, train, quantize-check, eval, gen"),
        (("--registry", "r", "--check"), "--check: not with --registry, --tag or --digest"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_nothing_written(
    arguments: tuple[str, ...], problem: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (base / "kustomization.yaml").read_bytes()
    assert compile_with(*arguments) == 2
    assert problem in capsys.readouterr().err
    assert (base / "kustomization.yaml").read_bytes() == before
    assert not Path("pipelines").exists()


def kubeconfig(path: Path, context: str) -> str:
    entry = {"cluster": "c", "user": "u"}
    config = {
        "current-context": context,
        "contexts": [{"name": context, "context": entry}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize(
    ("context", "images", "warned"),
    [
        ("gke_project_zone_name", BARE, True),
        ("gke_project_zone_name", [f"{REGISTRY}/{image}" for image in BARE], False),
        ("kind-raft", BARE, False),
        ("k3d-raft", BARE, False),
        ("minikube", BARE, False),
        ("docker-desktop", BARE, False),
        ("rancher-desktop", BARE, False),
    ],
)
def test_a_warning_where_no_node_would_find_the_image(
    context: str, images: list[str], warned: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", context))
    warn_without_registry(images)
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {', '.join(sorted(BARE))}: no registry") == warned
    assert (f"and {context} is no local cluster; make push" in error) == warned


def test_check_warns_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "gke"))
    check_manifests([str(manifests.BASE)])
    assert (
        "warning: raft-eval:0.1.0, raft-generate-gpu:0.1.0, raft-generate:0.1.0"
        in capsys.readouterr().err
    )
    several = f"{tmp_path / 'none'}:{tmp_path / 'config'}"
    monkeypatch.setenv("KUBECONFIG", several)
    check_manifests([str(manifests.BASE)])
    assert "and gke is no local cluster" in capsys.readouterr().err
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    check_manifests([str(manifests.BASE)])
    assert capsys.readouterr().err == "1 checked, nothing to fix\n"
    with pytest.raises(ConfigError):
        check_manifests([str(tmp_path / "none")])


def test_submit_warns_before_it_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "gke"))
    arguments = [
        "--set", "documents=gs://b/documents", "--set", "questions=gs://b/questions",
        "--set", "teacher=extractive",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as leave:
        main(["submit", "--host", "http://127.0.0.1:9", *arguments])
    error = capsys.readouterr().err
    assert leave.value.code != 0 and "127.0.0.1:9" in error
    assert error.index("warning: raft-eval:0.1.0, raft-generate") < error.index("127.0.0.1:9")


def test_make_push_writes_the_digests_of_what_it_pushed(tmp_path: Path) -> None:
    """With a docker and a raft that only write down how they are called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(
        '#!/bin/sh\necho "$@" >> calls\n[ "$1" = inspect ] || exit 0\n'
        f'for image; do :; done\necho "other/x@sha256:1"\necho "${{image%:*}}@{DIGEST}"\n'
    )
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".installed").touch()
    raft = venv / "bin" / "raft"
    raft.write_text('#!/bin/sh\necho raft "$@" >> calls\n')
    for program in (docker, raft):
        program.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    installed = venv / ".installed"
    arguments = ["make", "push", f"REGISTRY={REGISTRY}", f"VENV={venv}", "-o", str(installed)]
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    pushed = [call for call in calls if call.startswith("push")]
    assert pushed == [f"push {REGISTRY}/{image}" for image in BARE]
    digests = " ".join(f"--digest {stage}={DIGEST}" for stage in JOBS)
    assert calls[-1] == f"raft compile --registry {REGISTRY} --tag 0.1.0 {digests}"
