"""vLLM's OpenAI server on loopback, which the stage starts for itself and stops, whatever happens.

The server is started by the first request whose response is not stored, so a run that finds all
responses stored loads no model. It ends with the stage, also where that is killed (`until_eof`).
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from components.core.accelerator import Gpus, gpus_here
from components.core.base_model import FILES, is_hub_id
from components.core.errors import ConfigError, MissingDependencyError, TeacherError, printable
from components.core.gpus import kinds
from components.core.ledger import cost_of
from components.core.progress import say
from components.core.redaction import redact
from components.core.storage import SCHEME, fetch, scratch
from components.generate.config import GenerateConfig

if TYPE_CHECKING:
    from aiohttp import ClientSession

HOST = "127.0.0.1"
SECONDS_BETWEEN_LINES = 30.0
LAST_LINES = 15
MEMORY_SHARE = 0.92
"""Of a GPU's memory, which the server takes; vLLM's own default."""
OTHER_MEMORY = 2 * 2**30
"""Bytes on each GPU beside the weights: activations, and a small key-value cache."""
GPU_COUNTS = (1, 2, 4, 8)
NOT_FOR_THE_SERVER = {"OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "VLLM_API_KEY"}
CACHE_COUNTS = re.compile(rb"^vllm:prefix_cache_(queries|hits)_total\{.*\} (\S+)$", re.MULTILINE)


class VllmServer:
    """The server of one run, for the length of a block.

    Attributes:
        gpus: the GPUs that it uses.
    """

    def __init__(self, config: GenerateConfig) -> None:
        """Check what can be checked before documents are read.

        Raises:
            ConfigError: there are too few GPUs, or the model does not fit them.
            MissingDependencyError: vLLM is not installed.
        """
        self.config = config
        if find_spec("vllm") is None:
            raise MissingDependencyError(
                "--teacher vllm: vLLM is not installed",
                hint="pip install vllm (Linux with CUDA), or name a server with --teacher openai "
                "--teacher-endpoint URL. Of the images, raft-generate-gpu has it.",
            )
        self.gpus = _checked_gpus(config)
        if self.gpus and config.teacher_max_cost and cost_of(0, self.gpus[0].name, 1) is None:
            raise ConfigError(
                f"--teacher-max-cost: {self.gpus[0].name} has no price",
                hint="components/core/gpus.yaml has the prices; 0 is no limit.",
            )
        _check_fits(config.teacher_model, _weight_bytes(config.teacher_model), self.gpus)
        with closing(socket.socket()) as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/v1"
        self.seconds_to_start = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._lock = asyncio.Lock()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
                self._process.wait()

    async def ready(self, session: "ClientSession") -> None:
        """Wait until the server answers; the first call starts it.

        Raises:
            TeacherError: it ends, or takes too long; shows its last lines.
            StorageError: the model cannot be fetched.
        """
        async with self._lock:
            if self._process is None:
                started = time.monotonic()
                await self._start(session, started)
                self.seconds_to_start = time.monotonic() - started
                say(f"  the teacher's server is ready after {self.seconds_to_start:.0f} s")

    async def _start(self, session: "ClientSession", started: float) -> None:
        from aiohttp import ClientError

        log = tempfile.TemporaryFile(prefix="raft-vllm-")  # noqa: SIM115
        self._log = self._held.enter_context(log)
        keeper = [sys.executable, "-I", str(Path(__file__).with_name("until_eof.py"))]
        self._process = subprocess.Popen(  # noqa: S603
            [*keeper, *self._command()],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={k: v for k, v in os.environ.items() if k not in NOT_FOR_THE_SERVER}
            | {"VLLM_NO_USAGE_STATS": "1"},
        )
        where = f"{len(self.gpus)} × {self.gpus[0].name}" if self.gpus else "the CPU"
        say(f"  starting vLLM with {self.config.teacher_model} on {where}")
        spoken = started
        while True:
            try:
                async with session.get(f"http://{HOST}:{self.port}/health") as response:
                    if response.status == 200:
                        return
            except (ClientError, TimeoutError):
                pass
            now = time.monotonic()
            if self._process.poll() is not None:
                raise self.failure(f"ended while it started, with exit code {self._process.poll()}")
            if now - started > self.config.teacher_start_timeout:
                limit = f"--teacher-start-timeout {self.config.teacher_start_timeout:g}"
                raise self.failure(f"does not answer within {limit} seconds")
            if now - spoken > SECONDS_BETWEEN_LINES:
                spoken = now
                last = (self._last_lines() or [""])[-1][:120]
                say(f"  the teacher's server is starting, {now - started:.0f} s: {last}")
            await asyncio.sleep(0.25)

    def _command(self) -> list[str]:
        config, model = self.config, self.config.teacher_model
        if model.startswith(SCHEME):
            folder = self._held.enter_context(scratch("model", model)) / "model"
            fetch(model, folder)
            _check_fits(model, _weight_bytes(str(folder)), self.gpus)
            model = str(folder)
        # Without a GPU: bfloat16 is several times slower than float32, and compiling takes minutes.
        on_cpu = [] if self.gpus else ["--dtype=float32", "--enforce-eager"]
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            f"--model={model}",
            f"--served-model-name={config.teacher_model}",
            f"--host={HOST}",
            f"--port={self.port}",
            f"--tensor-parallel-size={max(1, len(self.gpus))}",
            f"--seed={config.seed}",
            f"--gpu-memory-utilization={MEMORY_SHARE}",
            "--max-model-len=auto",  # as long as memory allows, at most what the model can
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",  # says what of a prompt the cache served
            "--generation-config=vllm",  # the model's own settings sample; ours are greedy
            "--load-format=safetensors",  # never a pickle
            "--uvicorn-log-level=warning",
            *on_cpu,
        ]

    def failure(self, problem: str) -> TeacherError:
        """The error about a server that has failed, with its last lines."""
        lines = "\n".join(f"  | {line}" for line in self._last_lines())
        return TeacherError(
            f"--teacher vllm, --teacher-model {self.config.teacher_model}: the server {problem}. "
            f"Its last lines:\n{lines}",
            hint="Correct what they name; paid responses are kept. To see more, start the server "
            "yourself (vllm serve MODEL) and use --teacher openai.",
        )

    @property
    def has_ended(self) -> bool:
        """Whether the server was started and is gone."""
        return self._process is not None and self._process.poll() is not None

    def _last_lines(self) -> list[str]:
        if self._log is None:
            return []
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 20_000, max(0, size - 20_000)).decode(errors="replace")
        lines = [printable(line)[:300] for line in redact(text).splitlines() if line.strip()]
        return lines[-LAST_LINES:]

    async def say_cache_use(self, session: "ClientSession") -> None:
        """Log how many of the prompts' tokens came from the prefix cache."""
        if self._process is None or self.has_ended:
            return
        async with session.get(f"http://{HOST}:{self.port}/metrics") as response:
            text = await response.read()
        counts = {name: float(value) for name, value in CACHE_COUNTS.findall(text)}
        if tokens := counts.get(b"queries"):
            share = counts.get(b"hits", 0.0) / tokens
            say(f"  the prefix cache served {share:.1%} of {tokens:,.0f} prompt tokens")


