"""The `raft` command: parses, calls one function, and explains what went wrong.

A stage, and with it torch, transformers or kfp, is imported only when it is asked to run, so
`--help` answers at once.
"""

import sys
from typing import NoReturn

import click

from pipelines.cli import cluster, ending, here
from pipelines.cli.flags import StageCommand
from pipelines.stages import COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="raft-pipelines", prog_name="raft")
def raft() -> None:
    """Adapt a language model to your own documents with retrieval augmented fine-tuning.

    The four stages pass folders (or gs:// URIs) to each other:

    \b
      documents ─ generate ─▶ dataset ─ train ─▶ adapter ─ quantize-check ─▶ eval ─▶ report

    New here? `raft demo --output run/` does all four on a tiny model in a few minutes.
    """


for _command in (
    *map(StageCommand, COMMANDS),
    here.demo,
    here.plan,
    here.compare,
    here.compile_,
    here.check,
    cluster.preflight,
    cluster.submit,
    cluster.watch,
    cluster.terminate,
    cluster.job,
):
    raft.add_command(_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: run a command and exit with its code."""
    ending.run(raft, sys.argv[1:] if arguments is None else arguments)
