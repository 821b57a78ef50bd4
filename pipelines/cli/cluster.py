"""Commands that talk to a cluster or its Kubeflow: each declares flags and calls one function."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from pipelines.cli.flags import Command, StageCommand
from pipelines.stages import STAGES

Decorator = Callable[[Any], Any]


def _together(*options: Decorator) -> Decorator:
    """Several options as one decorator."""
    return lambda function: reduce(lambda inner, option: option(inner), options[::-1], function)


def _text(name: str, description: str, metavar: str = "TEXT") -> Decorator:
    return click.option(name, default="", metavar=metavar, help=description)


def _switch(name: str, description: str, default: bool) -> Decorator:
    return click.option(name, type=bool, default=default, show_default=True, help=description)


SERVER = _together(
    _text("--host", "Kubeflow Pipelines server. [default: KF_PIPELINES_ENDPOINT, or the one in the "
          "cluster of the kubeconfig]", "URL"),
    _text("--ca-certificate", "Authority of the server's certificate.", "FILE"),
)  # fmt: skip
PIPELINE = click.option(
    "--pipeline", type=Path, default="pipelines/raft.yaml", show_default=True, metavar="FILE",
    help="Compiled pipeline.",
)  # fmt: skip
PARAMETERS = _together(
    click.option(
        "--parameters", type=lambda text: Path(text) if text else None, metavar="FILE",
        help="YAML or JSON: a parameter's name and its value on each line.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE",
        help="A parameter; wins over the file. May be given many times.",
    ),
    PIPELINE,
)  # fmt: skip
PODS = _together(
    click.option("--namespace", default="raft", show_default=True, help="Namespace of the pods."),
    _text("--context", "Context of the kubeconfig. [default: the current one]"),
    _text("--overlay", "Overlay of k8s/overlays to take the Job manifests from, or a "
          "folder/of/your/own. [default: k8s/base]", "NAME"),
)  # fmt: skip


@click.command(cls=Command, short_help="Run the pipeline on a Kubeflow server.")
@PARAMETERS
@SERVER
@click.option("--experiment", default="raft", show_default=True, help="The run's experiment.")
@_text("--name", "The run's name. [default: the pipeline's and the time]")
@_text("--namespace", "Your profile, on a server with several users.")
@_text("--pipeline-root", "Where artifacts go. [default: the server's]", "URI")
@_text("--service-account", "Account of the steps' pods. [default: the server's]")
@_switch("--wait", "Watch the run until it ends.", default=True)
def submit(**options: Any) -> None:
    """Check the parameters, start a run, and show its steps until it ends.

    A token or cookies for the server are read from RAFT_KFP_TOKEN or RAFT_KFP_COOKIES, or from
    kfp's own configuration. Exits with 0 when the run succeeded, 1 when it failed. The run's
    link goes to standard output; Ctrl-C leaves the run running.

    \b
    Example:
      raft submit --parameters parameters.yaml --set rank=16 --host http://localhost:8080
    """
    from pipelines.cluster.submit import submit_run

    submit_run(**options)


@click.command(cls=Command, short_help="Watch a run on a Kubeflow server.")
@click.argument("run_id")
@PIPELINE
@SERVER
def watch(**options: Any) -> None:
    """Show a run's steps until it ends, as `raft submit` does.

    \b
    Example:
      raft watch 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.submit import watch_run

    watch_run(**options)


@click.command(cls=Command, short_help="Stop a run on a Kubeflow server.")
@click.argument("run_id")
@SERVER
def terminate(**options: Any) -> None:
    """Stop a run; what its steps have not uploaded yet is lost.

    \b
    Example:
      raft terminate 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.submit import terminate_run

    terminate_run(**options)


@click.command(cls=Command, short_help="Check that a cluster has everything a run needs.")
@PODS
@_text("--service-account", "The pods' account. [default: the manifests']")
@PARAMETERS
@_text("--pipeline-root", "Where artifacts will go.", "URI")
@SERVER
@_switch("--kubeflow", "Look for Kubeflow Pipelines.", default=True)
@_switch("--scale-from-zero", "GPU nodes are made when needed; none need be there.", default=False)
def preflight(overlay: str, **options: Any) -> None:
    """Check quota, policies, account, secrets, nodes, buckets, teacher, model and Kubeflow.

    Each check prints ok, missing (with the command that fixes it) or cannot tell. The API server
    is asked to admit each stage's Job and pod in a dry run: nothing is changed. Exits with 2 when
    something is missing. Buckets, teacher and model are those of --parameters and --set; without
    them, the Jobs are checked alone. Reads HF_TOKEN and OPENAI_API_KEY.

    \b
    Example:
      raft preflight --namespace raft --parameters parameters.yaml
    """
    from pipelines import manifests
    from pipelines.cluster.preflight import check_cluster

    check_cluster(jobs=manifests.overlay(overlay), **options)


@click.command(
    cls=Command,
    short_help="Run one stage as a Job on a Kubernetes cluster.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@PODS
@click.option("--detach", is_flag=True, help="Create the Job, print its name and leave it alone.")
@click.option(
    "--start-minutes", type=click.FloatRange(min=0), default=30, show_default=True,
    help="Give up when the pod has not started by then.",
)  # fmt: skip
def job(stage: str, flags: tuple[str, ...], overlay: str, **options: Any) -> None:
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
    from pipelines.cluster.job import run_job

    command = StageCommand(stage)
    context = command.make_context(f"raft {stage}", list(flags)) if flags else None
    settings = command.settings(context) if context else None
    run_job(stage, settings, jobs=manifests.overlay(overlay), **options)
