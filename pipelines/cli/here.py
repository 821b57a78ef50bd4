"""Commands that run on this machine: each declares flags and calls one function."""

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.cli.flags import OVERLAY, SET, Command, PlanCommand, text_flag, typed_flag


class LocalFolder(click.Path):
    """An output of a command that writes on this machine alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is no folder on this machine", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = LocalFolder(file_okay=False, path_type=Path)


@click.command(
    cls=Command, short_help="Run all four stages on a tiny model and invented documents."
)
@click.option("--output", required=True, type=FOLDER, help="Folder for everything the run makes.")
@typed_flag("--seed", 0, click.IntRange(min=0), "Seed of all that is drawn and trained.")
def demo(**options: Any) -> None:
    """Show RAFT at work in a few minutes, on a CPU, with nothing to download.

    Writes invented documents, makes RAFT rows with the extractive teacher, fine-tunes the shipped
    tiny model, checks it in 4 bits and scores all arms on questions about unseen documents.
    """
    from pipelines.demo.demo import run_demo

    run_demo(**options)


@click.command(cls=Command, short_help="Run all four stages here, from one file of parameters.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@typed_flag("--output", "run", FOLDER, "Folder of the whole run.")
@SET
def run(file: Path, settings: tuple[str, ...], output: Path) -> None:
    """Run generate, train, quantize-check and eval on this machine.

    FILE is YAML or JSON with a parameter's name and its value on each line: the file that `raft
    submit` takes for a cluster. Given again, the command skips finished stages and resumes the one
    that was stopped.

    \b
    Example:
      raft run parameters.yaml --output run/
    """
    from pipelines.run import run_file

    sys.exit(run_file(file, settings, output))


@click.command(
    cls=Command, short_help="Set up the post's or the paper's comparison, or run a tiny version."
)
@click.argument("study", type=click.Choice(["post", "paper"]))
@click.option("--output", required=True, type=FOLDER, help="Folder for what is written or made.")
@click.option(
    "--scale",
    type=click.Choice(["tiny"]),
    help="Run everything here, on the demo's world and its tiny model. "
    "[default: write parameters.yaml, for the study on a cluster]",
)
@typed_flag("--seed", 0, click.IntRange(min=0), "Seed of documents, questions and trainings.")
def reproduce(study: str, output: Path, scale: str | None, seed: int) -> None:
    """Reproduce the comparisons of the RAFT paper (RAFT, DSF, retrieval, without reasoning; shares
    of oracles; distractors) or of the blog post that raft-pipelines began with (models, ranks,
    layers).

    \b
    Examples:
      raft reproduce paper --output paper/
      raft reproduce paper --output paper/ --scale tiny
    """
    from pipelines.reproduce import reproduce

    reproduce(study, output, scale or "", seed)


@click.command(cls=PlanCommand, short_help="Estimate memory, time and cost of a training run.")
@click.option("--base-model", required=True, metavar="MODEL", help="Folder, config.json or hub id.")
@click.option("--gpu", required=True, metavar="KIND", help="Kind of GPU, such as h100.")
@text_flag(
    "--dataset",
    "Rows to count and to measure with the model's tokenizer, instead of the next two flags.",
    "FOLDER",
)
@typed_flag(
    "--rows", 300, click.IntRange(min=1),
    "Rows to train on. raft generate gives at most --max-chunks × --questions-per-chunk.",
)  # fmt: skip
@typed_flag(
    "--row-tokens", 1000, click.IntRange(min=1),
    "Mean tokens per row; the longest row is assumed to have twice as many.",
)  # fmt: skip
@typed_flag(
    "--mfu", 0.35, click.FloatRange(0.01, 1), "Share of its peak that the GPU is assumed to reach."
)
def plan(
    base_model: str, dataset: str, rows: int, row_tokens: int, mfu: float, **flags: Any
) -> None:
    """Estimate the memory, time and cost of a training, and whether it fits the GPU.

    \b
    Example:
      raft plan --base-model meta-llama/Llama-3.1-8B-Instruct --gpu a100-40gb --rows 300
    """
    from pipelines.plan import count_tokens, print_plan

    settings = {name: value for name, value in flags.items() if value is not None}
    if dataset:
        rows, row_tokens = count_tokens(base_model, dataset)
    print_plan(base_model, settings, rows, row_tokens, mfu)


@click.command(cls=Command, short_help="Put finished runs side by side: one figure, one table.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@typed_flag("--output", "comparison", FOLDER, "Folder that receives comparison.html.")
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
@text_flag(
    "--output",
    "Where the compiled pipeline goes. [default: pipelines/raft.yaml, with --overlay NAME "
    "raft-NAME.yaml]",
    "FILE",
)
@click.option(
    "--pipeline",
    type=click.Choice(["raft", "study"]),
    help="Which pipeline.  [default: both; with --output, raft]",
)
@OVERLAY
@click.option(
    "--check", is_flag=True,
    help="Write nothing; fail if the file differs from what would be compiled.",
)  # fmt: skip
@text_flag(
    "--registry",
    "Where the images are: written into k8s/base/kustomization.yaml, so that Jobs, overlays and "
    "both pipelines follow. --tag and --digest are written there too.",
    "HOST/PATH",
)
@text_flag("--tag", "The images' version.")
@click.option(
    "--digest",
    "digests",
    multiple=True,
    metavar="STAGE=sha256:...",
    help="A stage's image by digest; repeatable. `make push` passes those that it pushed.",
)
@click.option(
    "--parallelism",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many trials of the study run at once.  [default: all]",
)
@text_flag(
    "--cache-volume",
    "Keep base models of the hub, checkpoints and generations on this volume claim, which train, "
    "quantize-check and eval mount, instead of in the bucket. User 10001 must be able to write to "
    "it; several nodes at once need the access mode ReadWriteMany.",
    "CLAIM",
)
def compile_(**options: Any) -> None:
    """Compile the pipelines, or check that the committed files are up to date.

    \b
    Examples:
      raft compile
      raft compile --overlay h100 --output raft-h100.yaml
      raft compile --pipeline study --parallelism 2 --cache-volume models --output study-2.yaml
      raft compile --registry europe-docker.pkg.dev/my-project/raft --tag 0.1.0
    """
    from pipelines.compile import compile_pipelines

    compile_pipelines(**options)


@click.command(cls=Command, short_help="Check Job manifests without a cluster.")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def check(paths: tuple[str, ...]) -> None:
    """Check Job manifests without a cluster, for what leaves a pod waiting and for common mistakes.

    PATH is a file of manifests or a folder with a kustomization.yaml. Without a PATH: k8s/base
    and every overlay, as kubectl renders it.

    \b
    Examples:
      raft check
      raft check k8s/base/train.yaml k8s/overlays/h100
    """
    from pipelines.manifests import check_manifests

    check_manifests(paths)
