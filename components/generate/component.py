"""The generate stage as a Kubeflow component: inputs and outputs beyond its settings."""

from components.core.declaration import Declaration, Output
from components.generate.config import GenerateConfig

DECLARATION = Declaration(
    GenerateConfig,
    "Write RAFT rows: questions about documents, answered from an oracle among distractors.",
    inputs={},
    outputs={
        "dataset": Output(
            "Dataset",
            "Training and validation rows, a dataset card, a report of what was dropped.",
        ),
        "card": Output("Markdown", "The dataset card, to read on the run's page."),
    },
)
