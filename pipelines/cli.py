"""The `raft` command: parses, calls one function, and explains what went wrong.

Flags are read from the stages' config classes. A stage, and with it torch, transformers or kfp,
is imported only when it is asked to run, so `--help` answers at once. Every flag takes a value as
text (`--flag true`), because that is how Kubeflow hands parameters over.
"""

import atexit
import importlib
import itertools
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click
from pydantic.fields import FieldInfo

from components.config import INPUT, KEPT, OUTPUT, Settings, allowed_values, flag
from components.errors import RaftError, disk_is_full, shown
from components.redaction import guarded

STAGES = {
    "generate": ("components.generate", "GenerateConfig", "Write RAFT rows from documents."),
    "train": ("components.train", "TrainConfig", "Fine-tune a chat model on RAFT rows with LoRA."),
    "quantize-check": (
        "components.quantize_check",
        "QuantizeCheckConfig",
        "Measure what 4-bit weights save and cost.",
    ),
    "eval": ("components.eval", "EvalConfig", "Score base and tuned models; write the report."),
}
"""Sub-command: package, config class in its config.py, one line of help."""

READERS = {
    "summary": (
        "components.summary", "SummaryConfig", "Sum up a run: results, time, cost, what failed.",
    ),
    "merge": (
        "components.generate.merge", "MergeConfig", "Join the datasets of several shards.",
    ),
    "export": (
        "components.generate.export", "ExportConfig", "Write a dataset in another format.",
    ),
}  # fmt: skip
"""Commands that read what stages made: module, config class in it, one line of help."""

EXECUTOR_INPUT = "executor_input"

EXAMPLES = {
    "generate": "raft generate --documents my-documents/ --output dataset/ --distractors 3",
    "train": "raft train --dataset dataset/ --base-model models/llama --output adapter/",
    "quantize-check": "raft quantize-check --dataset dataset/ --base-model models/llama "
    "--adapter adapter/ --output quantization/",
    "eval": "raft eval --questions dev.json --base-model models/llama --adapter adapter/ "
    "--output evaluation/",
    "summary": "raft summary --folders run/ --output run/summary",
    "merge": "raft merge --shards shard-1/,shard-2/ --output dataset/",
    "export": "raft export --dataset dataset/ --format chat --type parquet --output exported/",
}

READ_BY_STEP = {"summary": "folders", "merge": "shards"}
"""The setting of a reader that a step of Kubeflow fills with the artifacts it is given."""

USER_ERROR, OUR_ERROR = 2, 1
TERMINATED = 128 + signal.SIGTERM

# Libraries write too: each has an error of its own, and few say where.
NO_PLACE = ("Read-only file system", "No usable temporary directory")

DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


