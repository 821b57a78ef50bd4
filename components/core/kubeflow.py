"""Read Kubeflow's description of a step, and report the step's results to it; knows no kfp.

Kubeflow describes a step in one JSON text (`{{$}}` in a component: the executor input): URIs of
the artifacts, files for output parameters, and a file for the metadata of what the step made.
Every step shows the same kinds of things on the run's page: figures as Metrics, a page as HTML, a
text as Markdown, one text as an output parameter. An example, shortened::

    {"outputs": {"artifacts": {"metrics": {"artifacts": [
         {"name": "…", "uri": "gs://…/metrics", "type": {"schemaTitle": "system.Metrics"}}]}},
     "parameters": {"gate": {"outputFile": "/tmp/kfp/outputs/gate"}},
     "outputFile": "/tmp/kfp_outputs/output_metadata.json"}}

An artifact without an entry in that file gets no metadata in a cluster, and is lost in `kfp.local`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AliasPath, BaseModel, Field, PrivateAttr, ValidationError

from components.core.describe import describe, figures
from components.core.errors import ConfigError, RaftError, first_line
from components.core.ledger import Ledger
from components.core.locations import SCHEME, beside
from components.core.pages import Description, Table, as_markdown, as_page
from components.core.progress import say
from components.core.storage import atomic_write, put

PAGES = ("report.html", "comparison.html")
TEXTS = ("summary.md", "README.md")
"""Files of an artifact that the run's page shows as they are, where they exist."""

MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
"""Where Kubeflow puts artifacts in a pod, by the scheme of their URIs."""


class _Artifact(BaseModel):
    name: str = ""
    uri: str
    kind: str = Field("", validation_alias=AliasPath("type", "schemaTitle"))
    custom_path: str = Field("", validation_alias="customPath")

    @property
    def path(self) -> Path:
        """Where Kubeflow has put it, or will look for it, in the pod."""
        if self.custom_path:
            return Path(self.custom_path)
        for scheme, folder in MOUNTS.items():
            if self.uri.startswith(scheme):
                return Path(folder) / self.uri.removeprefix(scheme)
        return Path(self.uri)


class _ArtifactList(BaseModel):
    artifacts: list[_Artifact] = Field(default_factory=list)


class _OutputParameter(BaseModel):
    file: Path = Field(validation_alias="outputFile")


class Step(BaseModel):
    """One step of a run, as Kubeflow describes it; other fields of the description are ignored."""

    inputs: dict[str, _ArtifactList] = Field(
        default_factory=dict, validation_alias=AliasPath("inputs", "artifacts")
    )
    outputs: dict[str, _ArtifactList] = Field(
        default_factory=dict, validation_alias=AliasPath("outputs", "artifacts")
    )
    parameters: dict[str, _OutputParameter] = Field(
        default_factory=dict, validation_alias=AliasPath("outputs", "parameters")
    )
    output_file: Path = Field(validation_alias=AliasPath("outputs", "outputFile"))
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
        except ValidationError:
            raise ConfigError(
                "--executor-input: not Kubeflow's description of a step",
                hint="The flag is for Kubeflow; leave it out elsewhere.",
            ) from None
        step._output = output
        return step

    def folders_to_read(self, step: str) -> list[str]:
        """The folders for a summary: the step's input artifacts, or those of the whole run."""
        artifacts = [artifact for entry in self.inputs.values() for artifact in entry.artifacts]
        if artifacts:
            # Launchers differ in how many artifacts of a list they fetch; URIs have them all.
            return [_readable(artifact) for artifact in artifacts]
        return [_run_folder(self._main().uri, step)]

    def beside(self, suffix: str) -> str:
        """A place next to the step's artifact that its next attempt finds again, or "".

        Retries of a step get the same artifacts; only gs:// outlives the pod.
        """
        uri = self._main().uri
        return beside(uri, suffix) if uri.startswith(SCHEME) else ""

    def announce(self, result: object, folder: Path) -> None:
        """Write what the run's page shows, and the metadata of every artifact."""
        entries: dict[str, Any] = {}
        for key, artifact in self._artifacts().items():
            match artifact.kind:
                case "system.HTML":
                    _write(artifact.path, _content(result, folder, PAGES, as_page))
                case "system.Markdown":
                    _write(artifact.path, _content(result, folder, TEXTS, as_markdown))
            entry = {"name": artifact.name, "uri": artifact.uri, "metadata": figures(result)}
            entries[key] = {"artifacts": [entry]}
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            value = values[name] = getattr(result, name)
            _write(parameter.file, value if isinstance(value, str) else json.dumps(value))
        _write(self.output_file, json.dumps({"artifacts": entries, "parameterValues": values}))

    @contextmanager
    def ledger_on_failure(self, stage: str) -> Iterator[None]:
        """Write the ledger of a failed attempt where the run's artifacts are.

        Kubeflow uploads nothing of a step that failed, but its time was paid for.
        """
        ledger = Ledger(stage, Path())
        try:
            yield
        except BaseException as error:
            now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            entry = ledger.entry().model_copy(update={"failed": _reason(error)})
            location = f"{self._main().uri}/ledger.failed-{now}.json"
            try:
                put(entry.model_dump_json(indent=2) + "\n", location)
            except (RaftError, OSError) as obstacle:
                say(f"  the ledger of this attempt is lost: {obstacle}")
            raise

    def _main(self) -> _Artifact:
        """The artifact that the stage writes; those of pages and figures may come before it."""
        artifacts = [*self._artifacts().values()]
        if not artifacts:
            raise ConfigError("--executor-input: names no artifact that the step writes")
        written = (artifact for artifact in artifacts if str(artifact.path) == self._output)
        return next(written, artifacts[0])

    def _artifacts(self) -> dict[str, _Artifact]:
        return {key: entry.artifacts[0] for key, entry in self.outputs.items() if entry.artifacts}


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


def _content(
    result: object, folder: Path, names: tuple[str, ...], render: Callable[[Description], str]
) -> str:
    """The artifact's own page or text, else one that is made from its result."""
    own = next((folder / name for name in names if (folder / name).exists()), None)
    if own is not None:
        return own.read_text(encoding="utf-8")
    return render(describe(result) or Description("Nothing to show", "", Table((), ())))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped from outside"
    first = first_line(error)
    return first if isinstance(error, RaftError) else f"{type(error).__name__}: {first}"
