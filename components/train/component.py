"""The train stage as a Kubeflow component: what its settings do not say."""

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
        "settings": Output("Markdown", "The loss curve and the settings."),
        "report": Output("HTML", "Curves, speed, memory, and warnings."),
    },
)