class Command(click.Command):
    """A command that takes no flag twice: the one given last would win without a word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(args=list(args))[2]
        for parameter, count in Counter(given).items():
            if count > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
                raise click.UsageError(f"{parameter.opts[0]} is given {count} times", ctx)
        return super().parse_args(ctx, args)


class StageCommand(Command):
    """A command whose flags are the fields of a config class, loaded on first use."""

    def __init__(self, name: str, summary: str, example: str, load: Callable[[], type[Settings]]):
        super().__init__(name, help=summary, short_help=summary)
        self.load = load
        self.example = example
        self.flags_read = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.flags_read:
            self.flags_read = True
            for name, field in self.load().model_fields.items():
                self.params.append(_click_option(name, field))
            self.params += [
                click.Option(
                    [flag(EXECUTOR_INPUT), EXECUTOR_INPUT],
                    metavar="JSON",
                    help="Kubeflow's description of the step, given by Kubeflow alone: figures, "
                    "pages and the cost of failed attempts are announced where it says.",
                ),
                click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
            ]
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        fields = self.load().model_fields
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = _group(fields[parameter.name]) if parameter.name in fields else "Other"
                sections.setdefault(group, []).append(record)
        for title in ("Output", "Other"):  # in this order at the end
            sections[title] = sections.pop(title)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write_text(self.example)

    def invoke(self, ctx: click.Context) -> None:
        given = {name: value for name, value in ctx.params.items() if value is not None}
        given.pop("debug", None)
        executor_input = given.pop(EXECUTOR_INPUT, "")
        if executor_input:
            run_step(self.load(), given, executor_input)
        else:
            run_stage(self.load().parse(given))


def run_stage(config: Settings, *, as_step: bool = False) -> object:
    """Run one stage with `gs://` locations fetched before and published after; what it found."""
    from components.storage import localized

    if config.stage in STAGES:
        package = STAGES[config.stage][0]
        module = f"{package}.{package.rpartition('.')[2]}"
    else:
        module = READERS[config.stage][0]
    stage = importlib.import_module(module)
    with localized(config) as local:
        found: object = stage.run(local)
    # A step of Kubeflow has only been handed a folder, which goes up after the process has ended.
    if hasattr(stage, "published") and not as_step:
        stage.published(config)
    return found


def run_step(kind: type[Settings], given: dict[str, object], executor_input: str) -> None:
    """Run one stage as a step of Kubeflow, and show there what it found."""
    from components.kubeflow import Step

    step = Step.parse(executor_input, str(given.get("output", "")))
    if kind.stage in READ_BY_STEP:
        given[READ_BY_STEP[kind.stage]] = tuple(step.folders_to_read(kind.stage))
    with step.accounted(kind.stage) if kind.stage in STAGES else nullcontext():
        kept = kind.kept()
        if kept and not given.get(kept):
            # Kubeflow uploads nothing of an attempt that fails.
            given[kept] = step.beside(kept)
        config = kind.parse(given)
        found = run_stage(config, as_step=True)
    step.announce(found, Path(config.output))


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Other"


def _click_option(name: str, field: FieldInfo) -> click.Option:
    allowed = allowed_values(field)
    required = field.is_required()
    notes = "required" if required else f"default: {_as_text(field.default)}"
    if allowed:
        notes += f"; {allowed}"
    return click.Option(
        [flag(name), name],
        # The config class checks values, so that one wording serves flags and KFP parameters.
        type=click.UNPROCESSED,
        metavar=_metavar(name, field),
        help=f"{field.description} [{notes}]",
    )


def _as_text(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default == "" else str(default)


def _metavar(name: str, field: FieldInfo) -> str:
    if any(mark in (INPUT, OUTPUT, KEPT) for mark in field.metadata):
        return "MODEL" if name == "base_model" else "PATH"
    kinds: Mapping[object, str] = {
        int: "N",
        float: "X",
        bool: "BOOL",
        str: "TEXT",
        tuple[str, ...]: "A,B",
        tuple[int, ...]: "N,N",
        tuple[dict[str, Any], ...]: "JSON",
    }
    return kinds.get(field.annotation, "WORD")


def _local_folder(_context: click.Context, _option: click.Parameter, value: str) -> str:
    """An output of a command that writes on this machine alone."""
    if "://" in value:
        raise click.BadParameter(f"{value} is no folder on this machine")
    return value


def _config_loader(module: str, class_name: str) -> Callable[[], type[Settings]]:
    def load() -> type[Settings]:
        loaded: type[Settings] = getattr(importlib.import_module(module), class_name)
        return loaded

    return load


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="raft-pipelines", prog_name="raft")
def raft() -> None:
    """Adapt a language model to your own documents with retrieval augmented fine-tuning.

    The four stages pass folders (or gs:// URIs) to each other:

    \b
      documents ─ generate ─▶ dataset ─ train ─▶ adapter ─ quantize-check ─▶ eval ─▶ report

    New here? `raft demo --output run/` does all four on a tiny model in a few minutes.
    """


raft.command_class = Command
for _name, (_package, _class_name, _summary) in STAGES.items():
    raft.add_command(
        StageCommand(
            _name, _summary, EXAMPLES[_name], _config_loader(f"{_package}.config", _class_name)
        )
    )
for _name, (_package, _class_name, _summary) in READERS.items():
    raft.add_command(
        StageCommand(_name, _summary, EXAMPLES[_name], _config_loader(_package, _class_name))
    )


@raft.command(short_help="Run all four stages on a tiny model and invented documents.")
@click.option(
    "--output",
    required=True,
    metavar="DIR",
    callback=_local_folder,
    help="Folder for everything the run makes.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Seed of documents, questions, training and evaluation.",
)
@click.option(
    "--docker",
    is_flag=True,
    help="Run the compiled pipeline, a container for every stage (make images VARIANT=cpu).",
)
@DEBUG
def demo(output: str, seed: int, docker: bool, debug: bool) -> None:
    """Show RAFT at work in a few minutes, on a CPU, with nothing to download.

    Writes invented documents, makes RAFT rows with the extractive teacher, fine-tunes the shipped
    tiny model, checks it in 4 bits and scores all arms on questions about unseen documents.
    """
    from pipelines.demo.demo import run

    run(Path(output), seed, docker=docker)


PLANNED = (
    "rank", "target_modules", "method", "epochs", "batch_size", "gradient_accumulation",
    "max_tokens", "load_in_4bit", "gradient_checkpointing", "dtype", "processes", "sharding",
)  # fmt: skip
"""The settings of train on which a plan depends."""


class PlanCommand(Command):
    """A command that also takes the flags of train on which a plan depends."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(parameter.name == "rank" for parameter in self.params):
            fields = _config_loader("components.train.config", "TrainConfig")().model_fields
            self.params += [_click_option(name, fields[name]) for name in PLANNED]
        return super().get_params(ctx)


@raft.command(cls=PlanCommand, short_help="Say what a training will take, before it is paid for.")
@click.option("--base-model", required=True, metavar="MODEL", help="Folder, config.json or hub id.")
@click.option(
    "--profile",
    required=True,
    type=click.Choice(["a100-40gb", "a100-80gb", "h100", "l4"]),
    help="The GPU; its settings take the place of the defaults.",
)
@click.option(
    "--rows",
    default=100,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows to train on.",
)
@click.option(
    "--row-tokens",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of a row in the mean; the longest is taken to have twice as many.",
)
@click.option(
    "--mfu",
    default=0.35,
    show_default=True,
    type=click.FloatRange(0.01, 1),
    metavar="X",
    help="Share of its peak that the GPU is taken to reach.",
)
@DEBUG
def plan(
    base_model: str, profile: str, rows: int, row_tokens: int, mfu: float, debug: bool, **given: Any
) -> None:
    """Say how much memory, time and money a training will take, and whether it fits the GPU.

    \b
    Example:
      raft plan --base-model meta-llama/Llama-3.1-8B-Instruct --profile a100-40gb --rows 100
    """
    from pipelines.plan import run

    settings = {name: value for name, value in given.items() if value is not None}
    run(base_model, {"profile": profile, **settings}, rows, row_tokens, mfu)


@raft.command(short_help="Put finished runs side by side: one figure, one table.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output",
    default="comparison",
    show_default=True,
    metavar="DIR",
    callback=_local_folder,
    help="Folder that receives comparison.html and comparison.md.",
)
@DEBUG
def compare(runs: tuple[str, ...], output: str, debug: bool) -> None:
    """Compare finished runs: F1 of every arm, gains with intervals, what 4 bits keep.

    RUN is a folder (local or gs://) of raft eval, or one above it.

    \b
    Example:
      raft compare runs/llama-3.1 runs/mistral --output comparison/
    """
    from components.progress import say
    from components.summary import compare

    trials = compare(runs, Path(output))
    say(f"{len(trials)} evaluations: {Path(output) / 'comparison.html'}")


@raft.command(name="compile", short_help="Compile the Kubeflow pipeline to YAML.")
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
    default="",
    metavar="FILE",
    help="Take it from rendered manifests; - reads what `kubectl kustomize` pipes in.",
)
@click.option(
    "--shards",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="Let N pods write the rows of raft side by side; the rows are those of a single one.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; fail if the file differs from what would be compiled.",
)
@DEBUG
def compile_(
    output: str | None,
    pipeline: str | None,
    overlay: str,
    manifests: str,
    shards: int,
    check: bool,
    debug: bool,
) -> None:
    """Compile the pipelines, or check that the committed files are up to date.

    \b
    Examples:
      raft compile
      raft compile --overlay h100 --output raft-h100.yaml
      raft compile --shards 8
      kubectl kustomize k8s/overlays/h100 | raft compile --manifests -
    """
    from pipelines.compile import PIPELINES, run

    source = ("-manifests" if manifests else f"-{overlay}" if overlay else "").replace("/", "-")
    source += f"-{shards}-shards" if shards > 1 else ""
    names = [pipeline] if pipeline else PIPELINES[:1] if output or shards > 1 else PIPELINES
    outputs = {
        name: Path(output or (f"{name}{source}.yaml" if source else f"pipelines/{name}.yaml"))
        for name in names
    }
    run(outputs, check=check, overlay=overlay, manifest_file=manifests, shards=shards)


