"""The steps that need no GPU and little memory, as Kubeflow components: declarations only.

They run in the lightest image that there is: the one of generate.
"""

from typing import Any, List  # noqa: UP035 (kfp knows no other spelling)

from kfp import dsl

from components.core.config import flag
from pipelines.component import EMPTY, image, with_signature

SETTINGS = ("status", "state")
"""Arguments that are settings of the command, not artifacts."""


def _step(
    name: str, command: str, output: str, description: str, **arguments: tuple[Any, str]
) -> Any:
    """A component that runs a command; `output` names the artifact that its `--output` is."""
    signature = {key: (kind, EMPTY, text) for key, (kind, text) in arguments.items()}

    @with_signature(name, description, signature)
    def build(**values: Any) -> dsl.ContainerSpec:
        flags = [word for key in SETTINGS if key in values for word in (flag(key), values[key])]
        step = ["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
        return dsl.ContainerSpec(
            image=image("generate"),
            command=["raft", command],
            args=[*flags, "--output", values[output].path, *step],
        )

    return dsl.container_component(build)


summary = _step(
    *("summary", "summary", "account"),
    "Sum up the run, however it ended: results, time, cost, and what failed.",
    status=(dsl.PipelineTaskFinalStatus, "How the run ended."),
    state=(str, "The run's field of this name, where copies of its results may be."),
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
