"""Recordings of a real Kubeflow backend, and the pipelines that ran on it.

A recording is a file in tests/pipelines/recordings: the run's states and parameters, Argo's nodes
(name, type, phase, seconds after the start, message), task_details, the pods as the cluster got
them, and what the launcher handed over. Folder and run of the URIs are written as RUN, and the
UUIDs as numbers. The pipelines are those of commit ed2a150.

t3 is raft.yaml as it was, t4 the same where the driver fills in defaults. The others ran with two
repairs: e1s as meant; e1s-216 on KFP 2.16.1; t5 with a closed gate; t6 and t6b with a rank that
train refuses, with and without Argo's templateDefaults; t7a with train's pod deleted and then its
process killed, t7a-retried after a Retry; t10 study.yaml with two trials; t11 terminated.
"""

import copy
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from tests.pipelines.conftest import FAST_LOADER

RECORDINGS = Path(__file__).parent / "recordings"
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.json"))
URI = re.compile(r"RUN/([\w-]+)/[^/]+/([\w-]+)")


def pipeline_of_ed2a150(name: str) -> list[dict[str, Any]]:
    """raft or study, as it was before the recordings."""
    text = (RECORDINGS / f"{name}-ed2a150.yaml").read_text(encoding="utf-8")
    return list(yaml.load_all(text, FAST_LOADER))


def with_all_parameters(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first repair: each task passes each optional parameter of its step as a constant."""
    specification, *platforms = copy.deepcopy(documents)
    components = specification["components"]
    for component in components.values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            called = components[task["componentRef"]["name"]]
            declared = called.get("inputDefinitions", {}).get("parameters", {})
            for name, entry in declared.items():
                if "executorLabel" in called and "defaultValue" in entry:
                    constant = {"runtimeValue": {"constant": entry["defaultValue"]}}
                    task["inputs"]["parameters"].setdefault(name, constant)
    return [specification, *platforms]


def with_gpus_as_text(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The second repair: train_gpus is a STRING parameter."""
    specification, *platforms = copy.deepcopy(documents)
    for component in [specification["root"], *specification["components"].values()]:
        declared = component.get("inputDefinitions", {}).get("parameters", {})
        for name in ("train_gpus", "pipelinechannel--train_gpus"):
            if name in declared:
                declared[name]["parameterType"] = "STRING"
    specification["root"]["inputDefinitions"]["parameters"]["train_gpus"]["defaultValue"] = "1"
    return [specification, *platforms]


def repaired(name: str) -> list[dict[str, Any]]:
    """The pipeline that ran to its end."""
    return with_gpus_as_text(with_all_parameters(pipeline_of_ed2a150(name)))


def recording(name: str) -> dict[str, Any]:
    """One recorded run."""
    found: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def metadata_of(recorded: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The metadata that each step gave its artifacts, as later steps were handed them."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for inputs in recorded["executor_inputs"].values():
        for entry in inputs["inputs"].get("artifacts", {}).values():
            for artifact in entry["artifacts"]:
                match = URI.fullmatch(artifact["uri"])
                assert match
                known = found[match[1]][match[2]]
                if artifact["metadata"] not in known:
                    known.append(artifact["metadata"])
    return found
