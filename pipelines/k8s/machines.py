"""What the machines of Compute Engine offer with their GPUs: more than that is never scheduled.

Machines and their sizes are those of components/core/gpus.yaml.
"""

from collections.abc import Mapping

from components.core.gpus import of_label
from pipelines.k8s.located import fault
from pipelines.k8s.values import GKE_ACCELERATOR, GPU, amount

INSTANCE_TYPE = "node.kubernetes.io/instance-type"


def check_fits(
    selector: Mapping[str, str], gpus: int, asked: Mapping[str, str | None], *at: int | str
) -> None:
    """Refuse requests for more than the machines with so many GPUs have.

    A pod whose node selector names a machine type is not checked.

    Args:
        selector: the pod's node selector.
        gpus: how many it requests.
        asked: quantities of `cpu` and `memory`.
        at: where they are, for the error.

    Raises:
        PydanticCustomError: names the machine.
    """
    kind = of_label(selector.get(GKE_ACCELERATOR, ""))
    if not gpus or kind is None or INSTANCE_TYPE in selector:
        return
    large_enough = [machine for machine in kind.machines if machine.gpus >= gpus]
    if not large_enough:
        largest = max(kind.machines, key=lambda machine: machine.gpus)
        raise fault(f"{gpus}, more than any machine has ({largest.type}: {largest.gpus})", *at, GPU)
    # The fewest GPUs that are enough; of those machines, the one with the most memory.
    machine = min(large_enough, key=lambda machine: (machine.gpus, -machine.memory))
    for name, whole in (("cpu", f"{machine.cpus}"), ("memory", f"{machine.memory}Gi")):
        quantity = asked.get(name)
        if quantity and amount(quantity) >= amount(whole):
            raise fault(
                f"{quantity}, which a node with {gpus} {selector[GKE_ACCELERATOR]} does not have "
                f"({machine.type}: {whole}, of which it keeps a part for itself; a larger "
                f"machine needs {INSTANCE_TYPE} in the nodeSelector)",
                *at,
                name,
            )
