"""Training at the shape of Llama-3-8B, with random weights, on one GPU.

Rank 64 on all linear layers, 100 rows of 512 tokens in batches of eight (4,096 tokens; packed where
the GPU has flash attention), three epochs: the blog post's job. Tokens a second, the share of the
GPU's peak (MFU) and the peak of its memory beside what `raft plan` says, with the base model in 16
and in 4 bits, each in a process of its own. Not measured yet: no GPU was at hand. `--shape tiny`
shows on a CPU that the script works, and no more.

Run it: python tests/benchmarks/bench_gpu.py [--shape llama-3-8b|tiny] [--scratch FOLDER]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, TOKENS, ANSWER, BATCH, EPOCHS = 100, 512, 51, 8, 3
SHAPES = {
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 1024,
    },
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
A100_40GB = 40 * 2**30 - 2**29  # what its driver leaves to programs, about


def write_model(folder: Path, shape: str) -> None:
    """A chat model of that shape, its weights made where they are computed fastest."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(ROOT / "pipelines" / "demo" / "model", folder, dirs_exist_ok=True)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)


def train(model: Path, shape: str, in_4bit: bool, scratch: Path) -> None:
    """Train, and print how it went."""
    import torch

    from components.core.chat import IGNORED
    from components.core.models import load_tokenizer
    from components.train import trainer
    from components.train.config import TrainConfig
    from components.train.memory import GIB, memory, read_shape
    from components.train.record import count_parameters, make_record
    from components.train.rows import Rows

    chance = random.Random(0)
    rows = []
    for _ in range(ROWS):
        ids = [chance.randrange(10, SHAPES[shape]["vocab_size"]) for _ in range(TOKENS)]
        labels = [IGNORED] * (TOKENS - ANSWER) + ids[TOKENS - ANSWER :]
        rows.append({"input_ids": ids, "labels": labels})
    config = TrainConfig.parse(
        {"dataset": "-", "base_model": str(model), "output": str(scratch), "epochs": EPOCHS,
         "batch_size": BATCH, "gradient_accumulation": 1, "load_in_4bit": in_4bit}
    )  # fmt: skip
    dataset = Rows(rows, [], [], [])
    made = trainer.build(config, load_tokenizer(str(model)), dataset, scratch)
    counts = count_parameters(made.model)
    started = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - started
    record = make_record(config, dataset, made, seconds, counts)
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_reserved() if on_gpu else record.peak_memory_bytes
    # Eight rows of 512 tokens: no row is longer, so the plan is made for that length.
    planned = memory(read_shape(str(model)), config, TOKENS).total
    print(f"base model in {4 if in_4bit else 16} bits, {record.batching}")
    print(f"  {record.tokens_per_second:,.0f} tokens/s, MFU {record.mfu}, {seconds:.1f} s")
    print(f"  {peak / GIB:.2f} GiB at the most, {planned / GIB:.2f} GiB by plan")
    if on_gpu:
        print(f"  {'fits' if peak < A100_40GB else 'does not fit'} an A100-40GB")


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    asked.add_argument("--scratch", help="folder for the model, 17 GB for llama-3-8b")
    asked.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.one:
        folder, bits = given.one
        train(Path(folder) / "model", given.shape, bits == "4", Path(folder) / bits)
        return

    import torch

    if given.shape != "tiny" and not torch.cuda.is_available():
        print("No GPU here: --shape tiny shows on a CPU that the script works.")
        return
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "a CPU"
    print(f"{given.shape} on {name}: {ROWS} rows of {TOKENS} tokens, {EPOCHS} epochs", flush=True)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        write_model(Path(folder) / "model", given.shape)
        torch.cuda.empty_cache()
        for bits in ("16", "4"):
            command = [sys.executable, __file__, "--shape", given.shape, "--one", folder, bits]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
