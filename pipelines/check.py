"""Checks k8s/ and compiled pipelines without a cluster, and says file and line of every fault.

What the API server and the Kubeflow backend would refuse is refused here, before anything is
uploaded. k8s/ knows the manifests, specification/ the compiled pipeline.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.compile import PIPELINES, compiled
from pipelines.k8s import kustomize, objects
from pipelines.k8s.job import job_of
from pipelines.k8s.located import Document, Text, parse, read, shown
from pipelines.specification import specification

TEACHER = manifests.BASE / "teacher"
COMPILED = [Path(__file__).parent / f"{name}.yaml" for name in PIPELINES]


def run(paths: Sequence[str] = ()) -> None:
    """Check files, folders or standard input ("-"); without any, all that a checkout holds.

    Raises:
        ConfigError: lists all faults.
    """
    found: list[str] = []
    sources = [*paths] or [str(path) for path in everything()]
    for source in sources:
        try:
            found += complaints(source)
        except ConfigError as error:
            found += str(error).splitlines()
    if found:
        raise ConfigError(
            "\n".join(dict.fromkeys(found)),  # a fault of the base is one of every overlay
            hint="`raft check PATH` checks one file or folder again; "
            "`kubectl explain job.spec` describes fields.",
        )
    click.echo(f"{len(sources)} checked, nothing to fix", err=True)


def everything() -> list[Path]:
    """The folders of k8s/ that can be applied, and the committed pipelines."""
    overlays = sorted(path.parent for path in manifests.OVERLAYS.glob(f"*/{kustomize.FILE}"))
    return [manifests.BASE, TEACHER, *overlays, *COMPILED]


def complaints(source: str) -> list[str]:
    """Complaints about a folder, a file or standard input, each with file and line.

    Raises:
        ConfigError: it cannot be read or compiled.
    """
    if source == "-":
        return _contents(parse(sys.stdin), source)
    if Path(source).is_dir():
        return _folder(Path(source))
    return _contents(read(Path(source)), source)


def _folder(path: Path) -> list[str]:
    """Complaints about a kustomization, and about the pipeline that its Jobs compile to."""
    documents = kustomize.render(path)
    found = _objects(documents)
    if not found and any(map(_is_job, documents)):
        found = _compiled(manifests.jobs_of(documents, shown(path)), shown(path))
    return found


def _contents(documents: list[Document], source: str) -> list[str]:
    if not documents:
        return [f"{shown(source)}: holds nothing"]
    if any(map(specification.is_pipeline, documents)):
        return specification.complaints(documents)
    found = _objects(documents)
    jobs = {job.stage: job for job in map(job_of, filter(_is_job, documents))} if not found else {}
    if jobs and manifests.BASE.is_dir():
        found = _compiled({**manifests.load_all(), **jobs}, shown(source))
    return found


def _is_job(document: Document) -> bool:
    return bool(document.get("kind") == "Job")


def _objects(documents: Iterable[Document]) -> list[str]:
    """Objects of a part of k8s/ may name those of the base; a whole stands for itself."""
    documents = list(documents)
    whole = any(document.get("kind") == "Namespace" for document in documents)
    there = manifests.BASE.is_dir() and not whole
    return objects.complaints(documents, kustomize.render(manifests.BASE) if there else ())


def _compiled(jobs: manifests.Jobs, source: str) -> list[str]:
    """Complaints about the pipelines that Jobs compile to."""
    texts = [Text(compiled(jobs, name), f"pipeline {name} of {source}") for name in PIPELINES]
    return [found for text in texts for found in specification.complaints(parse(text))]
