"""Kill a run with SIGKILL at 50 random moments, then finish it.

Prints whether the bytes are those of an uninterrupted run, and how many calls were paid twice,
beside the most that could have been under way.

Run it: python tests/benchmarks/bench_killed.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

KILLS, WIDTH, DOCUMENTS = 50, 8, 400


def main() -> None:
    from tests.generate.killing import FILES, command, kill_and_finish
    from tests.generate.teacher_server import teacher_server

    with tempfile.TemporaryDirectory() as scratch, teacher_server(seconds=0.05) as server:
        folder = Path(scratch)
        (folder / "documents").mkdir()
        for number in range(DOCUMENTS):
            text = f"Town{number} was founded in {1000 + number}. It lies by the sea."
            (folder / "documents" / f"{number}.txt").write_text(text, encoding="utf-8")
        whole = folder / "whole"
        line = command(folder / "documents", whole, server, WIDTH)
        subprocess.run(line, check=True, capture_output=True, cwd=ROOT)
        wanted = [(whole / name).read_bytes() for name in FILES]
        made, repeated = kill_and_finish(
            folder / "documents", folder / "killed", server, WIDTH, KILLS, seed=0
        )
        print(f"killed {KILLS} times: {'the same' if made == wanted else 'OTHER'} bytes")
        print(f"calls paid twice: {repeated}; under way at the kills: at most {KILLS * WIDTH}")
        if made != wanted or repeated > KILLS * WIDTH:
            sys.exit(1)


if __name__ == "__main__":
    main()
