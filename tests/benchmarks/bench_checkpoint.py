"""Seconds from SIGTERM to a durable checkpoint, of the size that an 8B model's adapter has.

A rank-64 adapter on all linear layers of Llama-3-8B has 167,772,160 parameters in 32 bits; with
Adam's two moments a checkpoint has 2.0 GB. Random tensors of those shapes are written as the
trainer writes them, then made a checkpoint and copied to the emulator of the tests, which runs in
a process of its own. Left out is the end of the pass under way when the signal comes.

The emulator, written in Python and in memory, is the slow side: it takes one request at a time,
and spends three seconds of processor time on each that the client spends. The bound is what it
takes to receive the same bytes when they are only sent, one block after another, measured in the
same run. The last line says what it would be if the copy ran at 1 GB/s, which is assumed.

Run it: python tests/benchmarks/bench_checkpoint.py
"""

import http.client
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


def send(path: Path) -> None:
    """The bytes of a file to the emulator, in blocks of the size of a part, with nothing else."""
    host = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
    with path.open("rb") as file:
        while block := file.read(32 * 2**20):
            connection = http.client.HTTPConnection(host)
            kind = {"Content-Type": "application/octet-stream"}
            connection.request(
                "POST", "/upload/storage/v1/b/bucket/o?uploadType=media&name=raw", block, kind
            )
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            connection.close()


def main() -> None:
    import torch
    from safetensors.torch import save_file

    from components.train import optimizer as state
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
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizer.step()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            store = Checkpoints(Path(scratch), "gs://bucket/run-checkpoints", {"rank": "64"})
            folder = Path(scratch) / "checkpoint-20"
            folder.mkdir()
            named = {str(number): weight.detach() for number, weight in enumerate(weights)}
            times = [time.monotonic()]
            save_file(named, folder / "adapter_model.safetensors")
            state.save(optimizer, schedule, folder, write=True)
            times.append(time.monotonic())
            sizes = {path: path.stat().st_size for path in folder.iterdir()}
            store.add(folder, 20, 0.0, wait=True)
            times.append(time.monotonic())
            for path in sizes:
                send(path)
            times.append(time.monotonic())
    finally:
        server.kill()
    size = sum(sizes.values())
    write, copy, bound = (times[at + 1] - times[at] for at in range(3))
    print(f"checkpoint             {size / 1e9:6.2f} GB")
    print(f"written to disk        {write:6.1f} s")
    print(f"copied, whole          {copy:6.1f} s   {size / copy / 1e6:5.0f} MB/s")
    print(f"the emulator's bound   {bound:6.1f} s   {size / bound / 1e6:5.0f} MB/s")
    print(f"of the bound           {bound / copy:6.2f} x")
    print(f"SIGTERM to durable     {write + copy:6.1f} s")
    print(f"at 1 GB/s it would be  {write + size / NETWORK:6.1f} s")


if __name__ == "__main__":
    main()
