"""The folders of Job manifests: k8s/base, which `kubectl` uses as it is, and its overlays.

Reading them reports, with file and line, what leaves a pod waiting or is easily mistaken. No
cluster is asked. Objects other than Jobs, and what else a Job may not be, are left to the API
server: `raft preflight` asks it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.core.errors import ConfigError
from components.core.progress import say
from pipelines.k8s import kustomize
from pipelines.k8s.images import warn_without_registry
from pipelines.k8s.job import CONTAINER, Job, job_of
from pipelines.k8s.located import Document, read, short_path
from pipelines.stages import JOBS

BASE = Path(__file__).parents[1] / "k8s" / "base"
OVERLAYS = BASE.parent / "overlays"

Jobs = Mapping[str, Job]
"""The Jobs by name ("quantize-check"): one per stage, and that of a GPU teacher."""


def load_all(folder: Path = BASE) -> Jobs:
    """Read all Job manifests from a folder with a kustomization.

    Raises:
        ConfigError: a file is missing or not YAML, a Job is missing or belongs to no stage, or a
            field is wrong or not understood; names file, line and field.
    """
    if not (folder / kustomize.FILE).exists():
        raise ConfigError(
            f"{short_path(folder)}: no {kustomize.FILE} there",
            hint="The Job manifests are in k8s/base of a checkout; run `raft` from one.",
        )
    jobs = jobs_among(kustomize.render(folder))
    if missing := [name for name in JOBS if name not in jobs]:
        raise ConfigError(f"{short_path(folder)}: no Job for {', '.join(missing)}")
    return jobs


def overlay(name: str) -> Path:
    """The folder of an overlay, which a name with a slash is itself; "" is k8s/base.

    Raises:
        ConfigError: there is none of this name; lists those that exist.
    """
    if not name:
        return BASE
    if "/" in name:
        return Path(name)
    names = [path.name for path in overlays()]
    if name not in names:
        raise ConfigError(
            f"--overlay {name!r}: no such overlay (allowed: {', '.join(names) or 'none'})",
            hint=f"An overlay is a folder in {short_path(OVERLAYS)} with a {kustomize.FILE}.",
        )
    return OVERLAYS / name


def overlays() -> list[Path]:
    """The folders of all overlays."""
    return sorted(path.parent for path in OVERLAYS.glob(f"*/{kustomize.FILE}"))


def check_manifests(paths: Sequence[str] = ()) -> None:
    """Check files and folders; without any, k8s/base and all overlays.

    Raises:
        ConfigError: lists all errors.
    """
    errors: list[str] = []
    images: list[str] = []
    notes: dict[str, None] = {}
    checked = [Path(path) for path in paths] or [BASE, *overlays()]
    for path in checked:
        try:
            jobs = load_all(path) if path.is_dir() else jobs_among(read(path))
            images += [job.container.image for job in jobs.values()]
            notes |= dict.fromkeys(note for job in jobs.values() for note in job.notes())
            if not jobs:
                errors.append(f"{short_path(path)}: holds no Job")
        except ConfigError as error:
            errors += str(error).splitlines()
    if errors:
        raise ConfigError(
            "\n".join(dict.fromkeys(errors)),  # an error of the base is one of every overlay
            hint="`raft check PATH` checks one file or folder again; "
            "`kubectl explain job.spec` describes fields.",
        )
    warn_without_registry(images)
    for note in notes:
        say(f"  {note}")
    say(f"{len(checked)} checked, nothing to fix")


def jobs_among(documents: Sequence[Document]) -> Jobs:
    """The Jobs among documents, by name.

    Raises:
        ConfigError: lists what is wrong in each of them.
    """
    settings = {
        str(document.get("metadata", "name")): document.get("data")
        for document in documents
        if document.get("kind") == "ConfigMap"
    }
    jobs: dict[str, Job] = {}
    errors: list[str] = []
    for document in documents:
        if document.get("kind") == "Job":
            try:
                job = job_of(document)
                jobs[job.name] = job
                errors += _variable_errors(job, settings)
            except ConfigError as error:
                errors.append(str(error))
    if errors:
        raise ConfigError(
            "\n".join(errors),
            hint="What the pipeline can follow is listed in pipelines/k8s/job.py.",
        )
    return jobs


def _variable_errors(job: Job, settings: Mapping[str, Any]) -> Iterator[str]:
    """Each $(VARIABLE) in args that the container does not have: it would stay as it is written.

    Args:
        settings: the data of ConfigMaps by name. Without the Job's own, nothing can be said.
    """
    known = {variable.name for variable in job.container.env}
    for source in job.container.env_from or ():
        data = settings.get(source.config_map_ref.name)
        if not isinstance(data, dict):
            return
        known.update(map(str, data))
    for index, argument in enumerate(job.container.args):
        for name in re.findall(r"\$\(([^)]*)\)", argument):
            if name not in known:
                yield (
                    f"{job.place(*CONTAINER, 'args', index)}: $({name}): no such variable "
                    f"(allowed: {', '.join(sorted(known)) or 'none'})"
                )
