"""Where the images lie: written into the `images:` of a kustomization, which everything follows."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import yaml

from components.core.errors import ConfigError
from components.core.progress import say
from components.core.storage import atomic_write
from pipelines.k8s.kustomize import FILE, ImageEntry, read_kustomization
from pipelines.k8s.located import Document, meant
from pipelines.stages import STAGES

LOCAL_CONTEXTS = ("kind-*", "k3d-*", "minikube", "docker-desktop", "rancher-desktop")
"""Clusters whose nodes have the images of this machine."""

ALLOWED = {
    "--registry": (
        r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*",
        "HOST/PATH, without a scheme and without a slash at the end",
    ),
    "--tag": (r"(?!latest$)\w[\w.-]{0,127}", "a version such as 0.1.0, never latest"),
    "--digest": (r"sha256:[0-9a-f]{64}", "STAGE=sha256:..., as `make push` reads it from Docker"),
}
"""The values that each flag takes: a pattern, and in words."""


def write_images(
    folder: Path, registry: str | None, tag: str | None, digests: Iterable[str]
) -> None:
    """Write the images of all stages into a kustomization; the rest of the file stays as it is.

    What is None keeps its value; a digest ends with the registry or the tag that it belonged to.

    Args:
        digests: `STAGE=sha256:...`, as `make push` gives them.

    Raises:
        ConfigError: a value is not allowed, or the file is not a kustomization.
    """
    new_digests = _check(registry, tag, digests)
    document, kustomization = read_kustomization(folder)
    entries = {entry.name: entry for entry in kustomization.images}
    for stage in STAGES:
        name = f"raft-{stage}"
        old = entries.get(name, ImageEntry(name=name))
        update = {
            "new_name": f"{registry}/{name}" if registry else old.new_name,
            "new_tag": tag or old.new_tag,
            "digest": new_digests.get(stage, None if registry or tag else old.digest),
        }
        entries[name] = old.model_copy(update=update)
    images = [entry.model_dump(by_alias=True, exclude_none=True) for entry in entries.values()]
    block = yaml.safe_dump({"images": images}, sort_keys=False).splitlines()
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    start, end = _lines_of_images(document, lines)
    comments = [line for line in lines[start:end] if line.lstrip().startswith("#")]
    lines[start:end] = [block[0], *comments, *(f"  {line}" for line in block[1:])]
    with atomic_write(folder / FILE) as file:
        file.write("\n".join(lines) + "\n")


def _check(registry: str | None, tag: str | None, digests: Iterable[str]) -> dict[str, str]:
    """The digests by stage."""
    by_stage: dict[str, str] = {}
    for text in digests:
        stage, _, digest = text.partition("=")
        by_stage[stage] = digest
        if stage not in STAGES:
            raise ConfigError(
                f"--digest {text!r}: no image of that name (allowed: {', '.join(STAGES)})"
                f"{meant(stage, STAGES)}"
            )
    digest_values = [("--digest", digest) for digest in by_stage.values()]
    for flag, value in [("--registry", registry), ("--tag", tag), *digest_values]:
        pattern, words = ALLOWED[flag]
        if value is not None and re.fullmatch(pattern, value, re.ASCII) is None:
            raise ConfigError(f"{flag} {value!r}: not allowed (allowed: {words})")
    return by_stage


def _lines_of_images(document: Document, lines: list[str]) -> tuple[int, int]:
    """The first line of `images:` and the one after its last."""
    starts = {key.value: key.start_mark.line for key, _ in document.node.value}
    start = starts.get("images", len(lines))
    end = min((line for line in starts.values() if line > start), default=len(lines))
    while end > start and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1  # what stands before the next key is about that
    return start, end


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
        with suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if context := config["current-context"]:
                return str(context)
    return ""
