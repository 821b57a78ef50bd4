"""The steps of a pipeline: each with its settings, its Job's resources, retries, and no cache."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.core.hardware import (
    GPU_STEPS,
    PLACED,
    TWO_JOBS,
    WITH_GPUS,
    output_name,
    placed_fields,
)
from pipelines.component import Form, component
from pipelines.form import SECRETS, fields_of
from pipelines.manifests import Jobs
from pipelines.resources import as_light_step, as_stage_step, compiled_hardware, set_variables
from pipelines.stages import CACHE_VARIABLE

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

CACHE = "/cache"
"""Where a volume that keeps base models is mounted."""

RETRIES = 3
"""As many as the Job manifests give a pod (`backoffLimit`)."""


class Steps:
    """Makes the tasks of one pipeline.

    Args:
        jobs: Job manifests by stage.
        form: which settings are parameters of the pipeline.
        parameters: the pipeline's parameters.
        cache_volume: a volume claim that keeps the base models of the GPU steps; "" where a bucket
            does.
    """

    def __init__(
        self, jobs: Jobs, form: Form, parameters: Mapping[str, Any], cache_volume: str = ""
    ) -> None:
        self.jobs, self.form, self.parameters = jobs, form, parameters
        self.cache_volume = cache_volume
        self.secrets = {variable: parameters[name] for variable, name in SECRETS.items()}
        self.placements: dict[str, Mapping[str, Any]] = {}

    def hardware(self, **inputs: Any) -> None:
        """The step that resolves the hardware of the others, which follow it from here on.

        It also asks the hub for the base model, with the token that train has.
        """
        fields = {name: self.parameters[name] for name in fields_of(self.form, "hardware")}
        compiled = compiled_hardware(self.jobs)
        step = component("hardware")(compiled=compiled, **fields, **inputs)
        _pass_every_parameter(step)
        set_variables(step, self.jobs["train"], self.secrets)
        outputs = self.light(step).outputs
        for stage in PLACED:
            self.placements[stage] = {
                name: outputs[output_name(stage, name)] for name in placed_fields(stage)
            }

    def stage(self, stage: str, **inputs: Any) -> "PipelineTask":
        """A stage's task, on the hardware that `hardware` has resolved.

        Args:
            inputs: artifacts, and settings that are not parameters of the pipeline.
        """
        from kfp import kubernetes

        placement = self.placements[stage]
        fields = {name: self.parameters[name] for name in fields_of(self.form, stage)}
        cached = self.cache_volume and stage in GPU_STEPS
        task = component(stage)(**fields | inputs, gpus=placement["gpu_count"])
        # The volumes of a step are chosen when it is compiled: those that a model needs.
        names = [stage, WITH_GPUS] if stage == TWO_JOBS else [stage]
        as_stage_step(task, [self.jobs[name] for name in names], placement, fields, self.secrets)
        if cached:
            kubernetes.mount_pvc(task, pvc_name=self.cache_volume, mount_path=CACHE)
            task.set_env_variable(CACHE_VARIABLE, CACHE)  # the run's state says where results go
        _pass_every_parameter(task)
        # KFP finds cached results by the image's name, the command and the *text* of the inputs.
        # For no step does equal text mean an equal result: documents and questions change under
        # the same gs:// URI, a teacher gives other answers, and a hub id names whatever its owner
        # uploaded last.
        task.set_caching_options(False)
        # The longest duration counts from the start of the first attempt, not between attempts:
        # left at its default of an hour, a step that is preempted after an hour is not retried.
        return task.set_retry(
            RETRIES, backoff_duration="60s", backoff_factor=2, backoff_max_duration="172800s"
        )

    def light(self, task: "PipelineTask") -> "PipelineTask":
        """A task that only reads small files: generate's image and node, but smaller."""
        as_light_step(task, self.jobs["generate"])
        task.set_cpu_request("100m").set_cpu_limit("1")
        task.set_memory_request("256Mi").set_memory_limit("1Gi")
        task.set_caching_options(False)  # no run is among its inputs: all would look the same
        return task.set_retry(RETRIES, backoff_duration="10s", backoff_factor=2)


def _pass_every_parameter(task: "PipelineTask") -> None:
    """Pass the defaults of the component's optional parameters as constants.

    The driver of Kubeflow Pipelines 2.17.0 fills placeholders before it applies a component's
    defaults, and ends the run with `parameter "text_field" not found in executor input`.
    """
    for name, declared in task.component_spec.inputs.items():
        if name not in task.inputs and declared.default is not None:
            task.inputs[name] = declared.default
