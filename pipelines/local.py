"""Run a compiled pipeline on this machine: kfp.local, with a docker container for every step.

Real: the compiled YAML, its commands and wiring, the images, and what the Jobs forbid a container
(network aside, see `run`). Not real: kfp.local minds neither hardware, secrets nor timeouts.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from components.core.errors import ClusterError, ConfigError, RunError

Flags = Mapping[str, Mapping[str, object]]
"""Settings by stage and name, as the config classes spell them."""


def run(
    compiled: Path,
    inputs: Mapping[str, object],
    flags: Flags,
    folder: Path,
    *,
    variant: str,
    seen: Sequence[Path],
) -> Path:
    """Run a compiled pipeline with local folders, offline, as the user who asks.

    Args:
        compiled: the YAML of `raft compile`.
        inputs: parameters of the pipeline.
        flags: settings of single stages. One that the pipeline has a parameter for is given to
            it; any other replaces the constant that the step's task passes.
        folder: receives a folder of the run, with one for every step.
        variant: of the images; `cpu` runs `raft-train:0.1.0-cpu` where `raft-train:0.1.0` is named.
        seen: folders and files, beside `folder`, that containers may read at the same place.

    Returns:
        The folder of the run; artifacts lie in it as STEP/NAME.

    Raises:
        ClusterError: no Docker engine answers.
        ConfigError: an image is not there.
        RunError: a step failed.
    """
    import yaml
    from docker.types import Mount
    from kfp import components, local

    specification, *platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    given = dict(inputs)
    known = specification["root"]["inputDefinitions"]["parameters"]
    graphs = [
        part["dag"]["tasks"]
        for part in (specification["root"], *specification["components"].values())
        if "dag" in part
    ]
    for stage, values in flags.items():
        tasks = [graph[stage] for graph in graphs if stage in graph]
        for name, value in values.items():
            if name in known:
                given[name] = value
            else:
                for task in tasks:
                    task["inputs"]["parameters"][name] = {"runtimeValue": {"constant": value}}
    executors = specification["deploymentSpec"]["executors"].values()
    for executor in executors:
        # The one built here, wherever the manifests say that the pushed ones lie.
        image = executor["container"]["image"].rpartition("/")[2].partition("@")[0]
        executor["container"]["image"] = f"{image.removesuffix(f'-{variant}')}-{variant}"
    # What fails on this machine fails again, and the pauses between attempts are for clusters.
    for graph in graphs:
        for task in graph.values():
            task.pop("retryPolicy", None)
    _check_images({executor["container"]["image"] for executor in executors})

    shutil.rmtree(folder, ignore_errors=True)
    local.init(
        runner=local.DockerRunner(
            entrypoint=[],
            user=f"{os.getuid()}:{os.getgid()}",
            mounts=[Mount(str(path), str(path), type="bind", read_only=True) for path in seen],
            network_mode="none",
            read_only=True,
            tmpfs={"/tmp": ""},  # noqa: S108 (in the container)
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            shm_size="512m",
            environment={"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        ),
        pipeline_root=str(folder),
    )
    pipeline = components.load_component_from_text(yaml.safe_dump_all([specification, *platform]))
    with exit_codes_kept():
        try:
            pipeline(**given)
        except RuntimeError as error:
            raise RunError(str(error), hint="The step's own message is above.") from None
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def _check_images(wanted: set[str]) -> None:
    import docker

    try:
        client = docker.from_env()
        found = {tag for image in client.images.list() for tag in image.tags}
    except docker.errors.DockerException as error:
        raise ClusterError(
            f"no Docker engine answers ({error})",
            hint="Start Docker, or set DOCKER_HOST to the address of an engine.",
        ) from None
    client.close()
    if missing := sorted(wanted - found):
        raise ConfigError(f"no image {', '.join(missing)}", hint="make images VARIANT=cpu")


@contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Keep a container until it was asked how it ended.

    kfp.local 2.17 lets the engine remove it at once, and takes one that is gone for a success.
    """
    from docker.models.containers import Container, ContainerCollection

    start, wait = ContainerCollection.run, Container.wait

    def run_and_keep(self: Any, *words: Any, **options: Any) -> Any:
        return start(self, *words, **options | {"auto_remove": False})

    def wait_and_remove(self: Any, **options: Any) -> Any:
        found = wait(self, **options)
        self.remove()
        return found

    with (
        patch.object(ContainerCollection, "run", run_and_keep),
        patch.object(Container, "wait", wait_and_remove),
    ):
        yield