def _checked_gpus(config: GenerateConfig) -> Gpus:
    """The GPUs to use: as many as are asked for, or all.

    Raises:
        ConfigError: there are too few.
    """
    present = gpus_here()
    wanted = int(config.gpus or 0)
    if not present and config.allow_cpu:
        return []
    if not present or len(present) < wanted:
        asks = f"asks for {wanted} GPU{'s' * (wanted > 1)}" if wanted else "needs a GPU"
        raise ConfigError(
            f"--teacher vllm {asks}, and this machine has {len(present)} that it can use",
            hint="Run it where there are GPUs (docs/teachers.md names how many), or name an "
            "endpoint with --teacher openai. --allow-cpu true runs a small model on the CPU.",
        )
    return present[: wanted or None]


def _weight_bytes(model: str) -> int:
    """Bytes of a model's weights as they are stored; 0 where nobody says."""
    if model.startswith(SCHEME):
        return 0  # looked at once it is fetched
    if not is_hub_id(model):
        files = [path for path in Path(model).glob("*.safetensors") if FILES.fullmatch(path.name)]
        return sum(path.stat().st_size for path in files)
    from huggingface_hub import HfApi

    try:
        files_there = HfApi().model_info(model, files_metadata=True).siblings or []
    except Exception:  # the server says better what the hub answers
        return 0
    return sum(
        file.size or 0
        for file in files_there
        if file.rfilename.endswith(".safetensors") and FILES.fullmatch(file.rfilename)
    )


def _check_fits(model: str, weights: int, gpus: Gpus) -> None:
    """Refuse a model whose weights do not fit, before an hour of downloading.

    Raises:
        ConfigError: names what would fit.
    """
    if not gpus or weights <= sum(_room(gpu.memory) for gpu in gpus):
        return
    would = [
        f"{count} × {kind.title}"
        for kind in kinds().values()
        for count in GPU_COUNTS
        if weights <= count * _room(int(kind.memory_gib * 2**30))
        and any(machine.gpus >= count for machine in kind.machines)
    ]
    raise ConfigError(
        f"--teacher-model {model}: {weights / 1e9:.0f} GB of weights do not fit "
        f"{len(gpus)} × {gpus[0].name} with {gpus[0].memory / 1e9:.0f} GB each",
        hint=f"What would: {', '.join(would) or 'no machine that is known here'}. Or take a "
        "smaller model, or one in 4 bits.",
    )


def _room(memory: int) -> int:
    """Bytes for weights on a GPU."""
    return int(MEMORY_SHARE * memory) - OTHER_MEMORY
