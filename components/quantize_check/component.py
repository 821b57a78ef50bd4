"""The quantize-check stage as a Kubeflow component: what its settings do not say."""

from components.core.declaration import Declaration, Output
from components.quantize_check.config import QuantizeCheckConfig

DECLARATION = Declaration(
    QuantizeCheckConfig,
    "Measure what 4-bit weights save in memory and cost in agreement with 16-bit ones.",
    inputs={"dataset": "Dataset", "adapter": "Model"},
    outputs={
        "quantization": Output(
            "Artifact", "Weight bytes at 16 and 4 bits, agreement between the two, the verdict."
        ),
        "metrics": Output("Metrics", "Memory ratio, agreement, divergence and the verdict."),
        "verdict": Output("HTML", "The same, to read on the run's page."),
        "decision": Output("text", "stop where the check failed and gate is stop, else go."),
    },
)
