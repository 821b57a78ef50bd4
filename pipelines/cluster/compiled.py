"""A compiled pipeline, as far as a submission needs to know it: its parameters and its steps."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.core.errors import ConfigError
from pipelines.k8s.located import Document, read
from pipelines.stages import STAGES, config_class

CHANNEL = re.compile(r"(?:pipelinechannel--)?(\w+?)(?:-loop-item)?")
"""What kfp calls a pipeline parameter, or each object in a list, in the graphs of a pipeline."""

KEY = re.compile(r"""parseJson\(string_value\)\["(.+)"\]""")


class Origin(NamedTuple):
    """A pipeline parameter; with a key, what each object in its list holds under that key."""

    parameter: str
    key: str = ""

    def value(self, values: Mapping[str, Any], index: int) -> Any:
        value = values[self.parameter]
        return value[index][self.key] if self.key else value

    def label(self, index: int) -> str:
        return f"{self.parameter}[{index}].{self.key}" if self.key else self.parameter


class Step(NamedTuple):
    """A task with a container: the stage that it runs, and the origins of that stage's settings."""

    name: str
    stage: str
    origins: Mapping[str, Origin]


class Compiled(NamedTuple):
    """A compiled pipeline and its file."""

    path: Path
    specification: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.specification["pipelineInfo"]["name"])

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name to definition of every pipeline parameter."""
        definitions = self.specification["root"].get("inputDefinitions", {})
        parameters: Mapping[str, Any] = definitions.get("parameters", {})
        return parameters

    @property
    def defaults(self) -> dict[str, Any]:
        """Name to default of every pipeline parameter that has one."""
        inputs = self.inputs.items()
        return {name: entry["defaultValue"] for name, entry in inputs if "defaultValue" in entry}

    @property
    def hardware(self) -> Mapping[str, Any]:
        """What was compiled in from the Job manifests of the GPU steps, by stage."""
        for graph in self._graphs():
            if "hardware" in graph:
                passed = graph["hardware"]["inputs"]["parameters"]["compiled"]
                return dict(passed["runtimeValue"]["constant"])
        return {}

    def _graphs(self) -> list[Mapping[str, Any]]:
        """The tasks of each graph, by name."""
        parts = (self.specification["root"], *self.specification["components"].values())
        return [part["dag"]["tasks"] for part in parts if "dag" in part]

    def steps(self) -> Iterator[Step]:
        """Every step of the pipeline; of those in a condition or a loop, too."""
        components = self.specification["components"]
        executors = self.specification["deploymentSpec"]["executors"]
        for name, task in (task for graph in self._graphs() for task in graph.items()):
            component = components[task["componentRef"]["name"]]
            if "dag" in component:
                continue
            container = executors[component["executorLabel"]].get("container", {})
            stage = " ".join(container.get("command", [])).removeprefix("raft ")
            # KFP hands a pod more than settings, such as the memory that it asks for.
            fields = config_class(stage).model_fields if stage in STAGES else {}
            origins = {}
            for field, source in task.get("inputs", {}).get("parameters", {}).items():
                channel = CHANNEL.fullmatch(source.get("componentInputParameter", ""))
                if field in fields and channel and channel[1] in self.inputs:
                    key = KEY.fullmatch(source.get("parameterExpressionSelector", ""))
                    origins[field] = Origin(channel[1], key[1] if key else "")
            yield Step(name, stage, origins)


def load(path: Path) -> Compiled:
    """Read a compiled pipeline.

    Raises:
        ConfigError: no such file, or not a compiled pipeline.
    """
    hint = "raft compile --output pipelines/raft.yaml makes one."
    document = first_document(path, hint)
    needed = {"components", "deploymentSpec", "pipelineInfo", "root"}
    if document is None or not isinstance(document.value, dict) or needed - document.value.keys():
        needs = ", ".join(sorted(needed))
        raise ConfigError(f"{path}: not a compiled pipeline (it needs {needs})", hint=hint)
    return Compiled(path, document.value)


def first_document(path: Path, hint: str) -> Document | None:
    """The first document of a YAML or JSON file; `hint` is for one that cannot be read."""
    try:
        return next(iter(read(path)), None)
    except ConfigError as error:
        error.hint = error.hint or hint
        raise
