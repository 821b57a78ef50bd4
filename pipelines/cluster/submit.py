"""Submits a compiled pipeline with kfp's own client; watch.py stays with the run."""

from pathlib import Path

from components.core.errors import ConfigError
from components.core.locations import SCHEME
from components.core.progress import headline, say
from pipelines.cluster.kubeflow import connect, explained
from pipelines.cluster.watch import NAMESPACE, introduce, watch
from pipelines.k8s.images import images_of, warn_without_registry
from pipelines.parameters import (
    check_parameters,
    check_teacher,
    dataset_notes,
    load,
    read_parameters,
)

NOT_KEPT = (
    "  without --pipeline-root gs://…, --set state=gs://…, or a server whose own root is there, "
    "checkpoints and paid responses are lost with a pod that fails"
)


def submit_run(
    pipeline: Path,
    parameters: Path | None,
    settings: tuple[str, ...] = (),
    *,
    host: str,
    ca_certificate: str = "",
    wait: bool = True,
    retries: int = 0,
    **options: str,
) -> None:
    """Check the parameters, start a run, print its link on standard output, and watch it.

    The arguments are those of `raft submit`, whose help explains them; `options` are kfp's own.
    """
    compiled = load(pipeline)
    values = check_parameters(compiled, *read_parameters(parameters, settings))
    check_teacher(values)
    warn_without_registry(images_of(pipeline))
    client = connect(host, ca_certificate)
    for note in dataset_notes(compiled, values):
        say(f"  {note}")
    root, state = options.get("pipeline_root", ""), str(values.get("state", ""))
    if root and "://" not in root:
        raise ConfigError(
            f"--pipeline-root {root!r}: no scheme (allowed: a URI such as gs://BUCKET/PREFIX)",
            hint=f"Write it as --pipeline-root gs://{root}, if it is a bucket's.",
        )
    if not (root.startswith(SCHEME) or state.startswith(SCHEME)):
        say(NOT_KEPT)
    named = {name: value for name, value in options.items() if value}
    with explained(host):
        run = client.create_run_from_pipeline_package(str(pipeline), values, **named)
    headline(pipeline.stem, f"run {run.run_id}")
    introduce(client, host, run.run_id)
    if wait:
        watch(client, run.run_id, options.get("namespace") or NAMESPACE, retries)


def terminate_run(run_id: str, *, host: str, ca_certificate: str = "") -> None:
    """Stop a run; its pods get SIGTERM."""
    connect(host, ca_certificate).terminate_run(run_id)
    say(f"run {run_id} is being stopped")
