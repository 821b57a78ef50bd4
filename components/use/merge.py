"""`raft merge-adapter`: base and adapter as one model, which transformers and vLLM load as it is.

An adapter is merged in 32 bits and then rounded to 16, or quantized to 4: merging into 4-bit
weights would add rounding error.
"""

from pathlib import Path

from components.core.fingerprints import check_base
from components.core.memory import memory_explained
from components.core.models import load_4bit, load_tokenizer, save_merged
from components.core.progress import headline, say
from components.core.storage import begin_artifact, finish_artifact, provenance, verify
from components.use.config import MergeConfig


def run(config: MergeConfig) -> None:
    """Write the model and its tokenizer, with the adapter's chat template.

    Raises:
        DataError: the adapter is missing or damaged.
        ModelError: the base model or the adapter cannot be used, or do not belong together.
        MissingDependencyError: 4 bits need bitsandbytes, and it is not installed.
        OutOfMemory: the memory cannot hold the model.
    """
    import torch

    output = Path(config.output)
    headline("merge-adapter", f"{config.base_model} + {config.adapter} → {output}")
    verify(Path(config.adapter), "--adapter")
    check_base(config.adapter, config.base_model)
    tokenizer = load_tokenizer(config.base_model, config.adapter)
    begin_artifact(output, config.stage, settings=provenance(config))
    with memory_explained(
        "the memory cannot hold the model while the adapter is merged",
        hint="That takes 4 bytes a parameter: 32 GB for 8B.",
    ):
        if config.bits == "4":
            head = config.quantize_lm_head
            model = load_4bit(
                config.base_model, config.adapter, torch.bfloat16, quantize_lm_head=head
            )
            model.save_pretrained(output)
        else:
            save_merged(config.base_model, config.adapter, torch.bfloat16, output)
    tokenizer.save_pretrained(output)
    finish_artifact(output)
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    say(f"  {size / 1e6:,.1f} MB of weights")
