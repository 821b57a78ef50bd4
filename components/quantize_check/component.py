"""The quantize-check stage as a Kubeflow component: inputs and outputs beyond its settings."""

from components.core.declaration import Declaration, Output
from components.quantize_check.config import QuantizeCheckConfig

DECLARATION = Declaration(
    QuantizeCheckConfig,
    "Measure what 4-bit weights save in memory, and judge their answers beside 16-bit ones'.",
    inputs={"dataset": "Dataset", "adapter": "Model"},
    outputs={
        "quantization": Output(
            "Artifact", "Weight bytes and answers at 16 and 4 bits, agreement, the verdict."
        ),
        "metrics": Output("Metrics", "Memory ratio, answers, agreement, divergence, the verdict."),
        "verdict": Output("HTML", "The same, to read on the run's page."),
        "decision": Output("text", "stop where the check failed and gate is stop, else go."),
    },
)
