"""The train stage as a Kubeflow component: inputs and outputs beyond its settings."""

from components.core.declaration import Declaration, Output
from components.train.config import TrainConfig

DECLARATION = Declaration(
    TrainConfig,
    "Fine-tune a chat model on RAFT rows with LoRA; write the adapter.",
    inputs={"dataset": "Dataset"},
    outputs={
        "adapter": Output(
            "Model",
            "LoRA adapter and tokenizer in safetensors, with the loss curve; never merged.",
        ),
        "metrics": Output("Metrics", "Validation loss, steps, tokens per second, peak memory."),
        "settings": Output(
            "Markdown", "The adapter's card: rows, settings, losses, the prompt form."
        ),
        "report": Output("HTML", "Curves, speed, memory, and warnings."),
    },
)
