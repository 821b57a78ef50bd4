"""The kinds of GPU that the project knows, as `gpus.yaml` lists them.

    kinds()["h100"].bf16_tflops

The settings of `--gpu`, `raft plan`, prices, the overlays of GPU kinds and the checks of node
selectors all read this table: a new kind is one entry there.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import Field

from components.core.records import Record

Stage = Literal["train", "quantize-check", "eval"]
"""A stage whose pod has a GPU."""

RESOURCE = "nvidia.com/gpu"
"""What a pod asks for to get whole GPUs; slices of one (MIG) have resources of their own."""

LABEL = "cloud.google.com/gke-accelerator"
"""The label of GKE's nodes that names their kind of GPU."""

MACHINE_LABEL = "node.kubernetes.io/instance-type"

PATH = Path(__file__).with_name("gpus.yaml")


class Price(Record):
    """A price of an hour or a request in USD, with its date and source."""

    usd: float
    date: str
    source: str


class Machine(Record):
    """A machine type of Compute Engine; its node reserves a part of vCPUs and memory."""

    type: str
    gpus: int
    cpus: int
    memory: int


class Pods(Record):
    """What a pod with one GPU asks for. shm: size of its shared memory; flags: by stage."""

    cpu_request: str
    cpu_limit: str
    memory: str
    shm: str
    flags: dict[Stage, list[str]] = Field(default_factory=dict)


class Gpu(Record):
    """A kind of GPU; `gpus.yaml` explains the fields."""

    title: str
    device: str
    gke_label: str
    memory_gib: float
    bf16_tflops: float
    price: Price | None = None
    machines: tuple[Machine, ...] = Field(min_length=1)
    training: dict[str, bool | int]
    pods: Pods
    note: str = ""


class Table(Record):
    """The whole file."""

    teacher_request: Price
    kinds: dict[str, Gpu]
    other_gke_labels: tuple[str, ...]


@cache
def table() -> Table:
    """The file, read once."""
    return Table.model_validate(yaml.safe_load(PATH.read_text(encoding="utf-8")))


def kinds() -> dict[str, Gpu]:
    """The GPUs by the names that `--gpu` takes."""
    return table().kinds


def of_device(name: str) -> Gpu | None:
    """The kind of which the driver reports this name."""
    return next((gpu for gpu in kinds().values() if gpu.device == name), None)


def of_label(label: str) -> Gpu | None:
    """The kind whose nodes have this label on GKE."""
    return next((gpu for gpu in kinds().values() if gpu.gke_label == label), None)


def gke_labels() -> list[str]:
    """All values of the label cloud.google.com/gke-accelerator."""
    return sorted({*(gpu.gke_label for gpu in kinds().values()), *table().other_gke_labels})


if TYPE_CHECKING:
    GpuKind = str
else:
    GpuKind = Literal[("", *kinds())]
