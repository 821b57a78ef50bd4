"""The hardware of a run's GPU steps: from their manifests, or as the run overrides.

The pipeline starts with this step. Its inputs are what `raft compile` read from the Job manifests,
and the run's parameters; its outputs set GPU count, CPU, memory, node selector and tolerations of
train, quantize-check and eval. They set the same for generate, and its image: from its manifest
with GPUs if the teacher is vllm, else from its other one. An empty parameter overrides nothing, so
an edit of a manifest takes effect; a parameter with a value overrides every step that `OVERRIDES`
names for it, and `gpu` overrides all three.

Kubeflow cannot take an empty amount, so these are outputs of a step, not parameters of the run.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from components.core.base_model import BaseModelConfig, check_access, is_hub_id
from components.core.config import (
    JsonObject,
    ObjectList,
    Settings,
    hardware_option,
    input_option,
    option_group,
    parse_json,
)
from components.core.declaration import Declaration, Output
from components.core.errors import CannotTell
from components.core.gpus import LABEL, MACHINE_LABEL, RESOURCE, GpuKind, kinds
from components.core.progress import headline, say
from components.core.records import Record
from components.core.storage import begin_artifact, finish_artifact, put

GPU_STEPS = ("train", "quantize-check", "eval")
OVERRIDES = {
    "gpu": GPU_STEPS,
    "train_gpus": ("train",),
    "teacher_gpus": ("generate",),
    "memory": GPU_STEPS,
    "node_selector": GPU_STEPS,
    "tolerations": GPU_STEPS,
}
"""The parameters of a run that override manifests, and the steps whose manifests they override."""

FIELDS: dict[str, tuple[str, ...]] = {
    "gpu": (),
    "train_gpus": ("gpu_count",),
    "memory": ("memory_request", "memory_limit"),
}
"""What a parameter sets in a placement, where that has another name."""

FILE = "hardware.json"
MEMORY = r"[0-9]+(Ki|Mi|Gi|Ti|M|G|T)?"
"""How Kubernetes spells an amount of memory."""

SecretName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
"""Never empty: the driver of Kubeflow Pipelines fails on a secret without a name."""

Memory = Annotated[str, Field(pattern=f"^{MEMORY}$", examples=["64Gi"])]
GpuCount = Annotated[str, Field(pattern="^[0-9]+$")]
"""GPUs as text: where a limit comes from a parameter of another type, the driver of Kubeflow
Pipelines gives the pod no GPU, without a message."""


class Placement(Record):
    """What one step asks of the cluster. image: of a step that has two of them."""

    image: str = ""
    gpu_count: GpuCount = "0"
    cpu_request: str
    cpu_limit: str
    memory_request: Memory
    memory_limit: Memory
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()

    def scaled(self, gpus: int) -> Self:
        """The same for another number of GPUs, with CPU and memory in proportion."""
        before = int(self.gpu_count)
        if not before or gpus == before:
            return self
        amounts = {name: getattr(self, name) for name in SCALED}
        scaled = {name: _times(text, gpus / before) for name, text in amounts.items()}
        return self.model_copy(update={"gpu_count": str(gpus), **scaled})


MILLIS = {"": 1000, "m": 1}
UNITS = "_KMGT"
SCALED = ("cpu_request", "cpu_limit", "memory_request", "memory_limit")
TWO_JOBS = "generate"
"""The step that has a manifest with GPUs beside its own."""
WITH_GPUS = "generate-gpu"
PLACED = (TWO_JOBS, *GPU_STEPS)
"""The steps that this one places."""


def placed_fields(stage: str) -> list[str]:
    """The fields of a stage's placement."""
    return [name for name in Placement.model_fields if name != "image" or stage == TWO_JOBS]


def _times(quantity: str, factor: float) -> str:
    """A part or a multiple of cores (`8`, `500m`) or of bytes (`64Gi`)."""
    number = quantity.rstrip("KMGTim")
    unit = quantity[len(number) :]
    if unit in MILLIS:
        return f"{float(number) * MILLIS[unit] * factor:.0f}m"
    size = 2 ** (10 * UNITS.index(unit[0])) if unit[1:] else 1000 ** UNITS.index(unit[0])
    return f"{int(number) * size * factor / 2**20:.0f}Mi"


class CompiledPlacement(Placement):
    """The same as a manifest has it, with what its GPUs are, which no run can override."""

    gpu_resource: str = RESOURCE


CompiledPlacements = Annotated[dict[str, CompiledPlacement], BeforeValidator(parse_json)]
"""What each Job manifest asks for by its name, as JSON where it comes as text."""


secret_option = option_group("Secrets")


def output_name(stage: str, field: str) -> str:
    """The step's output parameter that holds a field of a stage's placement."""
    return f"{stage.replace('-', '_')}_{field}"


