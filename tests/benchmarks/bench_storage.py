"""Publishing and fetching an artifact beside the client's own transfer manager, in one run.

200 MB in 50 files, against the emulator of the tests, in a process of its own. Ours also lists,
writes the manifest and verifies; the transfer manager only copies.

Run it: python tests/benchmarks/bench_storage.py
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

FILES, SIZE, PAIRS = 50, 4_000_000, 5
SERVER = (
    "from tests.gcs import emulator\nimport sys\n"
    "with emulator() as running:\n    print(running.url, flush=True)\n    sys.stdin.read()"
)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(title: str, pairs: list[tuple[float, float]]) -> None:
    megabytes = FILES * SIZE / 1e6
    ours = megabytes / statistics.median(ours for ours, _ in pairs)
    theirs = megabytes / statistics.median(theirs for _, theirs in pairs)
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    print(f"{title:<8}{ours:>9.0f} MB/s{theirs:>15.0f} MB/s{ratio:>9.2f}x")


def main() -> None:
    from google.cloud import storage
    from google.cloud.storage import transfer_manager

    from components.core.storage import fetch, finish_artifact, publish

    server = subprocess.Popen([sys.executable, "-c", SERVER], text=True, stderr=subprocess.DEVNULL,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert server.stdout is not None
    os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
    os.environ["GOOGLE_CLOUD_PROJECT"] = "test"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifact"
        folder.mkdir()
        for number in range(FILES):
            (folder / f"{number:02}").write_bytes(random.Random(number).randbytes(SIZE))
        finish_artifact(folder)
        names = [f"{number:02}" for number in range(FILES)]
        bucket = storage.Client().bucket("bucket")
        copy = {"max_workers": 16, "worker_type": "thread"}
        up, down = [], []
        for turn in range(PAIRS):
            ours, theirs = f"gs://bucket/ours{turn}", f"theirs{turn}/"
            send = partial(transfer_manager.upload_many_from_filenames, bucket, names, **copy,
                           source_directory=str(folder), blob_name_prefix=theirs)  # fmt: skip
            receive = partial(transfer_manager.download_many_to_path, bucket, names, **copy,
                              destination_directory=f"{scratch}/{theirs}",
                              blob_name_prefix=theirs)  # fmt: skip
            up.append((seconds(partial(publish, folder, ours)), seconds(send)))
            fetching = partial(fetch, ours, Path(scratch) / f"ours{turn}")
            down.append((seconds(fetching), seconds(receive)))
    server.kill()
    print(f"\n{'':<8}{'ours':>14}{'transfer manager':>20}{'ratio':>10}   ({PAIRS} pairs)")
    compare("upload", up)
    compare("download", down)


if __name__ == "__main__":
    main()
