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

from pydantic import AliasPath, BaseModel, Field, ValidationError

from components.core.describe import describe, figures
from components.core.errors import ConfigError, RaftError, UserError, first_line
from components.core.ledger import Ledger
from components.core.locations import SCHEME
from components.core.pages import Description, Table, as_markdown, as_page
from components.core.progress import say
from components.core.storage import put

PAGES = ("report.html", "comparison.html")
TEXTS = ("summary.md", "README.md")
"""Files of an artifact that the run's page shows as they are, where they exist."""

LOGS = "executor-logs"
"""An artifact that Kubeflow adds to each step."""

VISUAL = ("system.Metrics", "system.HTML", "system.Markdown")
"""Kinds of artifacts that show what another one holds."""


def results_folder(run: str, state: str) -> str:
    """Where the results of a run ROOT/PIPELINE/RUN can be read while it is under way.

    That is the run's own folder on gs://, or else, below a `state` on gs://, copies that its steps
    put there: Kubeflow alone reads other stores. "" where there is neither.
    """
    if run.startswith(SCHEME):
        return run
    if "://" not in run or not state.startswith(SCHEME):
        return ""
    pipeline, run_id = run.rsplit("/", 2)[1:]
    return f"{state.rstrip('/')}/runs/{pipeline}/{run_id}"


class _Artifact(BaseModel):
    name: str = ""
    uri: str
    kind: str = Field("", validation_alias=AliasPath("type", "schemaTitle"))

    @property
    def path(self) -> Path:
        """Where Kubeflow has put it, or will look for it, in the pod."""
        scheme, remote, place = self.uri.partition("://")
        return Path("/", "gcs" if scheme == "gs" else scheme, place) if remote else Path(self.uri)


class _ArtifactList(BaseModel):
    artifacts: list[_Artifact] = []


class _OutputParameter(BaseModel):
    file: str = Field(validation_alias="outputFile")


class Step(BaseModel):
    """One step of a run, as Kubeflow describes it; other fields of the description are ignored."""

    inputs: dict[str, _ArtifactList] = Field({}, validation_alias=AliasPath("inputs", "artifacts"))
    outputs: dict[str, _ArtifactList] = Field(
        {}, validation_alias=AliasPath("outputs", "artifacts")
    )
    parameters: dict[str, _OutputParameter] = Field(
        {}, validation_alias=AliasPath("outputs", "parameters")
    )
    output_file: str = Field(validation_alias=AliasPath("outputs", "outputFile"))

    @classmethod
    def parse(cls, text: str) -> "Step":
        """Read the executor input.

        Raises:
            ConfigError: the text is not what Kubeflow passes.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise ConfigError(
                "--executor-input: not Kubeflow's description of a step",
                hint="The flag is for Kubeflow; omit it elsewhere.",
            ) from None

    def folders_to_read(self, step: str) -> list[str]:
        """The folders for a summary: the step's input artifacts, or those of the whole run."""
        # Launchers differ in how many artifacts of a list they fetch; URIs have them all.
        if folders := [
            artifact.uri if artifact.uri.startswith(SCHEME) else str(artifact.path)
            for entry in self.inputs.values()
            for artifact in entry.artifacts
        ]:
            return folders
        return [self._run(step)]

    def state(self, step: str) -> str:
        """What outlives the run: `state` in the pipeline root; "" where that is not on gs://."""
        root = self._run(step).rsplit("/", 2)[0]
        if not root.startswith(SCHEME):
            if "://" in root:
                say(
                    f"  {root} is not on gs://: if the pod fails, its work is lost; to keep it, "
                    "set the run's parameter `state` to a gs:// prefix"
                )
            return ""
        return f"{root}/state"

    def _run(self, step: str) -> str:
        # A cluster has ROOT/PIPELINE/RUN/STEP/…/ARTIFACT, `kfp.local` has ROOT/RUN/STEP/ARTIFACT.
        return self._main().uri.rpartition(f"/{step}/")[0]

    @property
    def place(self) -> tuple[str, str]:
        """The URI of the artifact that the step writes, and its folder in the pod."""
        return self._main().uri, str(self._main().path)

    @property
    def run_folder(self) -> str:
        """The folder of the whole run in a cluster: ROOT/PIPELINE/RUN/STEP/UUID/ARTIFACT."""
        return self._main().uri.rsplit("/", 3)[0]

    def results(self, state: str) -> str:
        """Where the results and ledgers of this step can be read, as `results_folder` has it."""
        uri, run = self._main().uri, self.run_folder
        folder = results_folder(run, state)
        return folder + uri.removeprefix(run) if folder else uri

    def announce(self, result: object, folder: Path) -> None:
        """Write what the run's page shows, and the metadata of every artifact."""
        entries: dict[str, Any] = {}
        for key, artifact in self._artifacts().items():
            match artifact.kind:
                case "system.HTML":
                    put(_content(result, folder, PAGES, as_page), artifact.path)
                case "system.Markdown":
                    put(_content(result, folder, TEXTS, as_markdown), artifact.path)
            entry = {"name": artifact.name, "uri": artifact.uri, "metadata": figures(result)}
            entries[key] = {"artifacts": [entry]}
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            value = values[name] = getattr(result, name)
            put(value if isinstance(value, str) else json.dumps(value), parameter.file)
        put(json.dumps({"artifacts": entries, "parameterValues": values}), self.output_file)

    @contextmanager
    def ledger_on_failure(self, stage: str, state: str = "") -> Iterator[None]:
        """Write the ledger of a failed attempt where the run's results are.

        Kubeflow uploads nothing of a step that failed, but its time was paid for.
        """
        whole, Ledger.failed = Ledger(stage, Path()), None
        try:
            yield
        except BaseException as error:
            ledger = Ledger.failed or whole
            ledger.started = whole.started  # inputs were fetched before the stage began
            now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            entry = ledger.entry().model_copy(
                update={"failed": _reason(error), "repeatable": not _users_mistake(error)}
            )
            location = f"{self.results(state)}/ledger.failed-{now}.json"
            try:
                put(entry.model_dump_json(indent=2) + "\n", location)
            except (RaftError, OSError) as obstacle:
                say(f"  the ledger of this attempt is lost: {obstacle}")
            raise

    def _main(self) -> _Artifact:
        """The artifact that the stage writes; Kubeflow's own and what shows it may be first."""
        artifacts = [*self._artifacts().values()]
        if not artifacts:
            raise ConfigError("--executor-input: names no artifact that the step writes")
        return min(artifacts, key=lambda artifact: artifact.kind in VISUAL or artifact.name == LOGS)

    def _artifacts(self) -> dict[str, _Artifact]:
        return {key: entry.artifacts[0] for key, entry in self.outputs.items() if entry.artifacts}


def _content(
    result: object, folder: Path, names: tuple[str, ...], render: Callable[[Description], str]
) -> str:
    """The artifact's own page or text, else one that is made from its result."""
    own = next((folder / name for name in names if (folder / name).exists()), None)
    if own is not None:
        return own.read_text(encoding="utf-8")
    return render(describe(result) or Description("Nothing to show", "", Table((), ())))


def _users_mistake(error: BaseException) -> bool:
    """Whether inputs or settings are wrong; a teacher or a bucket may answer next time."""
    return isinstance(error, UserError) and not isinstance(error, RuntimeError)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped from outside"
    first = first_line(error)
    return first if isinstance(error, RaftError) else f"{type(error).__name__}: {first}"
