"""Compiles the pipelines to the YAML that Kubeflow takes, or checks the file that lies there.

The same sources and the same kfp give the same bytes; the compiled file names the kfp version.
"""

import ast
import difflib
import importlib
import json
import re
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from components.core.errors import ConfigError
from components.core.progress import say
from components.core.storage import atomic_write
from pipelines import manifests
from pipelines.k8s.images import write_images
from pipelines.k8s.kustomize import FILE
from pipelines.k8s.located import read, shown

DIFF_LINES = 20
OBJECT_DEFAULT = re.compile(r"^(#    \w+: (?:list|dict) \[Default: )(.*)\]$", re.MULTILINE)
PIPELINES = ("raft", "study")
SETTINGS = Path("docs/settings.md")


def compile_pipelines(
    pipeline: str | None = None,
    output: str | None = None,
    *,
    check: bool = False,
    overlay: str = "",
    manifest_file: str = "",
    shards: int = 1,
    registry: str | None = None,
    tag: str | None = None,
    digests: Sequence[str] = (),
) -> None:
    """Write compiled pipelines, or only compare every byte of them.

    The arguments are those of `raft compile`, whose help explains them.

    Raises:
        ConfigError: a Job manifest is not understood, there is no such overlay, or a value is not
            allowed; with `check`, also where a file is missing or differs.
    """
    from pipelines.settings_page import settings_page

    if overlay and manifest_file:
        raise ConfigError("--overlay and --manifests: give one of the two")
    names = [pipeline] if pipeline else PIPELINES[:1] if output or shards > 1 else PIPELINES
    if shards > 1 and "study" in names:
        raise ConfigError("--shards: only the pipeline raft has shards, not study")
    if registry is not None or tag is not None or digests:
        if check or manifest_file:
            raise ConfigError(
                "--registry, --tag and --digest write k8s/base, so they cannot be combined with "
                f"{'--check' if check else '--manifests'}"
            )
        write_images(manifests.BASE, registry, tag, digests)
        say(f"wrote {shown(manifests.BASE / FILE)}")
    if manifest_file:
        jobs = manifests.all_jobs(read(Path(manifest_file)), shown(manifest_file))
    else:
        jobs = manifests.load_all(manifests.overlay(overlay))
    options = [f"--overlay {overlay}"] if overlay else []
    options += [f"--manifests {manifest_file}"] if manifest_file else []
    options += [f"--shards {shards}"] if shards > 1 else []
    source = ("-manifests" if manifest_file else f"-{overlay}" if overlay else "").replace("/", "-")
    source += f"-{shards}-shards" if shards > 1 else ""
    for name in names:
        path = output or (f"{name}{source}.yaml" if source else f"pipelines/{name}.yaml")
        flags = [] if name == PIPELINES[0] else [f"--pipeline {name}"]
        command = " ".join(["raft compile", *flags, *options, f"--output {path}"])
        _write(Path(path), compiled(jobs, name, shards), command, check=check)
    if names == PIPELINES and not source:
        _write(SETTINGS, settings_page(), "raft compile", check=check)


def _write(path: Path, text: str, command: str, *, check: bool) -> None:
    """Write a file, or compare it; `command` is the one that writes it."""
    if not check:
        with atomic_write(path) as file:
            file.write(text)
        say(f"wrote {path}")
        return
    try:
        committed = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=command) from None
    if committed != text.encode():
        lines = committed.decode(errors="replace").splitlines()
        diff = difflib.unified_diff(
            lines, text.splitlines(), str(path), "compiled now", lineterm="", n=1
        )
        first, rest = [*islice(diff, DIFF_LINES)], len([*diff])
        more = [f"... and {rest} more lines"] if rest else []
        problem = "\n".join([f"{path} is not what the pipeline compiles to:", *first, *more])
        raise ConfigError(problem, hint=command)
    say(f"{path} is up to date")


def compiled(
    jobs: manifests.Jobs | Path = manifests.BASE, name: str = PIPELINES[0], shards: int = 1
) -> str:
    """A pipeline as YAML, its steps on the hardware of the Jobs, or of those in a folder.

    Raises:
        ConfigError: a manifest is missing or not understood.
    """
    from kfp import compiler

    pipeline = importlib.import_module(f"pipelines.{name}").pipeline
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raft.yaml"
        by_stage = manifests.load_all(jobs) if isinstance(jobs, Path) else jobs
        options = {"shards": shards} if shards > 1 else {}
        compiler.Compiler().compile(pipeline(by_stage, **options), str(path))
        return OBJECT_DEFAULT.sub(_ordered, path.read_text(encoding="utf-8"))


def _ordered(match: re.Match[str]) -> str:
    """kfp prints the objects in a default with their keys in no particular order."""
    return f"{match[1]}{json.dumps(ast.literal_eval(match[2]), sort_keys=True)}]"
