"""What values in manifests may be: quantities, images, labels, node selectors.

They must be what the API server accepts. Where a mistake would show only as a pod that waits for
ever, fewer are allowed: labels of the nodes that GKE has, and no more than the machines of Compute
Engine offer with their GPUs (components/core/gpus.yaml).
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from components.core.gpus import LABEL, MACHINE_LABEL, PATH, RESOURCE, gke_labels, of_label
from components.core.hardware import MEMORY
from pipelines.k8s.located import fault, meant, short_path

LABELS = Path(__file__).parents[2] / "k8s" / "labels.txt"

SLICE = re.compile(r"nvidia\.com/mig-[1-9]g\.[0-9]+gb(\.me)?")
"""A slice of a GPU as a resource of its own, as NVIDIA's device plugin names it (MIG, mixed)."""

GKE = "cloud.google.com/"


def _spelled(pattern: str, allowed: str, what: str = "a quantity") -> BeforeValidator:
    def check(value: object) -> str:
        if re.fullmatch(pattern, str(value)) is None:
            raise ValueError(f"not {what} (allowed: {allowed})")
        return str(value)

    return BeforeValidator(check)


Cpu = Annotated[str, _spelled(r"[0-9]+m|[0-9]+(\.[0-9]+)?", "cores such as 8, 0.5 or 500m")]
"""Cores, or thousandths of one."""

Bytes = Annotated[str, _spelled(MEMORY, "bytes such as 64Gi or 512Mi")]
"""Bytes with a binary or decimal suffix."""

COUNT = "[1-9][0-9]*"

Count = Annotated[int, _spelled(COUNT, "whole GPUs, at least 1")]
"""GPUs, which Kubernetes hands out whole."""


def amount(quantity: object) -> Decimal:
    """The number that a quantity stands for: `500m` is 0.5, `1Ki` is 1024."""
    from kubernetes.utils import parse_quantity

    return Decimal(parse_quantity(quantity))


IMAGE = (
    r"(?!.*//)[a-z0-9]([\w.:/-]*[\w-])?(:(?!latest$)[\w][\w.-]{0,127}(@sha256:[0-9a-f]{64})?"
    r"|@sha256:[0-9a-f]{64})"
)
PINNED = "name:version or name@sha256:digest, never latest"

Image = Annotated[str, _spelled(IMAGE, PINNED, "a pinned image")]

WORD = r"^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$"

Labels = dict[str, Annotated[str, Field(pattern=WORD)]]


def _check_selector(selector: dict[str, str]) -> dict[str, str]:
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    labels = [line for line in lines if line.startswith(GKE)]
    for key, value in selector.items():
        if key.startswith(GKE):
            _check_known(key, "label of GKE", labels, LABELS, key)
        if key == LABEL:
            _check_known(value, "GPU of GKE", gke_labels(), PATH, key)
    return selector


def _check_known(word: str, what: str, known: Sequence[str], file: Path, key: str) -> None:
    """Refuse what GKE gives no node; a line in the file adds one."""
    if word not in known:
        raise fault(
            f"{word!r} is no {what}{meant(word, known)} (allowed: {', '.join(known)}; "
            f"a new one needs a line in {short_path(file)})",
            key,
        )


Selector = Annotated[Labels, AfterValidator(_check_selector)]


def check_fits(
    selector: Mapping[str, str], gpus: int, requests: Mapping[str, str | None], *at: int | str
) -> None:
    """Refuse requests for more than the machines with so many GPUs have.

    A pod whose node selector names a machine type is not checked.

    Args:
        selector: the pod's node selector.
        gpus: how many it requests.
        requests: quantities of `cpu` and `memory`.
        at: where they are, for the error.

    Raises:
        PydanticCustomError: names the machine.
    """
    kind = of_label(selector.get(LABEL, ""))
    if not gpus or kind is None or MACHINE_LABEL in selector:
        return
    large_enough = [machine for machine in kind.machines if machine.gpus >= gpus]
    if not large_enough:
        largest = max(kind.machines, key=lambda machine: machine.gpus)
        raise fault(
            f"{gpus}, more than any machine has ({largest.type}: {largest.gpus})", *at, RESOURCE
        )
    # The fewest GPUs that are enough; of those machines, the one with the most memory.
    machine = min(large_enough, key=lambda machine: (machine.gpus, -machine.memory))
    for name, whole in (("cpu", f"{machine.cpus}"), ("memory", f"{machine.memory}Gi")):
        quantity = requests.get(name)
        if quantity and amount(quantity) >= amount(whole):
            raise fault(
                f"{quantity}, which a node with {gpus} {selector[LABEL]} does not have "
                f"({machine.type}: {whole}, of which it keeps a part for itself; a larger "
                f"machine needs {MACHINE_LABEL} in the nodeSelector)",
                *at,
                name,
            )
