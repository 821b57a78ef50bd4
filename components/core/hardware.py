"""The hardware of a run's GPU steps: what their manifests say, or what the run overrides.

The pipeline starts with this step. Its inputs are what `raft compile` read from the Job manifests,
and the run's parameters; its outputs set GPU count, memory, node selector and tolerations of train,
quantize-check and eval. A parameter that is empty overrides nothing, so an edit of a manifest
holds; one that is not empty overrides every step that `OVERRIDES` names for it.

Kubeflow cannot take an empty amount, so these are outputs of a step, not parameters of the run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from components.core.config import JsonObject, ObjectList, Settings, option, parse_json
from components.core.declaration import Declaration, Output
from components.core.progress import headline, say
from components.core.storage import atomic_write, begin_artifact, finish_artifact

OVERRIDES = {
    "train_gpus": ("train",),
    "memory": ("train", "quantize-check", "eval"),
    "node_selector": ("train", "quantize-check", "eval"),
    "tolerations": ("train", "quantize-check", "eval"),
}
"""The parameters of a run that override manifests, and the steps whose manifests they override."""

FILE = "hardware.json"
GPU_STEPS = ("train", "quantize-check", "eval")
MEMORY = r"[0-9]+(Ki|Mi|Gi|Ti|M|G|T)?"
"""How Kubernetes spells an amount of memory."""

Memory = Annotated[str, Field(pattern=f"^{MEMORY}$", examples=["64Gi"])]
GpuCount = Annotated[str, Field(pattern="^[0-9]+$")]
"""GPUs as text: where a limit comes from a parameter of another type, the driver of Kubeflow
Pipelines gives the pod no GPU, without a message."""


class Placement(BaseModel):
    """What one step asks of the cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_count: GpuCount = "0"
    memory_request: Memory
    memory_limit: Memory
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()


CompiledPlacements = Annotated[
    dict[str, Placement], BeforeValidator(lambda value: parse_json(value, "{}"))
]
"""The placement of each GPU step by its stage, as JSON where it comes as text."""


@dataclass(frozen=True)
class Placements:
    """The placement of each GPU step, by its stage."""

    by_stage: Mapping[str, Placement]

    def __getattr__(self, name: str) -> Any:
        """An output parameter of the step, such as `quantize_check_memory_limit`."""
        for stage, placement in self.by_stage.items():
            for field, value in placement.model_dump().items():
                if name == output_name(stage, field):
                    return value
        raise AttributeError(name)


def output_name(stage: str, field: str) -> str:
    """The step's output parameter that holds a field of a stage's placement."""
    return f"{stage.replace('-', '_')}_{field}"


class HardwareConfig(Settings):
    """The manifests' hardware and a run's overrides."""

    stage: ClassVar[str] = "hardware"

    compiled: CompiledPlacements = option(
        {},
        help="What the Job manifests ask for, by stage, as `raft compile` found it.",
        group="Hardware",
        min_length=0,  # overrides alone can be checked too
    )
    train_gpus: Annotated[str, Field(pattern="^[0-9]*$", examples=["2"])] = option(
        "",
        help="GPUs of the train step, all on one node. Empty: as its manifest says.",
        group="Hardware",
    )
    memory: Annotated[str, Field(pattern=f"^({MEMORY})?$", examples=["64Gi"])] = option(
        "",
        help="Memory of each of train, quantize-check and eval, request and limit. Empty: as each "
        "manifest says.",
        group="Hardware",
    )
    node_selector: JsonObject = option(
        {},
        help="Labels of the nodes for train, quantize-check and eval, as JSON; the label "
        "cloud.google.com/gke-accelerator names the kind of GPU. {}: as each manifest says.",
        group="Hardware",
    )
    tolerations: ObjectList = option(
        (),
        help="Tolerations of train, quantize-check and eval, as a JSON list. []: as each manifest "
        "says.",
        group="Hardware",
    )

    def placements(self) -> Placements:
        """The hardware of each step, with the overrides of this run."""
        return Placements({stage: self._override(stage, p) for stage, p in self.compiled.items()})

    def _override(self, stage: str, placement: Placement) -> Placement:
        values: Mapping[str, Any] = {
            name: getattr(self, name)
            for name, stages in OVERRIDES.items()
            if stage in stages and getattr(self, name)
        }
        fields = {
            "train_gpus": ("gpu_count",),
            "memory": ("memory_request", "memory_limit"),
        }
        update = {
            field: value for name, value in values.items() for field in fields.get(name, (name,))
        }
        return placement.model_copy(update=update)


KINDS = {"node_selector": "object", "tolerations": "list"}
DECLARATION = Declaration(
    HardwareConfig,
    "Resolve what the GPU steps ask for: their manifests' hardware, or this run's overrides.",
    inputs={},
    outputs={
        "hardware": Output("Artifact", "Folder with hardware.json, what each step asks for."),
        **{
            output_name(stage, field): Output(
                KINDS.get(field, "text"), f"What {stage} asks for: {field.replace('_', ' ')}."
            )
            for stage in GPU_STEPS
            for field in Placement.model_fields
        },
    },
)


def run(config: HardwareConfig) -> Placements:
    """Write what each GPU step will ask for."""
    output = Path(config.output)
    placements = config.placements()
    headline("hardware", "what each GPU step asks for")
    begin_artifact(output, config.stage)
    hardware = {stage: placement.model_dump() for stage, placement in placements.by_stage.items()}
    for stage, values in hardware.items():
        say(f"  {stage}: {json.dumps(values)}")
    with atomic_write(output / FILE) as file:
        file.write(json.dumps(hardware, indent=2) + "\n")
    finish_artifact(output)
    return placements
