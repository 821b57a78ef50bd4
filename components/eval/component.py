"""The eval stage as a Kubeflow component: inputs and outputs beyond its settings."""

from components.core.declaration import Declaration, Output
from components.eval.config import EvalConfig

DECLARATION = Declaration(
    EvalConfig,
    "Score the base and the tuned model, in 16 and in 4 bits, on the same questions.",
    inputs={"dataset": "Dataset", "adapter": "Model", "quantization": "Artifact"},
    outputs={
        "evaluation": Output(
            "Artifact", "Scores with confidence intervals, every generation, the report."
        ),
        "metrics": Output("Metrics", "F1, EM and contains of each arm; retention."),
        "report": Output("HTML", "The report, to read on the run's page."),
    },
)