@raft.command(short_help="Check manifests and compiled pipelines as a cluster would.")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@DEBUG
def check(paths: tuple[str, ...], debug: bool) -> None:
    """Check Kubernetes manifests and compiled pipelines without a cluster.

    PATH is a file of manifests, a compiled pipeline, a folder with a kustomization.yaml, or - for
    standard input. Without one: k8s/base, the teacher, every overlay, the pipeline compiled from
    each, and the committed ones.

    \b
    Examples:
      raft check
      raft check pipelines/raft.yaml k8s/overlays/h100
      kubectl kustomize k8s/overlays/h100 | raft check -
    """
    from pipelines.check import run

    run(paths)


HOST = click.option(
    "--host",
    default="",
    metavar="URL",
    help="Kubeflow Pipelines server. [default: KF_PIPELINES_ENDPOINT, or the one in the cluster "
    "of the kubeconfig]",
)
CERTIFICATE = click.option(
    "--ca-certificate", default="", metavar="FILE", help="Authority of the server's certificate."
)
PIPELINE = click.option(
    "--pipeline",
    default="pipelines/raft.yaml",
    show_default=True,
    metavar="FILE",
    help="Compiled pipeline.",
)
PARAMETERS = click.option(
    "--parameters",
    metavar="FILE",
    help="YAML or JSON: a parameter's name and its value on each line.",
)
SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter; wins over the file. May be given many times.",
)


