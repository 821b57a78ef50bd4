"""What the driver of a task does: it resolves inputs, resources and the settings of the pod.

An error ends the driver's pod, and the API does not show its text.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.pipelines.kubeflow.executors import Pod

PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
SELECTOR = re.compile(r'parseJson\(string_value\)\["([^"]+)"\]')
QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
FORMAT = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)
FOLDERS = {"gs": "gcs", "s3": "s3", "minio": "minio"}
"""Where the launcher puts artifacts, by the scheme of their URI."""


class DriverError(Exception):
    """The driver ends with exit code 1."""


@dataclass(frozen=True)
class Backend:
    """The version of Kubeflow Pipelines, and how it installs Argo."""

    version: str = "2.17.0"
    template_defaults: bool = True
    """templateDefaults.retryStrategy {limit: 2, retryPolicy: OnError}, as 2.17 installs it."""

    @property
    def is_before_217(self) -> bool:
        """Then the launcher resolves the placeholders of the command line, not the driver."""
        return self.version.startswith("2.16.")

    @property
    def fills_in_defaults(self) -> bool:
        """The driver of 2.17.0 resolves the placeholders before it fills in defaults."""
        return self.version != "2.17.0"

    @property
    def reports_success(self) -> bool:
        """Before 2.17 an exit handler receives RUNNING for a success too."""
        return not self.is_before_217


Artifacts = list[dict[str, Any]]
"""One artifact or several, as an executor input lists them."""


@dataclass
class Outputs:
    """The results of a task."""

    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Artifacts] = field(default_factory=dict)


@dataclass
class Scope:
    """A graph under way: its inputs, and the results of its tasks so far."""

    parameters: dict[str, Any]
    artifacts: dict[str, Artifacts]
    tasks: dict[str, Outputs] = field(default_factory=dict)

    def parameter(self, source: Mapping[str, Any]) -> Any:
        """The value that a task's input, or a setting of its pod, comes from."""
        if "runtimeValue" in source:
            return source["runtimeValue"]["constant"]
        if "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            return self.tasks[output["producerTask"]].parameters[output["outputParameterKey"]]
        name = source["componentInputParameter"]
        if name not in self.parameters:
            raise DriverError(f"parent DAG does not have input parameter {name}")
        value = self.parameters[name]
        if selected := SELECTOR.fullmatch(source.get("parameterExpressionSelector", "")):
            return (json.loads(value) if isinstance(value, str) else value)[selected[1]]
        return value

    def artifact(self, source: Mapping[str, Any]) -> Artifacts:
        """The artifacts that a task's input comes from; a graph's inputs have no type."""
        if "taskOutputArtifact" in source:
            output = source["taskOutputArtifact"]
            entries = self.tasks[output["producerTask"]].artifacts[output["outputArtifactKey"]]
            return [{**entry, "type": {"instanceSchema": ""}} for entry in entries]
        entries = self.artifacts[source["componentInputArtifact"]]
        return [{key: entry[key] for key in entry if key != "type"} for entry in entries]


def resolve_inputs(task: Mapping[str, Any], scope: Scope, status: Callable[[str], Any]) -> Scope:
    """The inputs of a task; `status` returns the final status of another, for an exit handler."""
    inputs = task.get("inputs", {})
    parameters = {
        name: status(source["taskFinalStatus"]["producerTask"])
        if "taskFinalStatus" in source
        else scope.parameter(source)
        for name, source in inputs.get("parameters", {}).items()
    }
    artifacts = {name: scope.artifact(s) for name, s in inputs.get("artifacts", {}).items()}
    return Scope(parameters, artifacts)


