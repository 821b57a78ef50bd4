"""Finds in Job manifests, with file and line, what leaves a pod waiting or is easily mistaken.

No cluster is asked. Objects other than Jobs, and what else a Job may not be, are left to the API
server: `raft preflight` asks it. The compiled pipelines are compared by `raft compile --check`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.k8s import kustomize
from pipelines.k8s.images import warn_without_registry
from pipelines.k8s.job import CONTAINER, Job
from pipelines.k8s.located import Document, read, shown
from pipelines.stages import STAGES

TEACHER = manifests.BASE / "teacher"


def check_manifests(sources: Sequence[str] = ()) -> None:
    """Check files, folders or standard input ("-"); without any, all folders of k8s/.

    Raises:
        ConfigError: lists all errors.
    """
    errors: list[str] = []
    images: list[str] = []
    sources = [*sources] or [str(folder) for folder in all_folders()]
    for source in sources:
        try:
            images += check_source(source)
        except ConfigError as error:
            errors += str(error).splitlines()
    if errors:
        raise ConfigError(
            "\n".join(dict.fromkeys(errors)),  # an error of the base is one of every overlay
            hint="`raft check PATH` checks one file or folder again; "
            "`kubectl explain job.spec` describes fields.",
        )
    click.echo(f"{len(sources)} checked, nothing to fix", err=True)
    warn_without_registry(images)


def all_folders() -> list[Path]:
    """The folders of k8s/ that can be applied."""
    return [manifests.BASE, TEACHER, *manifests.overlays()]


def check_source(source: str) -> list[str]:
    """Check a folder, a file or standard input; returns the images of its Jobs.

    Raises:
        ConfigError: lists all errors.
    """
    path = Path(source)
    documents = kustomize.render(path) if path.is_dir() else read(path)
    errors = [*_kind_errors(documents)] if documents else [f"{shown(path)}: holds nothing"]
    if errors:
        raise ConfigError("\n".join(errors))
    # A folder is applied as a whole, so a stage without a Job is an error there.
    jobs = manifests.jobs_among(documents)
    if jobs and path.is_dir():
        jobs = manifests.all_jobs(documents, shown(path))
    # A file of k8s/base may name variables of the settings beside it.
    whole = any(document.get("kind") == "Namespace" for document in documents)
    base = [] if whole or not manifests.BASE.is_dir() else kustomize.render(manifests.BASE)
    if errors := [*variable_errors(jobs.values(), [*documents, *base])]:
        raise ConfigError("\n".join(errors))
    return [job.container.image for job in jobs.values()]


def variable_errors(jobs: Iterable[Job], objects: Sequence[Document]) -> Iterator[str]:
    """Each $(VARIABLE) in args that the container does not have: it would stay as it is written."""
    settings = [document for document in objects if document.get("kind") == "ConfigMap"]
    for job in jobs:
        variables = {variable.name for variable in job.container.env}
        names = [source.config_map_ref.name for source in job.container.env_from or ()]
        for document in settings:
            data = document.get("data")
            if document.get("metadata", "name") in names and isinstance(data, dict):
                variables |= set(map(str, data))
        for index, argument in enumerate(job.container.args):
            for name in re.findall(r"\$\(([^)]*)\)", argument):
                if name not in variables:
                    yield (
                        f"{job.place(*CONTAINER, 'args', index)}: $({name}): no such variable "
                        f"(allowed: {', '.join(sorted(variables)) or 'none'})"
                    )


def _kind_errors(documents: Sequence[Document]) -> Iterator[str]:
    """Errors of documents that are no objects, or that a stage's Job has become."""
    for document in documents:
        kind, name = document.get("kind"), document.get("metadata", "name")
        if kind is None:
            yield (
                f"{document.place()}: not a Kubernetes object, which has a kind (a compiled "
                "pipeline is checked by raft compile --check)"
            )
        elif not isinstance(kind, str):
            yield f"{document.place('kind')}: kind {kind!r} (allowed: a name such as Job)"
        elif kind != "Job" and name in [f"raft-{stage}" for stage in STAGES]:
            yield f"{document.place('kind')}: kind {kind!r} of {name} (allowed: Job)"
