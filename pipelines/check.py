"""Finds in Job manifests, with file and line, what a cluster would refuse or let wait for ever.

No cluster is asked. Objects other than Jobs are left to the API server; the compiled pipelines are
compared by `raft compile --check`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.k8s import kustomize
from pipelines.k8s.images import warn_without_registry
from pipelines.k8s.located import Document, read, shown
from pipelines.k8s.references import reference_errors
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
    # Objects of a part of k8s/ may name those of the base; a whole has a namespace of its own.
    whole = any(document.get("kind") == "Namespace" for document in documents)
    base = kustomize.render(manifests.BASE) if manifests.BASE.is_dir() and not whole else []
    errors = reference_errors(jobs.values(), [*documents, *base])
    if errors:
        raise ConfigError("\n".join(errors))
    return [job.container.image for job in jobs.values()]


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
