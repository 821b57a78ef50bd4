"""Whether a step has the GPUs that its manifest requests.

Without them a stage would train or answer on the CPU for days, at the user's expense.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from components.core.base_model import BaseModelConfig
from components.core.config import hardware_option
from components.core.errors import ConfigError

GpuCount = Annotated[str, Field(pattern="^[0-9]*$", examples=["1"])]


class GpuStageConfig(BaseModelConfig):
    """Settings of a stage that loads a base model, for which it is meant to have GPUs."""

    not_part_of_identity: ClassVar[tuple[str, ...]] = ("gpus", "allow_cpu")

    gpus: GpuCount = hardware_option(
        "",
        help="GPUs that the step requires; without them it exits at once. A pipeline sets this. "
        "Empty: one in a Kubernetes pod, none elsewhere.",
    )
    allow_cpu: bool = hardware_option(
        False, help="Run on the CPU if the GPUs that the step requests are missing."
    )


def check_gpus(config: GpuStageConfig) -> None:
    """Refuse to start without the GPUs that the step asks for.

    Raises:
        ConfigError: names how many there are.
    """
    in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    wanted = int(config.gpus or in_pod)
    # Outside a cluster, kfp.local ignores what a step asks for.
    if config.allow_cpu or not wanted or not in_pod:
        return
    present = _count()
    if present < wanted:
        raise ConfigError(
            f"raft {config.stage} needs {wanted} GPU{'s' * (wanted > 1)}, and this pod has "
            f"{present} usable",
            hint="Check the nvidia.com/gpu limit of the manifest, the node's driver, and that the "
            "image is not one for CPUs. --allow-cpu true runs on the CPU.",
        )


def _count() -> int:
    """The GPUs that torch can use."""
    # torch takes seconds to import, and a pod without a device needs no second look.
    if not _devices():
        return 0
    import torch

    return int(torch.cuda.device_count())


class Device(NamedTuple):
    """A GPU of this machine; memory in bytes."""

    name: str
    memory: int


Gpus = list[Device]

ASK = """\
import json, torch
gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
print(json.dumps([[gpu.name, gpu.total_memory] for gpu in gpus]))
"""


def gpus_here() -> Gpus:
    """The GPUs that torch can use, found by another process, so that this one takes no GPU memory.

    Raises:
        ConfigError: torch cannot be asked.
    """
    if not _devices():
        return []
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"torch cannot use this machine's GPUs: {last}")
    return [Device(*device) for device in json.loads(done.stdout)]


def _devices() -> list[Path]:
    return [*Path("/dev").glob("nvidia[0-9]*")]
