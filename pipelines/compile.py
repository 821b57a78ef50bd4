"""Compiles the pipeline to the YAML that Kubeflow takes, or checks the file that lies there.

The same sources and the same kfp give the same bytes; the compiled file names the kfp version.
"""

import difflib
import sys
import tempfile
from itertools import islice
from pathlib import Path

from components.errors import ConfigError
from components.storage import atomic_write
from pipelines import manifests

DIFF_LINES = 20


def run(output: Path, *, check: bool, overlay: str = "", manifest_file: str = "") -> None:
    """Write the compiled pipeline to `output`, or only compare every byte of it.

    Args:
        output: the compiled file.
        check: compare, and write nothing.
        overlay: name of a folder in k8s/overlays to take the Jobs from; "" takes k8s/base.
        manifest_file: file of rendered manifests to take them from instead; "-" is standard input.

    Raises:
        ConfigError: a Job manifest is not understood, there is no such overlay; with `check`, also
            where `output` is missing or differs.
    """
    if overlay and manifest_file:
        raise ConfigError("--overlay and --manifests: give one of the two")
    if manifest_file:
        jobs = _read(manifest_file)
    else:
        jobs = manifests.load_all(manifests.overlay(overlay) if overlay else manifests.BASE)
    text = compiled(jobs)
    if check:
        options = [f"--overlay {overlay}"] if overlay else []
        options += [f"--manifests {manifest_file}"] if manifest_file else []
        _compare(output, text, " ".join(["raft compile", *options, f"--output {output}"]))
        return
    with atomic_write(output) as file:
        file.write(text)


def _read(manifest_file: str) -> manifests.Jobs:
    if manifest_file == "-":
        return manifests.load_stream(sys.stdin)
    try:
        with Path(manifest_file).open(encoding="utf-8") as stream:
            return manifests.load_stream(stream)
    except OSError as error:
        raise ConfigError(f"{manifest_file}: {error.strerror}") from None


def compiled(jobs: manifests.Jobs | Path = manifests.BASE) -> str:
    """The pipeline as YAML, its steps on the hardware of the Jobs, or of those in a folder."""
    from kfp import compiler

    from pipelines.raft import pipeline

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raft.yaml"
        compiler.Compiler().compile(pipeline(jobs), str(path))
        return path.read_text(encoding="utf-8")


def _compare(output: Path, text: str, command: str) -> None:
    try:
        committed = output.read_bytes()
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}", hint=command) from None
    if committed == text.encode():
        return
    changes = list(
        difflib.unified_diff(
            committed.decode(errors="replace").splitlines(),
            text.splitlines(),
            str(output),
            "compiled now",
            lineterm="",
            n=1,
        )
    )
    rest = len(changes) - DIFF_LINES
    raise ConfigError(
        "\n".join(
            [
                f"{output} is not what the pipeline compiles to:",
                *islice(changes, DIFF_LINES),
                *([f"... and {rest} lines more"] if rest > 0 else []),
            ]
        ),
        hint=command,
    )