def defaults(component: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each optional parameter of a component."""
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    return {
        name: entry["defaultValue"] for name, entry in declared.items() if "defaultValue" in entry
    }


def condition_holds(expression: str, parameters: Mapping[str, Any]) -> bool:
    """Evaluate a condition of kfp's compiler."""
    text = re.sub(
        r"inputs\.parameter_values\['([^']+)'\]", lambda m: repr(parameters[m[1]]), expression
    )
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
    return bool(
        eval(
            text, {"__builtins__": {}}, {"true": True, "false": False, "int": int, "double": float}
        )
    )


def as_text(value: object) -> str:
    """A parameter's value in a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return format(Decimal(repr(value)).normalize(), "f")
    if isinstance(value, list | dict):
        return json.dumps(_plain(value), separators=(",", ":"), sort_keys=True)
    return str(value)


def _plain(value: Any) -> Any:
    """JSON as Go writes it: whole numbers without a point."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass
class Driver:
    """The drivers of one run's container tasks."""

    backend: Backend
    root: str
    """Folder of the run's artifacts: pipeline root, pipeline and run."""

    def pod(
        self,
        key: str,
        task: Mapping[str, Any],
        component: Mapping[str, Any],
        container: Mapping[str, Any],
        platform: Mapping[str, Any],
        inputs: Scope,
        parent: Scope,
    ) -> Pod:
        """The pod of a task, without its attempt.

        Raises:
            DriverError: the driver would fail.
        """
        passed = inputs.parameters
        known = {**defaults(component), **passed} if self.backend.fills_in_defaults else passed
        args = container.get("args", [])
        started_with = [_filled(text, known) for text in args]
        _check_names(platform, parent)
        return Pod(
            key,
            _setting(container["image"], passed),
            list(container["command"]),
            list(args) if self.backend.is_before_217 else started_with,
            started_with,
            self._executor_input(key, component, inputs),
            _resources(container.get("resources", {}), passed),
            _node_selector(platform, parent),
            _tolerations(platform, parent),
            _secrets(platform, parent),
            component.get("outputDefinitions", {}),
        )

    def _executor_input(
        self, key: str, component: Mapping[str, Any], inputs: Scope
    ) -> dict[str, Any]:
        folder = f"{self.root}/{key}/{uuid.uuid4()}"
        declared = component.get("outputDefinitions", {})
        types = {
            name: entry["artifactType"] for name, entry in declared.get("artifacts", {}).items()
        }
        types["executor-logs"] = {"schemaTitle": "system.Artifact"}
        artifacts = {
            name: {"artifacts": [{"name": name, "type": kind, "uri": f"{folder}/{name}"}]}
            for name, kind in types.items()
        }
        scheme, _, path = folder.partition("://")
        outputs: dict[str, Any] = {
            "artifacts": artifacts,
            "outputFile": f"/{FOLDERS[scheme]}/{path}/output_metadata.json",
        }
        if parameters := declared.get("parameters"):
            outputs["parameters"] = {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in parameters
            }
        values: dict[str, Any] = {}
        if inputs.parameters:
            values["parameterValues"] = inputs.parameters
        if inputs.artifacts:
            values["artifacts"] = {n: {"artifacts": list(a)} for n, a in inputs.artifacts.items()}
        return {"inputs": values, "outputs": outputs}


def _filled(text: str, parameters: Mapping[str, Any]) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            raise DriverError(
                "failed to resolve container args: "
                f'parameter "{match[1]}" not found in executor input'
            )
        return as_text(parameters[match[1]])

    return PARAMETER.sub(fill, text)


def _setting(text: str, parameters: Mapping[str, Any]) -> str:
    """A setting, perhaps from a parameter; any other type than STRING is read as ""."""
    match = PARAMETER.fullmatch(text)
    if not match:
        return text
    value = parameters[match[1]]
    return value if isinstance(value, str) else ""


def _resources(
    resources: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    accelerator = resources.get("accelerator", {})
    texts = {
        ("limits", "cpu"): resources.get("resourceCpuLimit"),
        ("limits", "memory"): resources.get("resourceMemoryLimit"),
        ("limits", accelerator.get("resourceType")): accelerator.get("resourceCount"),
        ("requests", "cpu"): resources.get("resourceCpuRequest"),
        ("requests", "memory"): resources.get("resourceMemoryRequest"),
    }
    amounts: dict[str, dict[str, str]] = {}
    for (side, name), text in texts.items():
        if text is None:
            continue
        match = PARAMETER.fullmatch(text)
        # The driver drops a limit from a parameter of another type without a message.
        if match and not isinstance(parameters[match[1]], str):
            continue
        amount = _setting(text, parameters)
        _check_quantity(amount)
        amounts.setdefault(side, {})[name] = amount
    return amounts


def _check_quantity(text: str) -> None:
    if not QUANTITY.fullmatch(text):
        reason = "unable to parse quantity's suffix" if NUMBER.match(text) else FORMAT
        raise DriverError(f"failed to init podSpecPatch: {reason}")


def _node_selector(platform: Mapping[str, Any], parent: Scope) -> dict[str, str]:
    selector = platform.get("nodeSelector", {})
    if "nodeSelectorJson" not in selector:
        return dict(selector.get("labels", {}))
    return dict(_structured(parent.parameter(selector["nodeSelectorJson"])))


def _tolerations(platform: Mapping[str, Any], parent: Scope) -> list[dict[str, Any]]:
    tolerations: list[dict[str, Any]] = []
    for entry in platform.get("tolerations", []):
        value = entry
        if "tolerationJson" in entry:
            value = _structured(parent.parameter(entry["tolerationJson"]))
        tolerations += value if isinstance(value, list) else [value]
    return tolerations


def _structured(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _secrets(platform: Mapping[str, Any], parent: Scope) -> dict[str, str]:
    return {
        key["envVar"]: parent.parameter(entry["secretNameParameter"])
        for entry in platform.get("secretAsEnv", [])
        for key in entry["keyToEnv"]
    }


def _check_names(platform: Mapping[str, Any], parent: Scope) -> None:
    """A secret or a PVC without a name fails, optional or not."""
    sources = {
        "secretAsEnv": "secretNameParameter",
        "secretAsVolume": "secretNameParameter",
        "pvcMount": "pvcNameParameter",
    }
    for kind, source in sources.items():
        for entry in platform.get(kind, []):
            if source in entry and not parent.parameter(entry[source]):
                raise DriverError("Expected a non-empty string")
