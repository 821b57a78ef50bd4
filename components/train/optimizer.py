"""The state of the optimizer and the schedule, in one file next to a checkpoint's weights.

    optimizer.safetensors    `3.exp_avg`: a moment of the fourth parameter that is trained; in the
                             metadata, the optimizer's settings and the schedule as JSON

Nothing in it can run, as something in a pickle could.
"""

import json
from pathlib import Path
from typing import Any

FILE = "optimizer.safetensors"


def save(optimizer: Any, schedule: Any, folder: Path) -> None:
    """Write the state."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    tensors = {
        f"{number}.{name}": value.cpu().contiguous()
        for number, moments in state["state"].items()
        for name, value in moments.items()
    }
    groups, schedule = json.dumps(state["param_groups"]), json.dumps(schedule.state_dict())
    save_file(tensors, folder / FILE, metadata={"groups": groups, "schedule": schedule})


def load(optimizer: Any, schedule: Any, folder: Path) -> None:
    """Read it back."""
    from safetensors import safe_open

    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            number, name = key.split(".")
            state.setdefault(int(number), {})[name] = file.get_tensor(key)
        metadata = file.metadata()
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(metadata["groups"])})
    schedule.load_state_dict(json.loads(metadata["schedule"]))
