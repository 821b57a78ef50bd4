"""What both pipelines do to a task: its place in the cluster, its retries, its caching."""

from typing import TYPE_CHECKING

from pipelines.hardware import Hardware, apply, apply_flags, steering
from pipelines.manifests import Jobs

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

RETRIES = 3
"""As many as the Job manifests give a pod (`backoffLimit`)."""


def placed(
    task: "PipelineTask", stage: str, jobs: Jobs, hardware: Hardware | None = None
) -> "PipelineTask":
    """A stage's task on the hardware that its Job manifest asks for, retried when it fails.

    Args:
        hardware: the pipeline's parameters that stand in for what train's manifest says, in every
            step whose own says the same.
    """
    chosen = hardware or Hardware()
    if stage != "train":
        chosen = chosen._replace(train_gpus=None)
    apply(jobs[stage], task, steering(jobs, chosen))
    apply_flags(jobs[stage], task)
    _pass_every_parameter(task)
    # KFP finds cached results by the image's name, the command and the *text* of the inputs. For no
    # step does equal text mean an equal result: documents and questions change under the same
    # gs:// URI, a teacher answers anew, and a hub id names whatever its owner uploaded last.
    task.set_caching_options(False)
    # The longest duration counts from the start of the first attempt, not between attempts: left
    # at its default of an hour, a step that is preempted after an hour is never tried again.
    return task.set_retry(
        RETRIES, backoff_duration="60s", backoff_factor=2, backoff_max_duration="172800s"
    )


def reading(task: "PipelineTask", jobs: Jobs) -> "PipelineTask":
    """A task that only reads small files: the image and the place of generate, but smaller."""
    apply(jobs["generate"], task)
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
