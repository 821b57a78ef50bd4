"""Commands that talk to a cluster or its Kubeflow: each declares flags and calls one function."""

from pathlib import Path
from typing import Any

import click

from pipelines.cli.flags import (
    OVERLAY,
    SET,
    Command,
    Decorator,
    StageCommand,
    text_flag,
    typed_flag,
)
from pipelines.stages import GPU_TEACHER, JOBS


def server(*, required: bool = True) -> Decorator:
    """The flags that name a Kubeflow server."""
    host = click.option(
        "--host", required=required, envvar="KF_PIPELINES_ENDPOINT", show_envvar=True,
        metavar="URL", help="Kubeflow Pipelines server, such as http://localhost:8080 after "
        "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80.",
    )  # fmt: skip
    certificate = text_flag("--ca-certificate", "Authority of the server's certificate.", "FILE")
    return lambda command: host(certificate(command))


def parameters(command: Any) -> Any:
    """The flags of a run's parameters."""
    file = click.option(
        "--parameters", type=lambda text: Path(text) if text else None, metavar="FILE",
        help="YAML or JSON: a parameter's name and its value on each line.",
    )  # fmt: skip
    pipeline = click.option(
        "--pipeline", type=Path, default="pipelines/raft.yaml", show_default=True, metavar="FILE",
        help="Compiled pipeline.",
    )  # fmt: skip
    return file(SET(pipeline(command)))


def pods(command: Any) -> Any:
    """The flags of what runs as pods of a cluster."""
    namespace = typed_flag("--namespace", "raft", str, "Namespace of the pods.")
    context = text_flag("--context", "Context of the kubeconfig. [default: the current one]")
    return namespace(context(OVERLAY(command)))


RETRIES = typed_flag(
    "--retries", 3, click.IntRange(min=0),
    "Maximum retries of a run that fails; one whose inputs are wrong is not retried.",
)  # fmt: skip


@click.command(cls=Command, short_help="Run the pipeline on a Kubeflow server.")
@parameters
@server()
@click.option(
    "--experiment", "experiment_name", default="raft", show_default=True,
    help="The run's experiment.",
)  # fmt: skip
@click.option("--name", "run_name", help="The run's name. [default: the pipeline's and the time]")
@text_flag("--namespace", "Your profile, on a server with several users.")
@text_flag("--pipeline-root", "Where artifacts go. [default: the server's]", "URI")
@text_flag("--service-account", "Account of the steps' pods. [default: the server's]")
@typed_flag("--wait", True, bool, "Watch the run until it ends.")
@RETRIES
def submit(**options: Any) -> None:
    """Check the parameters, start a run, and show its steps until it ends.

    A token or cookies for the server are read from RAFT_KFP_TOKEN or RAFT_KFP_COOKIES. A run that
    fails is retried, which resumes it, unless its inputs are wrong or somebody has terminated it.
    Exits with 0 when the run succeeded, 2 when its inputs are wrong, 1 when it failed otherwise.
    The run's link goes to standard output; Ctrl-C leaves the run running.

    \b
    Example:
      raft submit --parameters parameters.yaml --set rank=16 --host http://localhost:8080
    """
    from pipelines.cluster.submit import submit_run

    submit_run(**options)


@click.command(cls=Command, short_help="Watch a run on a Kubeflow server.")
@click.argument("run_id")
@server()
@typed_flag(
    "--namespace", "kubeflow", str,
    "Namespace of the run's pods; kubectl's cluster is asked what they wait for.",
)  # fmt: skip
@RETRIES
def watch(**options: Any) -> None:
    """Show a run's steps until it ends, and retry it, as `raft submit` does.

    \b
    Example:
      raft watch 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.watch import watch_run

    watch_run(**options)


class SummaryCommand(StageCommand):
    """`raft summary`, which sums up folders as a stage does, or a run that its server knows."""

    def __init__(self) -> None:
        super().__init__("summary")
        self.help = f"{self.help}\n  raft summary RUN_ID --host http://localhost:8080"
        self.params.append(click.Argument(["run_id"], required=False))
        server(required=False)(self)

    def invoke(self, ctx: click.Context) -> None:
        if ctx.params["run_id"] is None:
            return super().invoke(ctx)
        if self.settings(ctx) or not ctx.params["host"]:
            raise click.UsageError("a RUN_ID needs --host, and has no other flags", ctx)
        from pipelines.cluster.runs import summarize_run

        named = {name: ctx.params[name] for name in ("run_id", "host", "ca_certificate")}
        summarize_run(**named)


@click.command(cls=Command, short_help="Stop a run on a Kubeflow server.")
@click.argument("run_id")
@server()
def terminate(**options: Any) -> None:
    """Stop a run; what its steps have not uploaded yet is lost.

    \b
    Example:
      raft terminate 4d1c7a52-… --host https://kubeflow.example.com/pipeline
    """
    from pipelines.cluster.submit import terminate_run

    terminate_run(**options)


@click.command(cls=Command, short_help="Check that a cluster has everything a run needs.")
@pods
@text_flag("--service-account", "The pods' account. [default: the manifests']")
@parameters
@typed_flag(
    "--scale-from-zero", False, bool, "GPU nodes are started when needed; none has to exist yet."
)
def preflight(**options: Any) -> None:
    """Check quota, policies, account, secrets, nodes, teacher and base model.

    Each check prints ok, missing (with the command that fixes it) or `cannot tell`. The API server
    is asked to admit each stage's pod in a dry run: nothing is changed. Exits with 2 when
    something is missing. Teacher and model are those of --parameters and --set; without them,
    only the Jobs are checked. Reads HF_TOKEN and OPENAI_API_KEY.

    \b
    Example:
      raft preflight --namespace raft --parameters parameters.yaml
    """
    from pipelines.cluster.preflight import check_cluster

    check_cluster(**options)


@click.command(
    cls=Command,
    short_help="Run one stage as a Job on a Kubernetes cluster.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("name", metavar="STAGE", type=click.Choice(JOBS))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@pods
def job(name: str, flags: tuple[str, ...], **options: Any) -> None:
    """Run one stage from its Job manifest, with the flags after `--` instead of the manifest's.

    STAGE generate-gpu is generate with --teacher vllm.

    Shows the log and the cluster's warnings, such as that no node takes the pod, removes the Job
    at the end, and exits with the container's exit code. Ctrl-C and SIGTERM remove the Job too.
    Without flags, the manifest's own are kept.

    \b
    Example:
      raft job train -- --dataset gs://b/dataset --base-model meta-llama/Llama-3.1-8B-Instruct \\
        --output gs://b/adapter --rank 16
      raft job eval --overlay spot
    """
    from pipelines.cluster.job import run_job

    command = StageCommand("generate" if name == GPU_TEACHER else name)
    context = command.make_context(f"raft {command.stage}", list(flags)) if flags else None
    settings = command.settings(context) if context else None
    run_job(name, settings, **options)
