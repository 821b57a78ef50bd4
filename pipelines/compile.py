"""Compiles the pipeline to the YAML that Kubeflow takes, or checks the file that lies there.

The same sources and the same kfp give the same bytes; the compiled file names the kfp version.
"""

import difflib
import tempfile
from itertools import islice
from pathlib import Path

from components.errors import ConfigError
from components.storage import atomic_write
from pipelines import manifests

DIFF_LINES = 20


def run(output: Path, *, check: bool) -> None:
    """Write the compiled pipeline to `output`, or only compare every byte of it.

    Raises:
        ConfigError: a Job manifest is not understood; with `check`, also where `output` is
            missing or differs.
    """
    text = compiled()
    if check:
        _compare(output, text)
        return
    with atomic_write(output) as file:
        file.write(text)


def compiled(jobs: Path = manifests.BASE) -> str:
    """The pipeline as YAML, its steps on the hardware of the Job manifests in `jobs`."""
    from kfp import compiler

    from pipelines.raft import pipeline

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raft.yaml"
        compiler.Compiler().compile(pipeline(jobs), str(path))
        return path.read_text(encoding="utf-8")


def _compare(output: Path, text: str) -> None:
    try:
        committed = output.read_bytes()
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}", hint=_command(output)) from None
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
        hint=_command(output),
    )


def _command(output: Path) -> str:
    return f"raft compile --output {output}"
