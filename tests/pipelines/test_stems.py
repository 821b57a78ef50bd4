"""One stem per stage everywhere, and images that are built from what is locked."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pipelines.cli import raft
from pipelines.stages import GPU_TEACHER, JOBS, STAGES
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import tasks_of
from tests.test_house import imports

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
BASE = REPOSITORY / "k8s" / "base"
LOCKED = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", re.MULTILINE)


def test_each_stage_has_its_folder_image_job_task_and_command(pipeline: dict) -> None:
    found = {
        "folders": {
            path.parent.name.replace("_", "-")
            for path in (REPOSITORY / "components").rglob("component.py")
        },
        "images": {path.parent.name for path in (REPOSITORY / "images").rglob("Dockerfile")},
        "locks": {path.parent.name for path in (REPOSITORY / "images").glob("*/requirements*.txt")},
        "jobs": {
            path.stem
            for path in BASE.rglob("*.yaml")
            if next(yaml.safe_load_all(path.read_text()))["kind"] == "Job"
        },
        "tasks": set(tasks_of(pipeline)) - {"summary", "hardware"},
        "commands": {name for name in raft.commands if name in STAGES},
    }
    assert len(STAGES) == 4
    found["jobs"].remove(GPU_TEACHER)  # the second Job of generate
    for kind, names in found.items():
        assert names == set(STAGES), kind


def dockerfile_of(job: str) -> str:
    place = "generate/gpu.Dockerfile" if job == GPU_TEACHER else f"{job}/Dockerfile"
    return (REPOSITORY / "images" / place).read_text()


@pytest.mark.parametrize("name", JOBS)
def test_the_job_carries_the_stem_and_the_version(name: str, pipeline: dict) -> None:
    text = (BASE / f"{name}.yaml").read_text()
    job = yaml.safe_load(text)
    stage = "generate" if name == GPU_TEACHER else name
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["name"] == f"raft-{name}"
    assert container["name"] == stage
    assert container["image"] == f"raft-{name}:{PROJECT['version']}"
    executor = pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]
    image = executor["container"]["image"]
    assert image == container["image"] or (stage == "generate" and "generate_image" in image)
    dockerfile = dockerfile_of(name)
    assert f"--tag {container['image']} " in dockerfile
    user = job["spec"]["template"]["spec"]["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/component"] == name


def test_every_manifest_opens_with_its_commands_and_is_listed() -> None:
    seen = 0
    for folder in (BASE, BASE / "serve"):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {path.name for path in folder.glob("*.yaml")}
        assert set(kustomization["resources"]) == files - {"kustomization.yaml"}
        for name in files:
            comment = (folder / name).read_text().split("\napiVersion")[0]
            commands = re.findall(r"^#   (apply|check|remove) +kubectl \S", comment, re.MULTILINE)
            assert commands == ["apply", "check", "remove"], name
            seen += 1
    assert seen == len(list(BASE.rglob("*.yaml"))) == 17


def test_the_dockerfiles_differ_in_the_stage_alone() -> None:
    """Beside their first lines; generate has no model libraries, eval what vLLM needs."""
    texts = {}
    for name in JOBS:
        text = dockerfile_of(name)
        body = text[text.index("ARG BASE_IMAGE") :]
        for stem in (name, "generate" if name == GPU_TEACHER else name.replace("-", "_")):
            body = body.replace(stem, "STAGE")
        texts[name] = body
    compiler = re.compile(r"# Triton.*?\n    fi\n", re.DOTALL)
    serving = texts["eval"].replace("COPY components/use/ components/use/\n", "")
    assert texts["train"] == texts["quantize-check"] == compiler.sub("", serving)
    assert texts[GPU_TEACHER] == serving
    libraries = re.compile(r"# The libraries.*?(?=COPY --from=code)", re.DOTALL)
    assert libraries.sub("", texts["train"]) == libraries.sub("", texts["generate"])


LOCKS = sorted((REPOSITORY / "images").glob("*/requirements*.txt"))


def shared(lock: Path) -> Path:
    """The lock of the layer below, which all images that load a model have in common."""
    return lock.parents[1] / lock.name.replace("requirements", "models")


def pins(lock: Path) -> dict[str, str]:
    found = LOCKED.findall(lock.read_text())
    return {name.lower().replace("_", "-"): version for name, version in found}


def requirements(extra: str) -> list[Requirement]:
    """What an extra asks for, with the extras that it names unfolded."""
    found = []
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found += [entry for name in requirement.extras for entry in requirements(name)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: f"{lock.parent.name}/{lock.stem}")
def test_the_lock_has_hashes_and_satisfies_the_extras(lock: Path) -> None:
    locked = pins(lock)
    asked = [Requirement(line) for line in PROJECT["dependencies"]]
    asked += [*requirements("gcs"), *requirements(lock.parent.name)]
    if lock.parent.name in ("eval", "generate") and lock.stem.endswith("gpu"):
        asked += requirements("vllm")
    for requirement in asked:
        assert requirement.specifier.contains(locked[requirement.name.lower()]), requirement
    text = lock.read_text()
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked) > 20
    assert all("--hash=sha256:" in entry for entry in entries)
    for hidden in ("://", "--index", "--find-links"):
        assert hidden not in text


def test_images_that_load_a_model_have_the_same_libraries_below() -> None:
    assert len(LOCKS) == 8
    with_model = [lock for lock in LOCKS if lock.stem != "requirements"]
    for lock in with_model:
        below = pins(shared(lock))
        assert below.items() <= pins(lock).items(), lock
        assert below["torch"].endswith("+cpu") == lock.stem.endswith("cpu")
    assert "torch" not in pins(REPOSITORY / "images" / "generate" / "requirements.txt")


def at_the_top(path: Path) -> set[str]:
    """What a file imports of `pipelines` when it is imported itself."""
    top = ast.parse(path.read_text()).body
    found = {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
    found |= {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
    return {name for name in found if name.split(".")[0] == "pipelines"}


def test_an_image_gets_what_the_command_line_imports() -> None:
    """The other commands are imported when they are given, and are not for an image."""
    dockerfile = (REPOSITORY / "images" / "train" / "Dockerfile").read_text()
    words = re.findall(r"^COPY (pipelines/.*) \S+$", dockerfile, re.MULTILINE)
    copied = [REPOSITORY / word for line in words for word in line.split()]
    files = [file for path in copied for file in (path.rglob("*.py") if path.is_dir() else [path])]
    assert len(files) == 8
    for path in files:
        for module in at_the_top(path):
            parts = REPOSITORY / module.replace(".", "/")
            assert {parts.with_suffix(".py"), parts / "__init__.py"} & set(files), (path, module)
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {f"!{path.relative_to(REPOSITORY)}" for path in copied} <= set(ignored)


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_gets_every_room_that_its_code_imports(stage: str) -> None:
    dockerfile = (REPOSITORY / "images" / stage / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY components/(\w+)/ ", dockerfile, re.MULTILINE))
    assert stage.replace("-", "_") in copied
    components = REPOSITORY / "components"
    files = [*components.glob("*.py"), *(p for c in copied for p in (components / c).rglob("*.py"))]
    rooms = {path.name for path in components.iterdir() if (path / "__init__.py").exists()}
    ours = {room.replace("-", "_") for room in STAGES}
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("components.")}
        assert used & rooms - ours <= copied, path
