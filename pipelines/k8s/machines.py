"""What the machines of Compute Engine offer with their GPUs: more than that is never scheduled.

Numbers from https://cloud.google.com/compute/docs/accelerator-optimized-machines; of machines with
a choice of memory, the most.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipelines.k8s.located import fault
from pipelines.k8s.values import GKE_ACCELERATOR, GPU, amount

INSTANCE_TYPE = "node.kubernetes.io/instance-type"


class Machine(NamedTuple):
    """vCPUs and GiB of a machine type; its node keeps a part of both for itself."""

    name: str
    gpus: int
    cpus: int
    memory: int


MACHINES = {
    "nvidia-tesla-a100": (
        Machine("a2-highgpu-1g", 1, 12, 85),
        Machine("a2-highgpu-2g", 2, 24, 170),
        Machine("a2-highgpu-4g", 4, 48, 340),
        Machine("a2-highgpu-8g", 8, 96, 680),
        Machine("a2-megagpu-16g", 16, 96, 1360),
    ),
    "nvidia-a100-80gb": (
        Machine("a2-ultragpu-1g", 1, 12, 170),
        Machine("a2-ultragpu-2g", 2, 24, 340),
        Machine("a2-ultragpu-4g", 4, 48, 680),
        Machine("a2-ultragpu-8g", 8, 96, 1360),
    ),
    "nvidia-h100-80gb": (
        Machine("a3-highgpu-1g", 1, 26, 234),
        Machine("a3-highgpu-2g", 2, 52, 468),
        Machine("a3-highgpu-4g", 4, 104, 936),
        Machine("a3-highgpu-8g", 8, 208, 1872),
    ),
    "nvidia-l4": (
        Machine("g2-standard-32", 1, 32, 128),
        Machine("g2-standard-24", 2, 24, 108),
        Machine("g2-standard-48", 4, 48, 216),
        Machine("g2-standard-96", 8, 96, 432),
    ),
}
"""By GKE's name of the GPU: the largest machine with so many of them, the fewest first."""


def check_fits(
    selector: Mapping[str, str], gpus: int, asked: Mapping[str, str | None], *at: int | str
) -> None:
    """Refuse requests for more than the smallest machine with so many GPUs has.

    A pod whose node selector names another machine type is let alone.

    Args:
        selector: the pod's node selector.
        gpus: how many it asks for.
        asked: quantities of `cpu` and `memory`.
        at: where they stand, for the complaint.

    Raises:
        PydanticCustomError: names the machine.
    """
    machines = MACHINES.get(selector.get(GKE_ACCELERATOR, ""), ())
    if not gpus or not machines or INSTANCE_TYPE in selector:
        return
    machine = next((machine for machine in machines if machine.gpus >= gpus), None)
    if machine is None:
        most = machines[-1]
        raise fault(f"{gpus}, more than any machine has ({most.name}: {most.gpus})", *at, GPU)
    for name, whole in (("cpu", f"{machine.cpus}"), ("memory", f"{machine.memory}Gi")):
        quantity = asked.get(name)
        if quantity and amount(quantity) >= amount(whole):
            raise fault(
                f"{quantity}, which a node with {gpus} {selector[GKE_ACCELERATOR]} does not have "
                f"({machine.name}: {whole}, of which it keeps a part for itself; a larger "
                f"machine needs {INSTANCE_TYPE} in the nodeSelector)",
                *at,
                name,
            )
