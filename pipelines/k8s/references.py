"""What a Job names must exist, and its pod must be one that its namespace admits.

`kubectl apply` accepts a Job whose service account, priority class or ConfigMap is missing; its
pods are then never made, or never start.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipelines.k8s.job import CONTAINER, POD, Job
from pipelines.k8s.located import Document, Location
from pipelines.k8s.security import RESTRICTED


def reference_errors(jobs: Iterable[Job], objects: Sequence[Document]) -> list[str]:
    """What Jobs miss among the objects that are applied with them, as `file:line: field: problem`.

    Objects other than Jobs are not checked themselves: the API server does that.
    """
    return [error for job in jobs for error in _errors(job, objects)]


def _errors(job: Job, objects: Sequence[Document]) -> Iterator[str]:
    namespace = job.metadata.namespace
    variables = {variable.name for variable in job.container.env}
    references: list[tuple[str, str | None, str | None, Location]] = [
        ("ServiceAccount", job.pod.service_account_name, namespace, (*POD, "serviceAccountName")),
        ("PriorityClass", job.pod.priority_class_name, None, (*POD, "priorityClassName")),
    ]
    for index, source in enumerate(job.container.env_from or ()):
        reference = source.config_map_ref
        if not reference.optional:
            field = (*CONTAINER, "envFrom", index, "configMapRef", "name")
            references.append(("ConfigMap", reference.name, namespace, field))
        for data in _all(objects, "ConfigMap", reference.name, namespace, "data"):
            variables |= set(data) if isinstance(data, dict) else set()
    for kind, name, home, at in references:
        if name is not None and not list(_all(objects, kind, name, home)):
            names = sorted(map(str, _all(objects, kind, None, home, "metadata", "name")))
            yield f"{_field(job, at)} {name!r}: no such {kind} ({_allowed(names)})"
    for index, argument in enumerate(job.container.args):
        for name in re.findall(r"\$\(([^)]*)\)", argument):
            if name not in variables:
                place = job.place(*CONTAINER, "args", index)
                yield f"{place}: $({name}): no such variable ({_allowed(sorted(variables))})"
    level = ("metadata", "labels", "pod-security.kubernetes.io/enforce")
    if "restricted" in _all(objects, "Namespace", namespace, None, *level):
        for key, wanted in RESTRICTED.items():
            value = job.get(*POD, *key)
            if value != wanted:
                yield (
                    f"{_field(job, (*POD, *key))} {value!r}: the namespace refuses such pods "
                    f"(allowed: {wanted!r})"
                )


def _all(
    objects: Iterable[Document], kind: str, name: str | None, namespace: str | None, *at: str
) -> Iterator[Any]:
    """A value of each object of a kind that has this name, or of all of the kind for None."""
    for document in objects:
        identity = (document.get("kind"), document.get("metadata", "namespace"))
        if identity == (kind, namespace) and name in (None, document.get("metadata", "name")):
            yield document.get(*at)


def _field(job: Job, at: Location) -> str:
    return f"{job.place(*at)}: {'.'.join(map(str, at))}"


def _allowed(names: list[str]) -> str:
    return f"allowed: {', '.join(names) or 'none'}"
