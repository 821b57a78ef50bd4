"""What Kubeflow wants to hear from a step, and where a run's artifacts lie; knows no kfp.

Kubeflow describes a step in one JSON text (`{{$}}` in a component: the executor input): URIs of
the artifacts, files for output parameters, and a file in which the step announces metadata. From
it, every step shows the same kinds of things on the run's page: figures as Metrics, a page as
HTML, a text as Markdown, one text as an output parameter. An example, shortened::

    {"outputs": {"artifacts": {"metrics": {"artifacts": [
         {"name": "…", "uri": "gs://…/metrics", "type": {"schemaTitle": "system.Metrics"}}]}},
     "parameters": {"gate": {"outputFile": "/tmp/kfp/outputs/gate"}},
     "outputFile": "/tmp/kfp_outputs/output_metadata.json"}}

An artifact that is not announced gets no metadata in a cluster, and is lost in `kfp.local`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.alias_generators import to_camel

from components.core.config import beside
from components.core.describe import as_markdown, as_page, describe, figures, page
from components.core.errors import ConfigError, RaftError, first_line
from components.core.ledger import Ledger
from components.core.progress import say
from components.core.storage import SCHEME, atomic_write, put

PAGES = ("report.html", "comparison.html")
TEXTS = ("summary.md", "README.md")
"""Files of an artifact that the run's page shows as they are, where there are any."""


class _Part(BaseModel):
    """What is read of Kubeflow's message; the rest is its own business."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _Kind(_Part):
    schema_title: str = ""


class _Artifact(_Part):
    name: str = ""
    uri: str
    type: _Kind = _Kind()
    custom_path: str = ""

    @property
    def path(self) -> Path:
        """Where Kubeflow has put it, or will look for it, in the pod."""
        if self.custom_path:
            return Path(self.custom_path)
        for scheme, folder in (("gs", "gcs"), ("minio", "minio"), ("s3", "s3")):
            if self.uri.startswith(f"{scheme}://"):
                return Path(f"/{folder}") / self.uri.removeprefix(f"{scheme}://")
        return Path(self.uri)


class _ArtifactList(_Part):
    artifacts: list[_Artifact] = Field(default_factory=list)


class _OutputParameter(_Part):
    output_file: str


class _Inputs(_Part):
    artifacts: dict[str, _ArtifactList] = Field(default_factory=dict)


class _Outputs(_Part):
    artifacts: dict[str, _ArtifactList] = Field(default_factory=dict)
    parameters: dict[str, _OutputParameter] = Field(default_factory=dict)
    output_file: str


class Step(_Part):
    """One step of a run, as Kubeflow describes it."""

    inputs: _Inputs = _Inputs()
    outputs: _Outputs
    _output: str = PrivateAttr("")

    @classmethod
    def parse(cls, text: str, output: str = "") -> "Step":
        """Read the executor input.

        Args:
            text: what Kubeflow passes.
            output: the folder that the stage writes, which is one of the step's artifacts.

        Raises:
            ConfigError: the text is not what Kubeflow passes.
        """
        try:
            step = cls.model_validate_json(text)
            step._output = output
            return step
        except ValidationError:
            raise ConfigError(
                "--executor-input: not Kubeflow's description of a step",
                hint="The flag is for Kubeflow; leave it out elsewhere.",
            ) from None

    def folders_to_read(self, step: str) -> list[str]:
        """What a summary reads: the artifacts that the step is given, else the whole run's."""
        given = [entry for found in self.inputs.artifacts.values() for entry in found.artifacts]
        if given:
            # Launchers differ in how many artifacts of a list they fetch; the URI has them all.
            return [_readable(artifact) for artifact in given]
        return [_run_folder(self._main().uri, step)]

    def beside(self, suffix: str) -> str:
        """A place beside the step's artifact that its next attempt finds again, or "".

        Retries of a step get the same artifacts; only gs:// outlives the pod.
        """
        uri = self._main().uri
        return beside(uri, suffix) if uri.startswith(SCHEME) else ""

    def announce(self, result: object, folder: Path) -> None:
        """Write what the run's page shows, then tell Kubeflow about every artifact."""
        told: dict[str, Any] = {}
        for key, artifact in self._artifacts():
            match artifact.type.schema_title:
                case "system.HTML":
                    _write(artifact.path, _page(result, folder))
                case "system.Markdown":
                    _write(artifact.path, _text(result, folder))
            entry = {"name": artifact.name, "uri": artifact.uri, "metadata": figures(result)}
            told[key] = {"artifacts": [entry]}
        values: dict[str, Any] = {}
        for name, parameter in self.outputs.parameters.items():
            value = values[name] = getattr(result, name)
            text = value if isinstance(value, str) else json.dumps(value)
            _write(Path(parameter.output_file), text)
        message = {"artifacts": told, "parameterValues": values}
        _write(Path(self.outputs.output_file), json.dumps(message))

    @contextmanager
    def accounted(self, stage: str) -> Iterator[None]:
        """Leave an account of a failed attempt where the run's artifacts go.

        Kubeflow uploads nothing of a step that failed, but its time was paid for.
        """
        with Ledger(stage, Path()).timed() as ledger:
            try:
                yield
            except BaseException as error:
                now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
                entry = ledger.entry().model_copy(update={"failed": _reason(error)})
                location = f"{self._main().uri}/ledger.failed-{now}.json"
                try:
                    put(entry.model_dump_json(indent=2) + "\n", location)
                except (RaftError, OSError) as obstacle:
                    say(f"  the account of this attempt is lost: {obstacle}")
                raise

    def _main(self) -> _Artifact:
        """The artifact that the stage writes; pages and figures lie in others, in any order."""
        artifacts = [artifact for _, artifact in self._artifacts()]
        if not artifacts:
            raise ConfigError("--executor-input: names no artifact that the step writes")
        written = (found for found in artifacts if str(found.path) == self._output)
        return next(written, artifacts[0])

    def _artifacts(self) -> list[tuple[str, _Artifact]]:
        return [
            (key, found.artifacts[0])
            for key, found in self.outputs.artifacts.items()
            if found.artifacts
        ]


def _readable(artifact: _Artifact) -> str:
    return artifact.uri if artifact.uri.startswith(SCHEME) else str(artifact.path)


def _run_folder(uri: str, step: str) -> str:
    """The folder of the whole run, from one of the step's artifacts.

    A cluster has `ROOT/PIPELINE/RUN/STEP/…/ARTIFACT`, `kfp.local` has `ROOT/RUN/STEP/ARTIFACT`.
    """
    parts = uri.split("/")[:-1]
    if step not in parts:
        raise ConfigError(f"--executor-input: {uri} names no step {step!r}")
    return "/".join(parts[: len(parts) - 1 - parts[::-1].index(step)])


def _page(result: object, folder: Path) -> str:
    for name in PAGES:
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8")
    description = describe(result)
    return as_page(description) if description else page("Nothing to show", "")


def _text(result: object, folder: Path) -> str:
    for name in TEXTS:
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8")
    description = describe(result)
    return as_markdown(description) if description else ""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped from outside"
    first = first_line(error)
    return first if isinstance(error, RaftError) else f"{type(error).__name__}: {first}"
