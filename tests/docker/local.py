"""Runs compiled pipelines on this machine: kfp.local, with a container for every step.

    make docker-demo        builds the CPU images, then python -m tests.docker.local

Real: the compiled YAML, its commands and wiring, the images, and what the Jobs forbid a container
(but for the network, which is off). Not real: kfp.local minds neither hardware, secrets nor
timeouts, and its backend is not the cluster's.
"""

import argparse
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from docker.models.containers import Container, ContainerCollection
from docker.types import Mount
from kfp import components, local
from kfp.local import task_dispatcher
from kfp.local.orchestrator import task_executor

from pipelines.demo import demo
from pipelines.run import FOLDERS
from tests.conftest import REPOSITORY

PIPELINES = REPOSITORY / "pipelines"
CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['(.+)'\]\}\}")
"""An output of an earlier step, in the place of a value."""
Settings = Mapping[str, Mapping[str, object]]


def run_compiled(
    name: str,
    root: Path,
    arguments: Mapping[str, object],
    constants: Settings,
    attempts: int = 0,
    **options: Any,
) -> Path:
    """Run a committed pipeline; the folder of the run, where artifacts lie as STEP/NAME.

    Args:
        name: raft, study, or the path of another YAML.
        root: receives the folder of the run.
        arguments: parameters of the pipeline.
        constants: settings of single stages. One that the pipeline has a parameter for is given to
            it; any other replaces the constant that the step's task passes.
        attempts: of each step; 0 is as many as the pipeline says.
        options: of the containers, for docker. `images` is a function of an image's name.

    Raises:
        RuntimeError: a step failed.
    """
    path = PIPELINES / (name if "." in name else f"{name}.yaml")
    text = path.read_text(encoding="utf-8")
    specification, platform = yaml.safe_load_all(text)
    given = dict(arguments)
    executors = specification["deploymentSpec"]["executors"].values()
    with_image = [executor["container"] for executor in executors]
    for part in specification["components"].values():
        for stage, task in part.get("dag", {}).get("tasks", {}).items():
            if stage == "hardware":
                compiled = task["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"]
                with_image += [found for found in compiled.values() if "image" in found]
            for setting, value in constants.get(stage, {}).items():
                if setting in specification["root"]["inputDefinitions"]["parameters"]:
                    given[setting] = value
                else:
                    assert setting in task["inputs"]["parameters"]
                    task["inputs"]["parameters"][setting] = {"runtimeValue": {"constant": value}}
        for task in part.get("dag", {}).get("tasks", {}).values():
            if attempts and "retryPolicy" in task:
                task["retryPolicy"]["maxRetryCount"] = attempts - 1
            policy = task.get("triggerPolicy", {})
            for channel, source in task.get("inputs", {}).get("parameters", {}).items():
                if "condition" in policy and (output := source.get("taskOutputParameter")):
                    # As kfp.local 2.17 knows the output of a task beside the condition.
                    known = (
                        f"pipelinechannel--{output['producerTask']}--{output['outputParameterKey']}"
                    )
                    policy["condition"] = policy["condition"].replace(f"'{channel}'", f"'{known}'")
    images = options.pop("images", str)
    for found in with_image:
        if not CHANNEL.search(found["image"]):
            found["image"] = images(found["image"])
    local.init(
        runner=local.DockerRunner(
            entrypoint=[], network_mode="none", shm_size="512m", **options
        ),
        pipeline_root=str(root),
    )  # fmt: skip
    pipeline = components.load_component_from_text(yaml.safe_dump_all([specification, platform]))
    # The pauses between attempts are for clusters.
    no_pause = patch.object(task_executor.time, "sleep", lambda seconds: None)
    with exit_codes_kept(), images_resolved(), no_pause:
        pipeline(**given)
    return folder_of(root)


def folder_of(root: Path) -> Path:
    """The folder of the one run below a root."""
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def run_in_images(name: str, root: Path, inputs: Mapping[str, Path], settings: Settings) -> Path:
    """Run a pipeline in the CPU images that are built here, offline, as the user who asks.

    Args:
        inputs: parameters of the pipeline that are files or folders, which containers may read.
    """
    shutil.rmtree(root, ignore_errors=True)
    return run_compiled(
        name, root, {key: str(path) for key, path in inputs.items()}, settings,
        images=_built_here,
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=[Mount(str(path), str(path), type="bind", read_only=True)
                for path in inputs.values()],
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        environment={"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip


def _built_here(image: str) -> str:
    """The image of this machine, wherever the manifests say that the pushed ones lie."""
    return f"{image.rpartition('/')[2].partition('@')[0].removesuffix('-cpu')}-cpu"


@contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Keep a container until it was asked how it ended.

    kfp.local 2.17 lets the engine remove it at once, and takes one that is gone for a success.
    """
    start, wait = ContainerCollection.run, Container.wait

    def run_and_keep(self: Any, *words: Any, **options: Any) -> Any:
        return start(self, *words, **options | {"auto_remove": False})

    def wait_and_remove(self: Any, **options: Any) -> Any:
        status = wait(self, **options)
        self.remove()
        return status

    with (
        patch.object(ContainerCollection, "run", run_and_keep),
        patch.object(Container, "wait", wait_and_remove),
    ):
        yield


@contextmanager
def images_resolved() -> Iterator[None]:
    """Start a step in the image that another step has named, which kfp.local 2.17 does not."""
    start = task_dispatcher.run_single_task_implementation

    def resolved(*, executor_spec: Any, arguments: dict[str, Any], **options: Any) -> Any:
        if named := CHANNEL.search(executor_spec.container.image):
            unresolved, executor_spec = executor_spec, type(executor_spec)()
            executor_spec.CopyFrom(unresolved)
            executor_spec.container.image = arguments[named[1]]
        return start(executor_spec=executor_spec, arguments=arguments, **options)

    with patch.object(task_dispatcher, "run_single_task_implementation", resolved):
        yield


def demo_in_containers(output: Path, flags: Settings) -> None:
    """The demo's stages as steps, then their artifacts where the stages themselves put them."""
    steps = run_in_images("raft", output / "steps", demo.inputs(output), flags)
    for stage, name in FOLDERS.items():
        shutil.rmtree(output / name, ignore_errors=True)
        (steps / stage / name).rename(output / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=demo_in_containers.__doc__)
    parser.add_argument("--output", type=Path, required=True)
    with patch.object(demo, "run_stages", demo_in_containers):
        demo.run_demo(parser.parse_args().output, seed=0)
