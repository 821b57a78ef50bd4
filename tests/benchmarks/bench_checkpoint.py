"""Seconds from SIGTERM to a durable checkpoint, of the size that an 8B model's adapter has.

A rank-64 adapter on all linear layers of Llama-3-8B has 167,772,160 parameters in 32 bits; with
Adam's two moments a checkpoint has 2.0 GB. Random tensors of those shapes are written as the
trainer writes them, then made a checkpoint and copied to the emulator of the tests, which runs in
a process of its own. Left out is the end of the pass under way when the signal comes.

The emulator, written in Python and in memory, takes far less a second than a bucket does. How fast
it can be filled is measured in the same run, by the client's own copy of the adapter alone; the
last line says what it would be if the copy ran at 1 GB/s, which is assumed, not measured.

Run it: python tests/benchmarks/bench_checkpoint.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, RANK, NETWORK = 32, 64, 1e9
SIDES = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336),
         (14336, 4096)]  # fmt: skip
SERVER = (
    "from tests.gcs import emulator\nimport sys\n"
    "with emulator() as running:\n    print(running.url, flush=True)\n    sys.stdin.read()"
)


def main() -> None:
    import torch
    from google.cloud import storage
    from safetensors.torch import save_file

    from components.train.checkpoints import Checkpoints

    server = subprocess.Popen([sys.executable, "-c", SERVER], text=True, stderr=subprocess.DEVNULL,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert server.stdout is not None
    os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
    os.environ["GOOGLE_CLOUD_PROJECT"] = "test"
    shapes = [shape for _ in range(LAYERS) for inputs, outputs in SIDES
              for shape in ((RANK, inputs), (outputs, RANK))]  # fmt: skip
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            store = Checkpoints(Path(scratch), "gs://bucket/run-checkpoints/1", 2, {"rank": "64"})
            folder, alone = Path(scratch) / "checkpoint-20", Path(scratch) / "adapter"
            folder.mkdir()
            named = {str(number): weight.detach() for number, weight in enumerate(weights)}
            times = [time.monotonic()]
            save_file(named, folder / "adapter_model.safetensors")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            times.append(time.monotonic())
            os.link(folder / "adapter_model.safetensors", alone)
            size = sum(path.stat().st_size for path in folder.iterdir())
            store.add(folder, 20, 0.0, wait=True)
            times.append(time.monotonic())
            plain = storage.Client().bucket("bucket").blob("plain")
            plain.upload_from_filename(str(alone), checksum="crc32c")
            times.append(time.monotonic())
            ceiling = alone.stat().st_size / (times[3] - times[2])
    finally:
        server.kill()
    write, copy = (times[at + 1] - times[at] for at in range(2))
    print(f"checkpoint             {size / 1e9:6.2f} GB")
    print(f"written to disk        {write:6.1f} s")
    print(f"copied                 {copy:6.1f} s   {size / copy / 1e6:5.0f} MB/s")
    print(f"the emulator's ceiling          {ceiling / 1e6:5.0f} MB/s")
    print(f"SIGTERM to durable     {write + copy:6.1f} s")
    print(f"at 1 GB/s it would be  {write + size / NETWORK:6.1f} s")


if __name__ == "__main__":
    main()
