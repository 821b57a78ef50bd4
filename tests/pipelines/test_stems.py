"""One stem per stage everywhere, and images that are built from what is locked."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from pipelines.cli import STAGES, raft
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import tasks_of

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
        "tasks": set(tasks_of(pipeline)) - {"summary"},
        "commands": {name for name in raft.commands if name in STAGES},
    }
    assert len(STAGES) == 4
    for kind, names in found.items():
        assert names == set(STAGES), kind


@pytest.mark.parametrize("stage", STAGES)
def test_the_job_carries_the_stem_and_the_version(stage: str, pipeline: dict) -> None:
    text = (BASE / f"{stage}.yaml").read_text()
    job = yaml.safe_load(text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["name"] == f"raft-{stage}"
    assert container["name"] == stage
    assert container["image"] == f"raft-{stage}:{PROJECT['version']}"
    executor = pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]
    assert executor["container"]["image"] == container["image"]
    dockerfile = (REPOSITORY / "images" / stage / "Dockerfile").read_text()
    assert f"--tag {container['image']} " in dockerfile
    user = job["spec"]["template"]["spec"]["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/component"] == stage


def test_every_manifest_opens_with_its_commands_and_is_listed() -> None:
    seen = 0
    for folder in (BASE, BASE / "teacher"):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {path.name for path in folder.glob("*.yaml")}
        assert set(kustomization["resources"]) == files - {"kustomization.yaml"}
        for name in files:
            comment = (folder / name).read_text().split("\napiVersion")[0]
            commands = re.findall(r"^#   (apply|check|remove) +kubectl \S", comment, re.MULTILINE)
            assert commands == ["apply", "check", "remove"], name
            seen += 1
    assert seen == len(list(BASE.rglob("*.yaml"))) == 16


def test_the_dockerfiles_of_train_and_quantize_check_differ_in_the_stage_alone() -> None:
    texts = set()
    for stage in ("train", "quantize-check"):
        lines = (REPOSITORY / "images" / stage / "Dockerfile").read_text().splitlines()[1:]
        # The package goes first: where both are the same, the order does not matter.
        text = "\n".join(lines[4:]).replace(stage.replace("-", "_"), "STAGE")
        texts.add(text.replace(stage, "STAGE"))
    assert len(texts) == 1


LOCKS = [
    "generate/requirements.txt",
    *(
        f"{stage}/requirements-{variant}.txt"
        for stage in ("train", "quantize-check", "eval")
        for variant in ("cpu", "gpu")
    ),
]


def locked_in(lock: str) -> dict[str, str]:
    """Version by name."""
    found = LOCKED.findall((REPOSITORY / "images" / lock).read_text())
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


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_has_hashes_and_satisfies_the_extras(lock: str) -> None:
    locked, text = locked_in(lock), (REPOSITORY / "images" / lock).read_text()
    asked = [Requirement(line) for line in PROJECT["dependencies"]]
    for requirement in [*asked, *requirements("gcs"), *requirements(lock.partition("/")[0])]:
        version = locked[requirement.name.lower()].partition("+")[0]
        assert requirement.specifier.contains(version), requirement
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked) > 20
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in "".join(entries)
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_what_the_images_share_is_a_part_of_each(variant: str) -> None:
    """The layer below all stages that load a model: what it installs, no stage replaces."""
    shared = locked_in(f"models-{variant}.txt")
    assert {"torch", "transformers", "peft"} <= shared.keys()
    for stage in ("train", "quantize-check", "eval"):
        assert shared.items() <= locked_in(f"{stage}/requirements-{variant}.txt").items(), stage
    assert "torch" not in locked_in("generate/requirements.txt")
