"""Where the images are: written into the `images:` of a kustomization, which everything follows."""

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import yaml
from pydantic import ValidationError

from components.core.config import message
from components.core.errors import ConfigError
from components.core.progress import say
from components.core.storage import atomic_write
from pipelines.k8s.kustomize import FILE, ImageEntry, read_kustomization
from pipelines.stages import JOBS

LOCAL_CONTEXTS = ("kind-*", "k3d-*", "minikube", "docker-desktop", "rancher-desktop")
"""Clusters whose nodes have the images of this machine."""


def write_images(folder: Path, registry: str, tag: str, digests: Iterable[str]) -> None:
    """Write the images of all Jobs into a kustomization; `images:` is its last field.

    What is empty keeps its value; a digest ends with the registry or the tag that it belonged to.

    Args:
        digests: `IMAGE=sha256:...`, as `make push` gives them.

    Raises:
        ConfigError: a value is not allowed, or the file is not such a kustomization.
    """
    new_digests = dict(text.partition("=")[::2] for text in digests)
    if unknown := sorted(new_digests.keys() - set(JOBS)):
        raise ConfigError(f"--digest {unknown[0]!r}: no such image (allowed: {', '.join(JOBS)})")
    document, kustomization = read_kustomization(folder)
    entries = {entry.name: entry for entry in kustomization.images}
    for job in JOBS:
        name = f"raft-{job}"
        old = entries.get(name, ImageEntry(name=name))
        values = {
            "name": name,
            "newName": f"{registry}/{name}" if registry else old.new_name,
            "newTag": tag or old.new_tag,
            "digest": new_digests.get(job, None if registry or tag else old.digest),
        }
        try:
            entries[name] = ImageEntry.model_validate(values)
        except ValidationError as error:
            problem = message(error.errors()[0])
            hint = "--registry takes HOST/PATH, no scheme and no slash at the end; --tag a version."
            raise ConfigError(f"--registry, --tag or --digest: {problem}", hint=hint) from None
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    start = len(lines)
    if "images" in document.value:
        place = document.place("images")
        if [*document.value][-1] != "images":
            raise ConfigError(f"{place}: images (allowed: as the last field)")
        start = int(place.rpartition(":")[2]) - 1
    comments = [line for line in lines[start:] if line.lstrip().startswith("#")]
    images = [entry.model_dump(by_alias=True, exclude_none=True) for entry in entries.values()]
    block = yaml.safe_dump(images, sort_keys=False).splitlines()
    lines[start:] = ["images:", *comments, *(f"  {line}" for line in block)]
    with atomic_write(folder / FILE) as file:
        file.write("\n".join(lines) + "\n")


def warn_without_registry(images: Iterable[str]) -> None:
    """Warn of images that have no registry, where the cluster's nodes would not have them."""
    bare = sorted({image for image in images if "/" not in image})
    context = _current_context() if bare else ""
    if context and not any(fnmatch(context, pattern) for pattern in LOCAL_CONTEXTS):
        say(
            f"warning: {', '.join(bare)}: no registry, and {context} is no local cluster; "
            "make push REGISTRY=HOST/PATH pushes the images and writes where they are"
        )


def images_of(pipeline: Path) -> list[str]:
    """The images of a compiled pipeline."""
    text = pipeline.read_text(encoding="utf-8")
    return re.findall(r"^ +image: ([^\s{']+)$", text, re.MULTILINE)


def _current_context() -> str:
    """The context of the kubeconfig that kubectl would use; "" without one."""
    from kubernetes import config

    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        return str(config.list_kube_config_contexts(paths)[1]["name"])
    except (config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError):
        return ""
