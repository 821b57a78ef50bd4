"""The steps of a pipeline: each with its settings, its Job's resources, retries, and no cache."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.core.hardware import Placement, output_name
from pipelines.component import Form, component
from pipelines.hardware import compiled_hardware
from pipelines.manifests import Jobs
from pipelines.resources import with_job_resources

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

RETRIES = 3
"""As many as the Job manifests give a pod (`backoffLimit`)."""


class Steps:
    """Makes the tasks of one pipeline.

    Args:
        jobs: Job manifests by stage.
        form: which settings of each stage are parameters of the pipeline.
        parameters: the pipeline's parameters.
    """

    def __init__(self, jobs: Jobs, form: Form, parameters: Mapping[str, Any]) -> None:
        self.jobs, self.form, self.parameters = jobs, form, parameters

    def hardware(self) -> "PipelineTask":
        """The step that resolves the hardware of the GPU steps."""
        given = {name: self.parameters[name] for name in self.form["hardware"]}
        return self.light(component("hardware")(compiled=compiled_hardware(self.jobs), **given))

    def placement(self, hardware: "PipelineTask", stage: str) -> dict[str, Any]:
        """What the hardware step has resolved for a stage, by field of `Placement`."""
        return {name: hardware.outputs[output_name(stage, name)] for name in Placement.model_fields}

    def stage(
        self, stage: str, placement: Mapping[str, Any] | None = None, **inputs: Any
    ) -> "PipelineTask":
        """A stage's task.

        Args:
            placement: what the hardware step resolved; None takes the Job's own.
            inputs: artifacts, and settings that are not parameters of the pipeline.
        """
        given = {name: self.parameters[name] for name in self.form[stage]} | inputs
        task = with_job_resources(component(stage)(**given), self.jobs[stage], placement)
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
        with_job_resources(task, self.jobs["generate"], light=True)
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
