"""Compiles the pipelines to the YAML that Kubeflow takes, or checks the existing file.

The same sources and the same kfp give the same bytes; the compiled file names the kfp version.
"""

import ast
import importlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.core.errors import ConfigError
from components.core.progress import say
from components.core.storage import atomic_write
from pipelines import manifests
from pipelines.k8s.images import write_images
from pipelines.k8s.kustomize import FILE
from pipelines.k8s.located import short_path

OBJECT_DEFAULT = re.compile(r"^(#    \w+: (?:list|dict) \[Default: )(.*)\]$", re.MULTILINE)
PIPELINES = ("raft", "study")
SETTINGS = Path("docs/settings.md")
FORM = Path("docs/kubeflow.md")


def compile_pipelines(
    pipeline: str | None = None,
    output: str | None = None,
    *,
    check: bool = False,
    overlay: str = "",
    registry: str = "",
    tag: str = "",
    digests: Sequence[str] = (),
    parallelism: int | None = None,
    cache_volume: str = "",
) -> None:
    """Write compiled pipelines, or only compare every byte of them.

    The arguments are those of `raft compile`, whose help explains them.

    Raises:
        ConfigError: a Job manifest is not understood, there is no such overlay, or a value is not
            allowed; with `check`, also where a file is missing or differs.
    """
    from pipelines.settings_page import settings_page, with_form_table

    names = [pipeline] if pipeline else PIPELINES[:1] if output else PIPELINES
    if parallelism and "study" not in names:
        raise ConfigError(
            f"--parallelism: the pipeline {names[0]} has no trials", hint="Add --pipeline study."
        )
    if registry or tag or digests:
        if check:
            raise ConfigError(
                "--check: not with --registry, --tag or --digest, which write k8s/base"
            )
        for folder in (manifests.BASE, manifests.BASE / "serve"):
            write_images(folder, registry, tag, digests)
            say(f"wrote {short_path(folder / FILE)}")
    jobs = manifests.load_all(manifests.overlay(overlay))
    for job in jobs.values():
        for note in job.notes():
            say(f"  {note}")
    kind = overlay.replace("/", "-")
    for name in names:
        path = output or (f"{name}-{kind}.yaml" if kind else f"pipelines/{name}.yaml")
        options = {"parallelism": parallelism} if name == "study" else {}
        _write(Path(path), compiled(jobs, name, cache_volume=cache_volume, **options), check=check)
        if cache_volume and name == "study" and parallelism != 1:
            say(f"  {cache_volume}: trials on several nodes at once need its mode ReadWriteMany")
    if names == PIPELINES and not kind:
        _write(SETTINGS, settings_page(), check=check)
        if FORM.is_file():  # a text of which compiling writes a part
            _write(FORM, with_form_table(FORM.read_text(encoding="utf-8"), jobs), check=check)


def _write(path: Path, text: str, *, check: bool) -> None:
    if not check:
        with atomic_write(path) as file:
            file.write(text)
        say(f"wrote {path}")
    elif not path.is_file() or path.read_bytes() != text.encode():
        raise ConfigError(
            f"{path} is missing, or not what the sources compile to",
            hint="The same command without --check writes it; `git diff` shows the difference.",
        )
    else:
        say(f"{path} is up to date")


def compiled(
    jobs: manifests.Jobs | Path = manifests.BASE, name: str = PIPELINES[0], **options: Any
) -> str:
    """A pipeline as YAML, its steps on the hardware of the Jobs, or of those in a folder.

    Args:
        options: further arguments of the pipeline's module.

    Raises:
        ConfigError: a manifest is missing or not understood.
    """
    from kfp import compiler

    pipeline = importlib.import_module(f"pipelines.{name}").pipeline
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raft.yaml"
        by_stage = manifests.load_all(jobs) if isinstance(jobs, Path) else jobs
        compiler.Compiler().compile(pipeline(by_stage, **options), str(path))
        return OBJECT_DEFAULT.sub(_ordered, path.read_text(encoding="utf-8"))


def _ordered(match: re.Match[str]) -> str:
    """kfp prints the objects in a default with their keys in no particular order."""
    return f"{match[1]}{json.dumps(ast.literal_eval(match[2]), sort_keys=True)}]"
