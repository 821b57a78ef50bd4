"""How long `raft compile` and `raft check` take, each in a process of its own.

Run it: python tests/benchmarks/bench_compile.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5


def main() -> None:
    from pipelines.manifests import OVERLAYS

    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", str(Path(folder) / "raft.yaml")]
        overlays = sorted(path.name for path in OVERLAYS.iterdir() if path.is_dir())
        commands = [
            ["compile", *output],
            *(["compile", "--overlay", name, *output] for name in overlays),
            ["check"],
        ]
        print(f"{'command':<34}{'median':>9}{'longest':>9}   ({RUNS} runs, goal 3 s)")
        for words in commands:
            times = [seconds(words) for _ in range(RUNS)]
            name = " ".join(["raft", *(word for word in words if word not in output)])
            print(f"{name:<34}{statistics.median(times):>8.2f}s{max(times):>8.2f}s")


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipelines", *words], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