@raft.command(short_help="Run the pipeline on a Kubeflow server.")
@PARAMETERS
@SET
@PIPELINE
@HOST
@CERTIFICATE
@click.option("--experiment", default="raft", show_default=True, help="The run's experiment.")
@click.option("--name", default="", help="The run's name. [default: the pipeline's and the time]")
@click.option("--namespace", default="", help="Your profile, on a server with several users.")
@click.option(
    "--pipeline-root", default="", metavar="URI", help="Where artifacts go. [default: the server's]"
)
@click.option(
    "--service-account", default="", help="Account of the steps' pods. [default: the server's]"
)
@click.option(
    "--wait", type=bool, default=True, show_default=True, help="Watch the run until it ends."
)
@DEBUG
def submit(parameters: str | None, pipeline: str, debug: bool, **options: Any) -> None:
    """Check the parameters, start a run, and show its steps until it ends.

    A token or cookies for the server are read from RAFT_KFP_TOKEN or RAFT_KFP_COOKIES, or from
    kfp's own configuration. Exits with 0 when the run succeeded, 1 when it failed. The run's
    link goes to standard output; Ctrl-C leaves the run running.

    \b
    Example:
      raft submit --parameters parameters.yaml --set rank=16 --host http://localhost:8080
    """
    from pipelines.cluster.submit import run

    run(Path(pipeline), Path(parameters) if parameters else None, **options)


@raft.command(short_help="Watch a run on a Kubeflow server.")
@click.argument("run_id")
@PIPELINE
@HOST
@CERTIFICATE
@DEBUG
def watch(run_id: str, pipeline: str, host: str, ca_certificate: str, debug: bool) -> None:
    """Show a run's steps until it ends, as `raft submit` does.

    \b
    Example:
      raft watch 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.submit import watch

    watch(run_id, Path(pipeline), host=host, ca_certificate=ca_certificate)


@raft.command(short_help="Stop a run on a Kubeflow server.")
@click.argument("run_id")
@HOST
@CERTIFICATE
@DEBUG
def terminate(run_id: str, host: str, ca_certificate: str, debug: bool) -> None:
    """Stop a run; what its steps have not uploaded yet is lost.

    \b
    Example:
      raft terminate 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.submit import terminate

    terminate(run_id, host=host, ca_certificate=ca_certificate)


CONTEXT = click.option(
    "--context", default="", help="Context of the kubeconfig. [default: the current one]"
)
NAMESPACE = click.option(
    "--namespace", default="raft", show_default=True, help="Namespace of the pods."
)
OVERLAY = click.option(
    "--overlay",
    metavar="NAME",
    default="",
    help="Overlay of k8s/overlays to take the Job manifests from, or a folder/of/your/own. "
    "[default: k8s/base]",
)


@raft.command(short_help="Look whether a cluster has what a run needs.")
@NAMESPACE
@CONTEXT
@OVERLAY
@click.option("--service-account", default="", help="The pods' account. [default: the manifests']")
@PARAMETERS
@SET
@PIPELINE
@click.option("--pipeline-root", default="", metavar="URI", help="Where artifacts will go.")
@HOST
@CERTIFICATE
@click.option(
    "--kubeflow", type=bool, default=True, show_default=True, help="Look for Kubeflow Pipelines."
)
@click.option(
    "--scale-from-zero",
    type=bool,
    default=False,
    show_default=True,
    help="GPU nodes are made when they are needed; none need be there.",
)
@DEBUG
def preflight(
    parameters: str | None, pipeline: str, overlay: str, debug: bool, **options: Any
) -> None:
    """Check nodes, quota, secrets, account, buckets, teacher, model and Kubeflow before a run.

    Each check prints ok, missing (with the command that fixes it) or cannot tell. Changes
    nothing; exits with 2 when something is missing. Without --parameters, the settings of the
    Jobs in the cluster are looked at. Reads HF_TOKEN and OPENAI_API_KEY.

    \b
    Example:
      raft preflight --namespace raft --parameters parameters.yaml
    """
    from pipelines import manifests
    from pipelines.cluster.preflight import run

    run(
        parameters=Path(parameters) if parameters else None,
        pipeline=Path(pipeline),
        jobs=manifests.overlay(overlay) if overlay else manifests.BASE,
        **options,
    )


