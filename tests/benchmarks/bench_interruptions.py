"""Whether a training that is killed at random moments ends with the weights of one that is not.

That no more than the interval between checkpoints is lost, and nothing at SIGTERM, is held by
tests/train/test_checkpoints.py, which stops at exact moments. Here they are drawn: the shipped
tiny model is trained in processes of its own, and each is killed (SIGTERM or SIGKILL, by turns) at
a random moment until one ends by itself. CPU, no network.

Run it: python tests/benchmarks/bench_interruptions.py [KILLS]
"""

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INTERVAL = 3
FLAGS = ["--epochs", "4", "--batch-size", "6", "--gradient-accumulation", "2", "--dropout", "0.1",
         "--rank", "4", "--checkpoint-steps", str(INTERVAL),
         "--gradient-checkpointing", "false"]  # fmt: skip


def start(dataset: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    model = Path(__file__).parents[2] / "pipelines" / "demo" / "model"
    command = [sys.executable, "-m", "pipelines", "train", "--dataset", str(dataset),
               "--base-model", str(model), "--output", str(output), *FLAGS]  # fmt: skip
    return subprocess.Popen(command, stderr=log.open("wb"))


def step_reached(output: Path) -> int:
    """The step of the newest checkpoint folder, whole or not."""
    steps = [int(path.name.split("-")[1]) for path in (output / "checkpoints").glob("1/check*")]
    return max(steps, default=0)


def main() -> None:
    from components.generate import generate
    from components.generate.config import GenerateConfig
    from pipelines.demo.world import articles, write_documents

    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_documents(articles(120, seed=7), folder / "documents")
        generate.run(GenerateConfig(documents=str(folder / "documents"), output=str(folder / "d")))
        begun = time.monotonic()
        assert start(folder / "d", folder / "whole", folder / "log").wait() == 0
        seconds = time.monotonic() - begun
        lost, done = [], 0
        while done < kills:
            output = folder / f"killed{done}"
            while done < kills:
                process = start(folder / "d", output, folder / "log")
                time.sleep(chance.uniform(0.6, 1.0) * seconds)
                if process.poll() is not None:
                    break
                kind = signal.SIGKILL if done % 2 else signal.SIGTERM
                process.send_signal(kind)
                process.wait()
                done += 1
                print(f"{kind.name}: newest checkpoint {step_reached(output)}", flush=True)
            assert start(folder / "d", output, folder / "log").wait() == 0
            found = re.search(r"going on after step (\d+)", (folder / "log").read_text())
            lost.append(int(found[1]) if found else 0)
            same = (folder / "whole" / "adapter_model.safetensors").read_bytes() == (
                output / "adapter_model.safetensors"
            ).read_bytes()
            print(f"finished after step {lost[-1]}: {'same' if same else 'OTHER'} weights")
            assert same


if __name__ == "__main__":
    main()
