"""The `raft` command: parses, calls one function, and explains what went wrong.

A stage, and with it torch, transformers or kfp, is imported only when it is asked to run, so
`--help` answers at once.
"""

import os
import sys
from typing import NoReturn

import click

from pipelines.cli import cluster, ending, here
from pipelines.cli.flags import SettingsCommand, StageCommand
from pipelines.stages import STAGES

SECTIONS: dict[str, list[click.Command]] = {
    "Stages": [*(StageCommand(name) for name in STAGES), here.run],
    "Try and plan": [here.demo, here.reproduce, here.plan],
    "Use the adapter": [
        SettingsCommand("ask", "question"),
        SettingsCommand("serve"),
        StageCommand("merge-adapter"),
        StageCommand("card"),
    ],
    "Datasets": [SettingsCommand("rows", "dataset", required=True), StageCommand("export")],
    "Results": [cluster.SummaryCommand(), here.compare],
    "Kubeflow and Kubernetes": [
        here.compile_,
        here.check,
        cluster.preflight,
        cluster.submit,
        cluster.watch,
        cluster.terminate,
        cluster.job,
        StageCommand("hardware"),
    ],
}
"""Every command, under the heading that `raft --help` gives it."""


class Raft(click.Group):
    """The group of all commands, listed by section instead of by letter."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands))
        room = formatter.width - widest - 6
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{one.name:{widest}}", one.get_short_help_str(room)) for one in commands]
                )


@click.group(
    cls=Raft,
    commands=[command for commands in SECTIONS.values() for command in commands],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="raft-pipelines", prog_name="raft")
def raft() -> None:
    """Adapt a language model to your own documents with retrieval augmented fine-tuning.

    The four stages pass folders (or gs:// URIs) to each other:

    \b
      documents ─ generate ─▶ dataset ─ train ─▶ adapter ─ quantize-check ─▶ eval ─▶ report

    New here? `raft demo --output run/` does all four on a tiny model in a few minutes.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: run a command and exit with its code; `raft` and `raft help` show help."""
    # Before torch is loaded: threads that spin while they wait take the cores from others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in ([], ["help"]):
        words = [*words[1:], "--help"]
    ending.execute(raft, words)
