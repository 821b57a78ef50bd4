"""Renders a folder of manifests: the small part of kustomize that k8s/overlays needs.

Why not `kubectl kustomize`: it need not be installed where a pipeline is compiled, and its output
has lost the lines of the files that it came from. Here every value keeps the place where it was
written, be it the base or a patch. What is left out is refused, not guessed: generators,
transformers, JSON patches, and lists that nobody has told us how to merge. A test holds the result
against the real `kubectl kustomize` for every overlay; a kustomization that needs more goes through
`kubectl kustomize FOLDER | raft compile --manifests -`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from components.core.errors import ConfigError
from pipelines.k8s.located import Document, Part, place, read, shown, validate

FILE = "kustomization.yaml"

MERGED_BY = {
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists whose entries a patch finds by a key."""

REPLACED = {"args", "command", "drop", "envFrom", "rules", "tolerations", "values"}
"""Lists that a patch replaces whole."""

NULL = "tag:yaml.org,2002:null"


class Target(Part):
    kind: str | None = None
    name: str | None = None


class Patch(Part):
    path: str
    target: Target | None = None


class Kustomization(Part):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    resources: list[str]
    patches: list[Patch] = Field(default_factory=list)


def render(folder: Path) -> list[Document]:
    """The objects of a kustomization, patched, each value with the place where it was written.

    Raises:
        ConfigError: a file is missing or not YAML, something in the kustomization is beyond this
            renderer, or a patch patches nothing.
    """
    path = folder / FILE
    documents = read(path)
    if len(documents) != 1:
        raise ConfigError(f"{shown(path)}: {len(documents)} documents (allowed: one)")
    try:
        kustomization = validate(documents[0], Kustomization)
    except ConfigError as error:
        raise ConfigError(str(error), hint=_instead(folder)) from None
    rendered: list[Document] = []
    for name in kustomization.resources:
        resource = folder / name
        rendered += render(resource.resolve()) if resource.is_dir() else read(resource)
    for patch in kustomization.patches:
        for document in read(folder / patch.path):
            rendered = _patched(rendered, document, patch.target, folder)
    return rendered


def _patched(
    rendered: list[Document], patch: Document, target: Target | None, folder: Path
) -> list[Document]:
    if target is None:
        chosen = [document for document in rendered if _identity(document) == _identity(patch)]
        sought = " ".join(map(str, _identity(patch)[1:]))
    else:
        chosen = [document for document in rendered if _selects(target, document)]
        sought = " ".join(filter(None, (target.kind, target.name)))
    if not chosen:
        raise ConfigError(
            f"{patch.place()}: patches {sought}, which is in none of the resources",
            hint=f"Compare kind, name and namespace with what {shown(folder / FILE)} lists.",
        )
    spec = patch.node
    if target is not None:
        spec = _without_name(spec)
    return [
        Document(_merged(document.node, spec, "", folder)) if document in chosen else document
        for document in rendered
    ]


def _identity(document: Document) -> tuple[str | None, ...]:
    keys = (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"))
    return tuple(document.get(*key) for key in keys)


def _selects(target: Target, document: Document) -> bool:
    """Whether a target means a document; kustomize takes both of its fields as whole patterns."""
    wanted = ((target.kind, ("kind",)), (target.name, ("metadata", "name")))
    return all(
        pattern is None or re.fullmatch(pattern, str(document.get(*location)))
        for pattern, location in wanted
    )


def _without_name(node: yaml.Node) -> yaml.Node:
    """A patch with a target keeps the name of what it patches."""
    pairs = [
        (key, _like(value, [pair for pair in value.value if pair[0].value != "name"]))
        if key.value == "metadata"
        else (key, value)
        for key, value in node.value
    ]
    return _like(node, pairs)


def _merged(base: yaml.Node, patch: yaml.Node, name: str, folder: Path) -> yaml.Node:
    if isinstance(base, yaml.MappingNode) and isinstance(patch, yaml.MappingNode):
        return _merged_mapping(base, patch, folder)
    if isinstance(base, yaml.SequenceNode) and isinstance(patch, yaml.SequenceNode):
        if name in MERGED_BY:
            return _merged_list(base, patch, MERGED_BY[name], folder)
        if name not in REPLACED:
            known = ", ".join(sorted({*MERGED_BY, *REPLACED}))
            raise ConfigError(
                f"{place(patch)}: a patch of the list {name} (allowed: {known})",
                hint=_instead(folder),
            )
    return patch


def _merged_mapping(base: yaml.Node, patch: yaml.Node, folder: Path) -> yaml.Node:
    pairs = {key.value: (key, value) for key, value in base.value}
    for key, value in patch.value:
        if key.value.startswith("$"):
            raise ConfigError(
                f"{place(key)}: the directive {key.value} (allowed: null, to take a field away)",
                hint=_instead(folder),
            )
        if value.tag == NULL:
            pairs.pop(key.value, None)
        elif key.value in pairs:
            pairs[key.value] = key, _merged(pairs[key.value][1], value, key.value, folder)
        else:
            pairs[key.value] = key, value
    return _like(base, list(pairs.values()))


def _merged_list(base: yaml.Node, patch: yaml.Node, key: str, folder: Path) -> yaml.Node:
    """The patch's entries, merged into those with the same key, then the others of the base."""
    entries = {_value_of(entry, key): entry for entry in base.value}
    patched = []
    for entry in patch.value:
        name = _value_of(entry, key)
        if name is None:
            raise ConfigError(f"{place(entry)}: an entry without {key}, by which it is found")
        old = entries.pop(name, None)
        patched.append(entry if old is None else _merged(old, entry, "", folder))
    return _like(base, [*patched, *entries.values()])


def _value_of(entry: yaml.Node, key: str) -> str | None:
    pairs = entry.value if isinstance(entry, yaml.MappingNode) else []
    return next((str(value.value) for name, value in pairs if name.value == key), None)


def _like(node: yaml.Node, value: Sequence[object]) -> yaml.Node:
    """A node in the place of another, with other contents."""
    return type(node)(node.tag, list(value), node.start_mark, node.end_mark)


def _instead(folder: Path) -> str:
    return f"kubectl kustomize {shown(folder)} | raft compile --manifests -"
