"""Useful tokens per second beside TRL's defaults, and the peak memory of one step, on a CPU.

Speed: the same model, adapter, rows and machine, pairs in turns in one process. The model is a
small Llama with random weights in which the output head takes the share of the work that it takes
in Llama-3-8B (7 %), so that what is spared there is not overstated. TRL's defaults are kept, with
two exceptions in its favour: 32 instead of 16 bits (which a CPU computes slower), and no cutting
of rows at 1,024 tokens. Useful tokens are those of the rows, without padding. The ratio of CPU time
is told as well, which suffers less from what else the machine does.

Memory: vocabulary 128,256, one row of 4,096 tokens of which the last tenth are the answer; growth
of the resident set over a step in a process of its own, with our loss and with all logits.

Run it: python tests/benchmarks/bench_train.py [path of HotpotQA's dev_distractor.json]
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROWS, BATCH, PAIRS = 40, 8, 4
HEAD_SHARE = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 1024}  # fmt: skip
LARGE_VOCABULARY = {"hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "num_key_value_heads": 1,
                    "vocab_size": 128_256}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
HOTPOTQA = ROOT.parent / "shared" / "data" / "hotpotqa" / "dev_distractor.json"


def hotpotqa_lengths(path: Path) -> list[tuple[int, int]]:
    """Prompt and answer tokens of RAFT rows on HotpotQA: four paragraphs; quotes, then the answer.

    Counted as 1.3 tokens a word, about what Llama's tokenizer makes of English.
    """
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        paragraphs = dict(entry["context"])
        oracle = [title for title, _ in entry["supporting_facts"] if title in paragraphs]
        shown = list(dict.fromkeys([*oracle, *paragraphs]))[:4]
        prompt = sum(len(" ".join(paragraphs[title]).split()) for title in shown) + 20
        quotes = [paragraphs[title][at] for title, at in entry["supporting_facts"]
                  if title in paragraphs and at < len(paragraphs[title])]  # fmt: skip
        answer = len(" ".join(quotes).split()) + 20
        found.append((round(1.3 * prompt), round(1.3 * answer)))
    return found


def distributions(path: Path) -> dict[str, list[tuple[int, int]]]:
    chance = random.Random(0)
    found = {
        "equal": [(450, 50)] * ROWS,
        "uniform 50 to 1000": [
            (chance.randint(30, 900), chance.randint(20, 100)) for _ in range(ROWS)
        ],
        "short, some long": [(80, 20) if row % 8 else (1400, 100) for row in range(ROWS)],
        "heavy tail": [
            (min(round(chance.lognormvariate(4.5, 1.2)), 3000) + 20, 30) for _ in range(ROWS)
        ],
        "two lengths": [(100, 20) if row % 2 else (900, 80) for row in range(ROWS)],
        "all very short": [(chance.randint(10, 40), chance.randint(3, 10)) for _ in range(ROWS)],
        "one very long": [(60, 15)] * (ROWS - 1) + [(3900, 150)],
    }
    if path.exists():
        found = {"HotpotQA": chance.sample(hotpotqa_lengths(path), ROWS)} | found
    return found


def rows_of(lengths: list[tuple[int, int]], vocabulary: int) -> list[dict[str, list[int]]]:
    chance = random.Random(1)
    rows = []
    for prompt, answer in lengths:
        ids = [chance.randrange(10, vocabulary) for _ in range(prompt + answer)]
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def write_model(folder: Path, shape: dict[str, int]) -> None:
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(ROOT / "pipelines" / "demo" / "model", folder)
    LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=8192)).save_pretrained(folder)


def ours(model: Path, rows: list[dict[str, Any]], scratch: Path, **settings: Any) -> Any:
    from components.core.models import load_tokenizer
    from components.train import trainer
    from components.train.config import TrainConfig
    from components.train.rows import Rows

    config = TrainConfig.parse({"dataset": "-", "base_model": str(model), "output": str(scratch),
                                "epochs": 1, "batch_size": BATCH, "gradient_accumulation": 1}
                               | settings)  # fmt: skip
    return trainer.build(config, load_tokenizer(str(model)), Rows(rows, [], [], []), scratch)


def theirs(model: Path, rows: list[dict[str, Any]], scratch: Path) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from components.core.models import load_model, load_tokenizer

    made = SFTTrainer(
        model=load_model(str(model), torch.float32),
        args=SFTConfig(output_dir=str(scratch), bf16=False, max_length=None, use_cpu=True,
                       num_train_epochs=1, report_to="none", save_strategy="no",
                       disable_tqdm=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(str(model)),
        peft_config=LoraConfig(r=64, lora_alpha=64, target_modules="all-linear",
                               task_type="CAUSAL_LM"),
    )  # fmt: skip
    from transformers import PrinterCallback

    made.remove_callback(PrinterCallback)
    return made


class Took(NamedTuple):
    wall: float
    cpu: float


def time_of(made: Any) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    made.train()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def speed(path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder / "model", HEAD_SHARE)
        print(f"{'lengths':<20}{'ours':>14}{'TRL defaults':>16}{'ratio':>8}{'CPU time':>10}"
              f"   ({PAIRS} pairs)")  # fmt: skip
        for name, lengths in distributions(path).items():
            rows = rows_of(lengths, HEAD_SHARE["vocab_size"])
            tokens = sum(map(sum, lengths))
            for side in (ours, theirs):  # what is loaded once is loaded before
                time_of(side(folder / "model", rows[:BATCH], folder / "warm"))
            pairs = []
            for pair in range(PAIRS):  # in turns, and each is the first as often
                order = (ours, theirs) if pair % 2 else (theirs, ours)
                took = {side: time_of(side(folder / "model", rows, folder / "out"))
                        for side in order}  # fmt: skip
                pairs.append((took[ours], took[theirs]))
            mine, other = (
                tokens / statistics.median(took.wall for took in side)
                for side in zip(*pairs, strict=True)
            )
            wall = statistics.median(b.wall / a.wall for a, b in pairs)
            cpu = statistics.median(b.cpu / a.cpu for a, b in pairs)
            print(f"{name:<20}{mine:>8.0f} tok/s{other:>10.0f} tok/s{wall:>7.2f}x{cpu:>9.2f}x",
                  flush=True)  # fmt: skip


# ---- memory, in processes of their own -----------------------------------------------------------


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def one_step(folder: Path, kind: str) -> None:
    """Print the bytes by which the resident set grows over forward and backward."""
    import torch

    rows = rows_of([(3686, 410)], LARGE_VOCABULARY["vocab_size"])
    made = ours(folder / "model", rows, folder / kind, batch_size=1)
    made.create_optimizer()
    batch = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    made.model.train()
    # Pages that the C library keeps would hide what a step takes.
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    if kind == "ours":
        loss = made.compute_loss(made.model, batch)
    else:
        logits = made.model(batch["input_ids"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[0, :-1].float(), batch["labels"][0, 1:], ignore_index=-100
        )
    loss.backward()
    done.set()
    watcher.join()
    print(max(peak[0], resident()) - before)


def memory() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model", LARGE_VOCABULARY)
        grown = {}
        for kind in ("ours", "all logits"):
            command = [sys.executable, __file__, "--step", scratch, kind]
            done = subprocess.run(command, text=True, capture_output=True, check=True)
            grown[kind] = int(done.stdout.split()[-1])
        print("\none step, vocabulary 128,256, 4,096 tokens, 10 % of them answer")
        for kind, size in grown.items():
            print(f"{kind:<22}{size / 1e6:>8.0f} MB")
        print(f"{'ratio':<22}{grown['ours'] / grown['all logits']:>8.2f}x")


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:2] == ["--step"]:
        one_step(Path(sys.argv[2]), sys.argv[3])
        return
    speed(Path(sys.argv[1]) if len(sys.argv) > 1 else HOTPOTQA)
    memory()


if __name__ == "__main__":
    main()
