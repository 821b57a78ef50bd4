"""The kinds of GPU that the project knows, as `gpus.yaml` lists them.

    kinds()["h100"].bf16_tflops

The profiles of train, `raft plan`, default prices, the overlays of GPU kinds and the checks of node
selectors all read this table: a new kind is one entry there.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["train", "quantize-check", "eval"]
"""A stage whose pod has a GPU."""

PATH = Path(__file__).with_name("gpus.yaml")


class Entry(BaseModel):
    """A part of the table: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(Entry):
    """A price of an hour or a request in USD, with its date and source."""

    usd: float
    date: str
    source: str


class Machine(Entry):
    """A machine type of Compute Engine; its node reserves a part of vCPUs and memory."""

    type: str
    gpus: int
    cpus: int
    memory: int


class Pods(Entry):
    """What a pod with one GPU asks for. shm: size of its shared memory; flags: by stage."""

    cpu_request: str
    cpu_limit: str
    memory: str
    shm: str
    flags: dict[Stage, list[str]] = Field(default_factory=dict)


class Gpu(Entry):
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


class Table(Entry):
    """The whole file."""

    teacher_request: Price
    kinds: dict[str, Gpu]
    other_gke_labels: tuple[str, ...]


@cache
def table() -> Table:
    """The file, read once."""
    return Table.model_validate(yaml.safe_load(PATH.read_text(encoding="utf-8")))


def kinds() -> dict[str, Gpu]:
    """The GPUs by the names that `--profile` takes."""
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
