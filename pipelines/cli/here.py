"""Commands that run on this machine: each declares flags and calls one function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from components.core.errors import ConfigError
from pipelines.cli.flags import Command, PlanCommand


def _local_folder(_context: click.Context, _option: click.Parameter, value: str) -> Path:
    """An output of a command that writes on this machine alone."""
    if "://" in value:
        raise click.BadParameter(f"{value} is no folder on this machine")
    if Path(value).exists() and not Path(value).is_dir():
        raise ConfigError(f"--output {value}: is a file, not a folder")
    return Path(value)


def _number(
    flag: str, default: float, kind: click.IntRange | click.FloatRange, text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    metavar = "X" if isinstance(default, float) else "N"
    return click.option(
        flag, default=default, show_default=True, metavar=metavar, type=kind, help=text
    )


@click.command(
    cls=Command, short_help="Run all four stages on a tiny model and invented documents."
)
@click.option(
    "--output",
    required=True,
    metavar="DIR",
    callback=_local_folder,
    help="Folder for everything the run makes.",
)
@_number(
    "--seed", 0, click.IntRange(min=0), "Seed of documents, questions, training and evaluation."
)
@click.option(
    "--docker",
    is_flag=True,
    help="Run the compiled pipeline, a container for every stage (make images VARIANT=cpu).",
)
def demo(**options: Any) -> None:
    """Show RAFT at work in a few minutes, on a CPU, with nothing to download.

    Writes invented documents, makes RAFT rows with the extractive teacher, fine-tunes the shipped
    tiny model, checks it in 4 bits and scores all arms on questions about unseen documents.
    """
    from pipelines.demo.demo import run

    run(**options)


@click.command(cls=PlanCommand, short_help="Estimate memory, time and cost of a training run.")
@click.option("--base-model", required=True, metavar="MODEL", help="Folder, config.json or hub id.")
@_number("--rows", 100, click.IntRange(min=1), "Rows to train on.")
@_number(
    "--row-tokens",
    1000,
    click.IntRange(min=1),
    "Tokens of a row in the mean; the longest is taken to have twice as many.",
)
@_number(
    "--mfu", 0.35, click.FloatRange(0.01, 1), "Share of its peak that the GPU is taken to reach."
)
def plan(base_model: str, rows: int, row_tokens: int, mfu: float, **given: Any) -> None:
    """Say how much memory, time and money a training will take, and whether it fits the GPU.

    \b
    Example:
      raft plan --base-model meta-llama/Llama-3.1-8B-Instruct --profile a100-40gb --rows 100
    """
    from pipelines.plan import run

    settings = {name: value for name, value in given.items() if value is not None}
    run(base_model, settings, rows, row_tokens, mfu)


@click.command(cls=Command, short_help="Put finished runs side by side: one figure, one table.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output",
    default="comparison",
    show_default=True,
    metavar="DIR",
    callback=_local_folder,
    help="Folder that receives comparison.html and comparison.md.",
)
def compare(runs: tuple[str, ...], output: Path) -> None:
    """Compare finished runs: the best, F1 of every arm, gains with intervals, what 4 bits keep.

    RUN is a folder (local or gs://) of raft eval, or one above it.

    \b
    Example:
      raft compare runs/llama-3.1 runs/mistral --output comparison/
    """
    from components.core.progress import say
    from components.report.comparison import best
    from components.report.summary import compare

    trials = compare(runs, output)
    for sentence in best(trials):
        say(f"  {sentence}")
    say(f"{len(trials)} evaluations: {output / 'comparison.html'}")


@click.command("compile", cls=Command, short_help="Compile the Kubeflow pipelines to YAML.")
@click.option(
    "--output",
    metavar="FILE",
    help="Where the compiled pipeline goes.  [default: pipelines/raft.yaml, with --overlay NAME "
    "raft-NAME.yaml, with --manifests raft-manifests.yaml, with --shards raft-N-shards.yaml]",
)
@click.option(
    "--pipeline",
    type=click.Choice(["raft", "study"]),
    help="Which pipeline.  [default: both; with --output, raft]",
)
@click.option(
    "--overlay",
    default="",
    metavar="NAME",
    help="Take the steps' hardware from k8s/overlays/NAME instead of k8s/base.",
)
@click.option(
    "--manifests",
    "manifest_file",
    default="",
    metavar="FILE",
    help="Take it from rendered manifests; - reads what `kubectl kustomize` pipes in.",
)
@_number(
    "--shards",
    1,
    click.IntRange(1, 100),
    "Let N pods write the rows of raft side by side; the rows are those of a single one.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; fail if the file differs from what would be compiled.",
)
@click.option(
    "--registry",
    metavar="HOST/PATH",
    help="Where the images lie: written into k8s/base/kustomization.yaml, so that Jobs, overlays "
    "and both pipelines follow. --tag and --digest are written there too.",
)
@click.option("--tag", metavar="TAG", help="The images' version.")
@click.option(
    "--digest",
    "digests",
    multiple=True,
    metavar="STAGE=sha256:...",
    help="A stage's image by digest; repeatable. `make push` gives those of what it pushed.",
)
def compile_(**options: Any) -> None:
    """Compile the pipelines, or check that the committed files are up to date.

    \b
    Examples:
      raft compile
      raft compile --overlay h100 --output raft-h100.yaml
      raft compile --shards 8
      raft compile --registry europe-docker.pkg.dev/my-project/raft --tag 0.1.0
      kubectl kustomize k8s/overlays/h100 | raft compile --manifests -
    """
    from pipelines.compile import compile_pipelines

    compile_pipelines(**options)


@click.command(cls=Command, short_help="Check Job manifests without a cluster.")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def check(paths: tuple[str, ...]) -> None:
    """Check Job manifests without a cluster: what leaves a pod waiting, or is easily mistaken.

    PATH is a file of manifests, a folder with a kustomization.yaml, or - for standard input.
    Without a PATH: k8s/base, the teacher, and every overlay, as kubectl renders it.

    \b
    Examples:
      raft check
      raft check k8s/base/train.yaml k8s/overlays/h100
      kubectl kustomize k8s/overlays/h100 | raft check -
    """
    from pipelines.check import check_manifests

    check_manifests(paths)
