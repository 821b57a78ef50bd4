"""The state of the optimizer and the schedule, in one file next to a checkpoint's weights.

    optimizer.safetensors    `3.exp_avg`: a moment of the fourth parameter that is trained; in the
                             metadata, the optimizer's settings and the schedule as JSON

Tensors are whole in the file, whoever held which share of them, and every process reads its own
share of each, so none ever holds all. Nothing in it can run, as something in a pickle could.
"""

import json
from pathlib import Path
from typing import Any

FILE = "optimizer.safetensors"


def save(optimizer: Any, schedule: Any, folder: Path, *, write: bool) -> None:
    """Write the state; called by all processes, because shares are gathered, and written by one."""
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    tensors = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if write:
                tensors[f"{number}.{name}"] = whole.cpu().contiguous()
    if write:
        groups = optimizer.state_dict()["param_groups"]
        metadata = {"groups": json.dumps(groups), "schedule": json.dumps(schedule.state_dict())}
        save_file(tensors, folder / FILE, metadata=metadata)


def load(optimizer: Any, schedule: Any, folder: Path) -> None:
    """Read it back."""
    from safetensors import safe_open
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            number, name = key.split(".")
            value, parameter = file.get_tensor(key), parameters[int(number)]
            if isinstance(parameter, DTensor) and value.dim():
                # Every process has read it, so none needs to be sent anything.
                value = distribute_tensor(
                    value, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            state.setdefault(int(number), {})[name] = value
        metadata = file.metadata()
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(metadata["groups"])})
    schedule.load_state_dict(json.loads(metadata["schedule"]))


def _parameters(optimizer: Any) -> list[Any]:
    """What is trained, in the order in which `state_dict` numbers it."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