class HardwareConfig(Settings):
    """The manifests' hardware and a run's overrides."""

    stage: ClassVar[str] = "hardware"

    compiled: CompiledPlacements = hardware_option(
        {}, help="What the Job manifests ask for, by their names, as `raft compile` found it."
    )
    gpu: GpuKind = hardware_option(
        "",
        help="Kind of GPU of train, quantize-check and eval: sets the GKE node label, CPU and "
        "memory, and the training settings that fit it, as components/core/gpus.yaml has them. "
        "Other fields win. Empty: as in each manifest.",
    )
    train_gpus: Annotated[str, Field(pattern="^[0-9]*$", examples=["2"])] = hardware_option(
        "", help="GPUs of the train step, all on one node. Empty: as in its manifest."
    )
    teacher_gpus: Annotated[str, Field(pattern="^[0-9]*$", examples=["4"])] = hardware_option(
        "",
        help="GPUs of the generate step with the teacher vllm, all on one node; its CPU and memory "
        "follow in proportion. Empty: as in k8s/base/generate-gpu.yaml.",
    )
    memory: Annotated[str, Field(pattern=f"^({MEMORY})?$", examples=["64Gi"])] = hardware_option(
        "",
        help="Memory of each of train, quantize-check and eval, request and limit. Empty: as in "
        "each manifest.",
    )
    node_selector: JsonObject = hardware_option(
        {},
        help="Labels of the nodes for train, quantize-check and eval, as JSON; the label "
        "cloud.google.com/gke-accelerator names the kind of GPU. {}: as in each manifest.",
    )
    tolerations: ObjectList = hardware_option(
        (),
        help="Tolerations of train, quantize-check and eval, as a JSON list. []: as in each "
        "manifest.",
    )

    huggingface_secret: SecretName = secret_option(
        "raft-huggingface", help="Secret whose key `token` is the token for gated models."
    )
    teacher_secret: SecretName = secret_option(
        "raft-teacher", help="Secret whose key `api-key` is the key of the teacher's endpoint."
    )
    base_model: str = input_option(
        "", help="Base model whose licence and token are checked, where it is a hub id."
    )
    base_revision: str = BaseModelConfig.model_fields["base_revision"]  # type: ignore[assignment]
    state: str = input_option(
        "",
        help="The run's field `state`, where this step's ledger goes if it fails and the pipeline "
        "root is not on gs://.",
    )
    teacher: str = input_option("", help="The teacher, which has GPUs of its own where it is vllm.")
    teacher_model: str = input_option(
        "", help="Model of the teacher vllm, which is looked for where it is a hub id."
    )
    trials: ObjectList = input_option(
        (), help="Trials of a study, whose base models are checked as well."
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        for stage, placement in self.compiled.items():
            if self.gpu and stage in GPU_STEPS and placement.gpu_resource != RESOURCE:
                raise ValueError(
                    f"--gpu {self.gpu}: the manifest of {stage} asks for {placement.gpu_resource}, "
                    "a slice of a GPU; leave --gpu empty"
                )
        return self

    def placements(self) -> dict[str, CompiledPlacement]:
        """The hardware of each step by its stage, with the overrides of this run."""
        placements = {
            stage: placement.model_copy(update=self._overrides(stage))
            for stage, placement in self.compiled.items()
            if stage in GPU_STEPS
        }
        if self.teacher == "vllm" and WITH_GPUS in self.compiled:
            with_gpus = self.compiled[WITH_GPUS]
            placements[TWO_JOBS] = with_gpus.scaled(int(self.teacher_gpus or with_gpus.gpu_count))
        elif TWO_JOBS in self.compiled:
            placements[TWO_JOBS] = self.compiled[TWO_JOBS]
        return placements

    def outputs(self) -> SimpleNamespace:
        """The same as the step's output parameters, such as `quantize_check_memory_limit`."""
        values = {
            output_name(stage, field): value
            for stage, placement in self.placements().items()
            for field, value in placement.model_dump(include={*placed_fields(stage)}).items()
        }
        return SimpleNamespace(**values)

    def _overrides(self, stage: str) -> dict[str, Any]:
        """The fields of a stage's placement that this run overrides."""
        overrides = _on_gpu(self.compiled[stage], self.gpu) if self.gpu else {}
        for name, stages in OVERRIDES.items():
            if stage in stages and (value := getattr(self, name)):
                overrides |= dict.fromkeys(FIELDS.get(name, (name,)), value)
        return overrides


def _on_gpu(placement: Placement, kind: str) -> dict[str, Any]:
    """What a step requests on a kind of GPU; other node labels stay, except a machine type's."""
    gpu = kinds()[kind]
    others = {key: value for key, value in placement.node_selector.items() if key != MACHINE_LABEL}
    return {
        "gpu_count": placement.gpu_count if int(placement.gpu_count) else "1",
        "cpu_request": gpu.pods.cpu_request,
        "cpu_limit": gpu.pods.cpu_limit,
        "memory_request": gpu.pods.memory,
        "memory_limit": gpu.pods.memory,
        "node_selector": others | {LABEL: gpu.gke_label},
    }


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
            for stage in PLACED
            for field in placed_fields(stage)
        },
    },
)


def run(config: HardwareConfig) -> SimpleNamespace:
    """Write what each step will ask for; check that base model and teacher may be read.

    Raises:
        ModelError: it may not.
    """
    output = Path(config.output)
    headline("hardware", "what each step with GPUs asks for")
    trials = {config.base_model, *(str(trial.get("base_model", "")) for trial in config.trials)}
    models = [(model, config.base_revision, "--base-model") for model in sorted(trials)]
    if config.teacher == "vllm":
        models.append((config.teacher_model, "main", "--teacher-model"))
    for model, revision, flag in models:
        if not is_hub_id(model):
            continue
        try:
            say(f"  {model}: {check_access(model, revision, flag)}")
        except CannotTell as error:  # no reason to stop: `state` may have the model
            say(f"  {model}: {error}")
    begin_artifact(output, config.stage)
    hardware = {stage: values.model_dump() for stage, values in config.placements().items()}
    for stage, values in hardware.items():
        say(f"  {stage}: {json.dumps(values)}")
    put(json.dumps(hardware, indent=2) + "\n", output / FILE)
    finish_artifact(output)
    return config.outputs()
