"""An artifact of 200 MB in 50 files whose publication is killed at 20 random moments.

After every kill a reader finds the version before, or "not finished", never half of it; at the end
no file was sent twice after it had arrived. Against the emulator of the tests, in a process of
its own.

Run it: python tests/benchmarks/bench_resume.py
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from components.core.errors import DataError
from components.core.storage import fetch, finish_artifact, publish

FILES, SIZE, KILLS = 50, 4_000_000, 20
SERVER = """
import json, sys
from tests.gcs import emulator
with emulator() as running:
    print(running.url, flush=True)
    sys.stdin.read()
    print(json.dumps(running.uploads), flush=True)
"""
PUBLISH = """
import sys
from pathlib import Path
from components.core.storage import publish
print(flush=True)
publish(Path(sys.argv[1]), sys.argv[2])
"""


def artifact(folder: Path, seed: int) -> Path:
    folder.mkdir()
    for number in range(FILES):
        data = random.Random(seed * FILES + number).randbytes(SIZE)
        (folder / f"{number:02}").write_bytes(data)
    finish_artifact(folder)
    return folder


def same(one: Path, other: Path) -> bool:
    names = {path.name for path in one.iterdir()}
    return names == {path.name for path in other.iterdir()} and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def main() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], text=True, stderr=subprocess.DEVNULL,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
    rng = random.Random(0)
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        versions = [artifact(Path(scratch) / "1", 1), artifact(Path(scratch) / "2", 2)]
        publish(versions[0], "gs://bucket/a")
        while found["killed"] < KILLS:
            command = [sys.executable, "-c", PUBLISH, str(versions[-1]), "gs://bucket/a"]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert writer.stdout is not None
            writer.stdout.readline()  # its first imports are done
            time.sleep(rng.uniform(0.3, 1.5))
            late = writer.poll() is not None
            writer.kill()
            writer.wait()
            if late:  # nothing left to interrupt: a further version
                number = len(versions) + 1
                versions.append(artifact(Path(scratch) / f"{number}", number))
                continue
            found["killed"] += 1
            copy = Path(scratch) / "copy"
            try:
                fetch("gs://bucket/a", copy)
            except DataError:
                found["then not finished"] += 1
            else:
                assert any(same(copy, version) for version in versions[-2:]), "half was read"
                found["then whole"] += 1
            shutil.rmtree(copy, ignore_errors=True)
        publish(versions[-1], "gs://bucket/a")
        fetch("gs://bucket/a", Path(scratch) / "copy")
        assert same(Path(scratch) / "copy", versions[-1])
    server.stdin.close()
    uploads = Counter(json.loads(server.stdout.read()))
    server.wait()
    sent = sum(count for name, count in uploads.items() if name[2:].isdigit())
    print(f"{FILES * SIZE / 1e6:.0f} MB in {FILES} files: {dict(found)}")
    print(f"files that arrived: {sent}, of {len(versions)} versions: {FILES * len(versions)}")


if __name__ == "__main__":
    main()