@raft.command(
    short_help="Run one stage as a Job on a Kubernetes cluster.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@NAMESPACE
@CONTEXT
@OVERLAY
@click.option("--detach", is_flag=True, help="Create the Job, print its name and leave it alone.")
@click.option(
    "--start-minutes",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Give up when the pod has not started by then.",
)
@DEBUG
def job(stage: str, flags: tuple[str, ...], overlay: str, debug: bool, **options: Any) -> None:
    """Run one stage from its Job manifest, with the flags after `--` instead of the manifest's.

    Shows the log, says what the pod waits for, exits with the container's exit code and removes
    the Job; so do Ctrl-C and SIGTERM. Without flags, the manifest's own are kept.

    \b
    Example:
      raft job train -- --dataset gs://b/dataset --base-model meta-llama/Llama-3.1-8B-Instruct \\
        --output gs://b/adapter --rank 16
      raft job eval --overlay spot
    """
    from pipelines import manifests
    from pipelines.cluster.job import run

    jobs = manifests.overlay(overlay) if overlay else manifests.BASE
    run(stage, flags, jobs=jobs, **options)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: run a command and exit with 0, 2 (the user can fix it) or 1 (ours)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Left to itself, SIGTERM kills Python without running a single `finally`.
    signal.signal(signal.SIGTERM, _terminate)
    # Once Python is cleaning up, the work is done, and its code stands.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    with guarded():
        _run(arguments)


def _run(arguments: list[str]) -> NoReturn:
    try:
        raft.main(args=arguments, prog_name="raft", standalone_mode=False)
    except SystemExit as stopped:
        if stopped.code != TERMINATED:
            raise
        # Train says by itself how far it has come.
        _leave("stopped by SIGTERM; give the same command again" * isinstance(stopped, _Terminated))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # which a library made this of
            _leave("stopped by SIGTERM; give the same command again")
        if "--debug" in arguments:
            traceback.print_exc()  # here, where secrets are taken out of it
        sys.exit(_explain(error, arguments))
    sys.exit(0)


class _Terminated(SystemExit):
    """SIGTERM has come; the code is that of a process that it has ended."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being put away is not cut short
    raise _Terminated(TERMINATED)


def _leave(message: str) -> NoReturn:
    """End at SIGTERM, not by way of the interpreter: it would wait for every transfer's thread."""
    if message:
        click.echo(message, err=True)
    sys.stdout.flush()
    os._exit(TERMINATED)


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """Print an error without its traceback; returns the exit code."""
    if isinstance(error, RaftError):
        problem, hint, code = str(error), error.hint, error.exit_code
    elif isinstance(error, ModuleNotFoundError):
        problem = f"{error.name} is not installed"
        hint, code = "pip install -e '.[all]' in a checkout of raft-pipelines", USER_ERROR
    elif isinstance(error, PermissionError):
        problem, code = str(error), USER_ERROR
        hint = 'Give this user access to it; in docker, pass --user "$(id -u):$(id -g)".'
    elif disk_is_full(error):
        problem, code = f"{_output(arguments)}{error}", USER_ERROR
        hint = "Make room where --output and temporary files (TMPDIR, in a container /tmp) lie."
    elif any(word in str(error) for word in NO_PLACE):
        problem, code = f"{_output(arguments)}{error}", USER_ERROR
        hint = "Mount a folder that can be written there; temporary files lie where TMPDIR says."
    else:
        problem = f"{type(error).__name__}: {error}"
        hint, code = "This is a fault of raft; --debug shows the traceback.", OUR_ERROR
    click.echo(f"error: {shown(problem)}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)
    return code


def _output(arguments: Sequence[str]) -> str:
    """Where a command was to write, for an error that names no place."""
    words = itertools.chain.from_iterable(argument.split("=", 1) for argument in arguments)
    for name, value in itertools.pairwise(words):
        if name == flag("output"):
            return f"{name} {value}: "
    return ""
