"""The folders of Job manifests: k8s/base, which `kubectl` uses as it is, and its overlays."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from components.core.errors import ConfigError
from pipelines.k8s import kustomize
from pipelines.k8s.job import Job, job_of
from pipelines.k8s.located import Document, parse, shown
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
    return jobs_of(kustomize.render(folder), shown(folder))


def load_stream(stream: TextIO) -> Jobs:
    """Read the Job manifests of all stages from what `kubectl kustomize` printed.

    Raises:
        ConfigError: as `load_all`.
    """
    return jobs_of(parse(stream), shown(stream.name))


def overlay(name: str, folder: Path = OVERLAYS) -> Path:
    """The folder of an overlay, which a name with a slash is itself; "" is k8s/base.

    Raises:
        ConfigError: there is none of this name; lists those that exist.
    """
    if not name:
        return BASE
    if "/" in name:
        return Path(name)
    names = sorted(path.parent.name for path in folder.glob(f"*/{kustomize.FILE}"))
    if name not in names:
        raise ConfigError(
            f"--overlay {name!r}: no such overlay (allowed: {', '.join(names) or 'none'})",
            hint=f"An overlay is a folder in {shown(folder)} with a {kustomize.FILE}.",
        )
    return folder / name


def jobs_of(documents: Iterable[Document], origin: str) -> Jobs:
    """The Jobs among documents, by stage; `origin` says where they come from."""
    jobs: dict[str, Job] = {}
    problems: list[str] = []
    for document in documents:
        if document.get("kind") == "Job":
            try:
                job = job_of(document)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if job.stage in jobs:
                problems.append(f"{document.place()}: a second Job {job.metadata.name}")
            jobs[job.stage] = job
    if not problems:
        missing = [f"raft-{stage}" for stage in STAGES if stage not in jobs]
        problems = [f"{origin}: no Job named {name}" for name in missing]
    if problems:
        raise ConfigError(
            "\n".join(problems),
            hint="What the pipeline can follow is listed in pipelines/k8s/job.py.",
        )
    return jobs
