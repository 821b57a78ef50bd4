"""Images of a kustomization's `images:`, and those that no node of a cluster would find."""

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import yaml

from components.core.progress import say
from pipelines.k8s.job import POD
from pipelines.k8s.located import Document, StrictModel

LOCAL_CONTEXTS = ("kind-*", "k3d-*", "minikube", "docker-desktop", "rancher-desktop")
"""Clusters whose nodes have the images of this machine."""


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


def warn_without_registry(images: Iterable[str]) -> None:
    """Warn of images that have no registry, where the cluster's nodes would not have them."""
    bare = sorted({image for image in images if "/" not in image})
    context = _current_context() if bare else ""
    if context and not any(fnmatch(context, pattern) for pattern in LOCAL_CONTEXTS):
        say(
            f"warning: {', '.join(bare)}: no registry, and {context} is no local cluster; "
            "make push REGISTRY=HOST/PATH pushes the images and writes where they lie"
        )


def images_of(pipeline: Path) -> list[str]:
    """The images of a compiled pipeline."""
    return re.findall(r"^ +image: (\S+)$", pipeline.read_text(encoding="utf-8"), re.MULTILINE)


def _current_context() -> str:
    """The context of the kubeconfig that kubectl would use; "" without one."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    for path in paths.split(os.pathsep):
        try:
            context = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["current-context"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
        if context:
            return str(context)
    return ""
