"""The steps that need no GPU and little memory, as Kubeflow components: declarations only.

They run in the lightest image that there is: the one of generate.
"""

from typing import Any, List  # noqa: UP035 (kfp knows no other spelling)

from kfp import dsl

from pipelines.component import EMPTY, image, with_signature


def _step(
    name: str, command: str, output: str, description: str, **arguments: tuple[Any, str]
) -> Any:
    """A component that runs a command; `output` names the artifact that its `--output` is."""
    signature = {key: (kind, EMPTY, text) for key, (kind, text) in arguments.items()}

    @with_signature(name, description, signature)
    def build(**given: Any) -> dsl.ContainerSpec:
        status = ["--status", given["status"]] if "status" in given else []
        step = ["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
        return dsl.ContainerSpec(
            image=image("generate"),
            command=["raft", command],
            args=[*status, "--output", given[output].path, *step],
        )

    return dsl.container_component(build)


summary = _step(
    *("summary", "summary", "account"),
    "Sum up the run, however it ended: results, time, cost, and what failed.",
    status=(dsl.PipelineTaskFinalStatus, "How the run ended."),
    text=(dsl.Output[dsl.Markdown], "The summary, to read on the run's page."),
    account=(dsl.Output[dsl.Artifact], "Folder with the summary and the run's cost ledger."),
)
compare = _step(
    *("compare", "summary", "comparison"),
    "Set the evaluations of several models and settings side by side.",
    evaluations=(dsl.Input[List[dsl.Artifact]], "Folders of eval."),  # noqa: UP006
    report=(dsl.Output[dsl.HTML], "The figure and the table, to read on the run's page."),
    comparison=(dsl.Output[dsl.Artifact], "Folder with the same."),
)
merge = _step(
    *("merge", "merge", "dataset"),
    "Join the datasets that several generate steps wrote: the rows of a single one.",
    shards=(dsl.Input[List[dsl.Dataset]], "Datasets of all shards."),  # noqa: UP006
    dataset=(
        dsl.Output[dsl.Dataset],
        "Training and validation rows, a dataset card, a report of what was dropped.",
    ),
    card=(dsl.Output[dsl.Markdown], "The dataset card, to read on the run's page."),
)
