"""How long `raft … --help` takes beside an empty Python start.

Run it: python tests/benchmarks/bench_startup.py
"""

import statistics
import subprocess
import sys
import time

RUNS = 11
EMPTY = [sys.executable, "-c", "pass"]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    from pipelines.stages import STAGES

    print(f"{'command':<28}{'median':>9}{'beside empty':>14}{'ratio':>8}   ({RUNS} pairs)")
    for words in ([], *([name] for name in (*STAGES, "demo", "compile", "check"))):
        command = [sys.executable, "-m", "pipelines", *words, "--help"]
        pairs = [(seconds(command), seconds(EMPTY)) for _ in range(RUNS + 1)][1:]
        ours = statistics.median(ours for ours, _ in pairs)
        more = statistics.median(ours - empty for ours, empty in pairs)
        ratio = statistics.median(ours / empty for ours, empty in pairs)
        name = " ".join(["raft", *words, "--help"])
        print(f"{name:<28}{ours:>8.3f}s{more:>+13.3f}s{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
