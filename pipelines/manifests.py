"""The folders of Job manifests: k8s/base, which `kubectl` uses as it is, and its overlays."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from components.core.errors import ConfigError
from pipelines.k8s import kustomize
from pipelines.k8s.job import Job, job_of
from pipelines.k8s.located import Document, shown
from pipelines.stages import STAGES

BASE = Path(__file__).parents[1] / "k8s" / "base"
OVERLAYS = BASE.parent / "overlays"

Jobs = Mapping[str, Job]
"""A Job per stage ("quantize-check")."""


def load_all(folder: Path = BASE) -> Jobs:
    """Read the Job manifests of all stages from a folder with a kustomization.

    Raises:
        ConfigError: a file is missing or not YAML, a Job is missing or belongs to no stage, or a
            field is wrong or not understood; names file, line and field.
    """
    if not (folder / kustomize.FILE).exists():
        raise ConfigError(
            f"{shown(folder)}: no {kustomize.FILE} there",
            hint="The Job manifests lie in k8s/base of a checkout; run `raft` from one.",
        )
    return all_jobs(kustomize.render(folder), shown(folder))


def overlay(name: str, folder: Path = OVERLAYS) -> Path:
    """The folder of an overlay, which a name with a slash is itself; "" is k8s/base.

    Raises:
        ConfigError: there is none of this name; lists those that exist.
    """
    if not name:
        return BASE
    if "/" in name:
        return Path(name)
    names = [path.name for path in overlays(folder)]
    if name not in names:
        raise ConfigError(
            f"--overlay {name!r}: no such overlay (allowed: {', '.join(names) or 'none'})",
            hint=f"An overlay is a folder in {shown(folder)} with a {kustomize.FILE}.",
        )
    return folder / name


def overlays(folder: Path = OVERLAYS) -> list[Path]:
    """The folders of all overlays."""
    return sorted(path.parent for path in folder.glob(f"*/{kustomize.FILE}"))


def all_jobs(documents: Iterable[Document], origin: str) -> Jobs:
    """The Jobs of all stages among documents; `origin` names these in the error.

    Raises:
        ConfigError: as `load_all`.
    """
    jobs = jobs_among(documents)
    missing = [f"{origin}: no Job named raft-{stage}" for stage in STAGES if stage not in jobs]
    if missing:
        raise ConfigError("\n".join(missing))
    return jobs


def jobs_among(documents: Iterable[Document]) -> Jobs:
    """The Jobs among documents.

    Raises:
        ConfigError: lists what is wrong in each of them.
    """
    jobs: dict[str, Job] = {}
    errors: list[str] = []
    for document in (entry for entry in documents if entry.get("kind") == "Job"):
        try:
            job = job_of(document)
        except ConfigError as error:
            errors.append(str(error))
            continue
        if job.stage in jobs:
            errors.append(f"{document.place()}: a second Job {job.metadata.name}")
        jobs[job.stage] = job
    if errors:
        raise ConfigError(
            "\n".join(errors),
            hint="What the pipeline can follow is listed in pipelines/k8s/job.py.",
        )
    return jobs
