"""What the CPU images weigh, layer by layer, and how long `raft STAGE --help` takes in a container.

The start is compared with that of an empty container of the same image (`python -c pass`) and with
the command in this environment, in one run. Uses the engine and the images that are there, or
starts one and builds them.

Run it: python tests/benchmarks/bench_images.py
"""

import os
import statistics
import subprocess
import sys
import time

from pipelines.stages import STAGES
from tests.docker.engine import docker, engine
from tests.docker.images import build_images

TAG = os.environ.get("TAG", "0.1.0-cpu")
RUNS = 7


def seconds(*command: str) -> float:
    """Median of some runs, after one that warms the caches."""
    took = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def layers(address: str, image: str) -> list[tuple[int, str]]:
    """Bytes and instruction of every layer that holds something, the lowest first."""
    listed = docker(address, "history", "--human=false", "--no-trunc",
                    "--format={{.Size}}\t{{.CreatedBy}}", image, check=True).stdout  # fmt: skip
    rows = [line.split("\t") for line in reversed(listed.splitlines())]
    return [(int(size), words) for size, words in rows if size != "0"]


def short(instruction: str) -> str:
    """An instruction without the shell and the build arguments before it."""
    words = instruction.rpartition("/bin/sh -c ")[2].removeprefix("#(nop) ").split()
    return " ".join(words)[-60:] or "(base image)"


def main() -> None:
    with engine() as address:
        os.environ["DOCKER_HOST"] = address
        if docker(address, "image", "inspect", f"raft-eval:{TAG}").returncode:
            build_images(address)
        known: set[tuple[int, str]] = set()
        for stage in STAGES:
            image = f"raft-{stage}:{TAG}"
            found = layers(address, image)
            print(f"\n{image}: {sum(size for size, _ in found) / 1e6:.0f} MB")
            for size, instruction in found:
                shared = " (as above)" if (size, instruction) in known else ""
                print(f"  {size / 1e6:>8.1f} MB  {short(instruction)}{shared}")
            known.update(found)
        print(f"\nall four together: {sum(size for size, _ in known) / 1e6:.0f} MB\n")

        print(f"{'--help, seconds':<18}{'container':>10}{'empty':>8}{'here':>8}{'ratio':>8}")
        for stage in STAGES:
            image = f"raft-{stage}:{TAG}"
            run = ("docker", "run", "--rm", "--network=none")
            ours = seconds(*run, image, "--help")
            empty = seconds(*run, "--entrypoint=python", image, "-c", "pass")
            here = seconds(sys.executable, "-m", "pipelines", stage, "--help")
            print(
                f"{stage:<18}{ours:>10.2f}{empty:>8.2f}{here:>8.2f}{ours / (empty + here):>7.2f}x"
            )
        print("ratio: container to empty container plus the command here")


if __name__ == "__main__":
    main()
