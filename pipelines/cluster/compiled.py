"""A compiled pipeline, as far as a submission needs to know it: its parameters and its steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.core.errors import ConfigError
from pipelines.k8s.located import read
from pipelines.stages import COMMANDS, config_class


class Step(NamedTuple):
    """A task with a container, its stage, and the settings that the run's parameters set.

    A parameter has the name of the setting that it sets.
    """

    name: str
    stage: str
    settings: tuple[str, ...]


class Compiled(NamedTuple):
    """A compiled pipeline and its file."""

    path: Path
    specification: Mapping[str, Any]

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name to definition of every pipeline parameter."""
        return dict(self.specification["root"]["inputDefinitions"]["parameters"])

    @property
    def defaults(self) -> dict[str, Any]:
        """Name to default of every pipeline parameter that has one."""
        inputs = self.inputs.items()
        return {name: entry["defaultValue"] for name, entry in inputs if "defaultValue" in entry}

    @property
    def hardware(self) -> Mapping[str, Any]:
        """What was compiled in from the Job manifests of the GPU steps, by stage."""
        for name, task in self._tasks():
            if name == "hardware":
                return dict(task["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"])
        return {}

    def steps(self) -> Iterator[Step]:
        """Every step of the pipeline; of those in a condition or a loop, too."""
        executors = self.specification["deploymentSpec"]["executors"]
        for name, task in self._tasks():
            component = self.specification["components"][task["componentRef"]["name"]]
            if "dag" in component:
                continue
            container = executors[component["executorLabel"]].get("container", {})
            stage = " ".join(container.get("command", [])).removeprefix("raft ")
            # KFP hands a pod more than settings, such as the memory that it asks for.
            fields = config_class(stage).model_fields if stage in COMMANDS else {}
            sources = task.get("inputs", {}).get("parameters", {})
            channel = "componentInputParameter"
            settings = tuple(field for field in fields if channel in sources.get(field, {}))
            yield Step(name, stage, settings)

    def _tasks(self) -> Iterator[tuple[str, Any]]:
        """The tasks of every graph, with their names."""
        for part in (self.specification["root"], *self.specification["components"].values()):
            yield from part.get("dag", {}).get("tasks", {}).items()


def load(path: Path) -> Compiled:
    """Read a compiled pipeline.

    Raises:
        ConfigError: no such file, or not a compiled pipeline.
    """
    hint = "raft compile --output pipelines/raft.yaml makes one."
    try:
        specification = read(path)[0].value
    except ConfigError as error:
        error.hint = error.hint or hint
        raise
    if not isinstance(specification, dict) or "pipelineInfo" not in specification:
        raise ConfigError(f"{path}: not a compiled pipeline (it has no pipelineInfo)", hint=hint)
    return Compiled(path, specification)
