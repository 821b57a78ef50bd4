"""The steps that need no GPU and little memory, as Kubeflow components: declarations only.

They run in the lightest image that there is: the one of generate.
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from typing import List  # noqa: UP035 (kfp knows no other spelling)

from kfp import dsl

from pipelines.component import image

EXECUTOR_INPUT = ("--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER)


@dsl.container_component
def summary(
    status: dsl.PipelineTaskFinalStatus,
    text: dsl.Output[dsl.Markdown],
    account: dsl.Output[dsl.Artifact],
) -> dsl.ContainerSpec:
    """Sum up the run, however it ended: results, time, cost, and what failed.

    Args:
        status: How the run ended.
        text: The summary, to read on the run's page.
        account: Folder with the summary and the run's cost ledger.
    """
    return dsl.ContainerSpec(
        image=image("generate"),
        command=["raft", "summary"],
        args=["--status", status, "--output", account.path, *EXECUTOR_INPUT],
    )


@dsl.container_component
def compare(
    evaluations: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    report: dsl.Output[dsl.HTML],
    comparison: dsl.Output[dsl.Artifact],
) -> dsl.ContainerSpec:
    """Set the evaluations of several models and settings side by side.

    Args:
        evaluations: Folders of eval.
        report: The figure and the table, to read on the run's page.
        comparison: Folder with the same.
    """
    return dsl.ContainerSpec(
        image=image("generate"),
        command=["raft", "summary"],
        args=["--output", comparison.path, *EXECUTOR_INPUT],
    )


@dsl.container_component
def merge(
    shards: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Join the datasets that several generate steps wrote: the rows of a single one.

    Args:
        shards: Datasets of all shards.
        dataset: Training and validation rows, a dataset card, a report of what was dropped.
        card: The dataset card, to read on the run's page.
    """
    return dsl.ContainerSpec(
        image=image("generate"),
        command=["raft", "merge"],
        args=["--output", dataset.path, *EXECUTOR_INPUT],
    )
