"""What a check of preflight finds, and how it is printed."""

from collections.abc import Iterator

import click

from components.core.errors import AccessError, NotPermitted, RaftError
from pipelines.cluster.connection import NoAnswer

OK, MISSING, UNKNOWN = "ok", "missing", "cannot tell"
COLORS = {OK: "green", MISSING: "red", UNKNOWN: "yellow"}

Finding = tuple[str, str, str]
"""OK, MISSING or UNKNOWN; the text; the command or advice that fixes it."""

Findings = Iterator[Finding]


def failed(error: RaftError, name: str = "") -> Finding:
    """The finding for an error; a missing permission here says nothing about the pods."""
    state = UNKNOWN if isinstance(error, (NotPermitted, AccessError)) else MISSING
    return state, f"{name}{error}", error.hint


def print_findings(check: Findings) -> int:
    """Print what a check finds, an error of it included; how many things are missing."""
    missing = 0
    for state, text, fix in _until_an_error(check):
        click.echo(f"{click.style(f'{state:12}', fg=COLORS[state])} {text}")
        for line in fix.splitlines():
            click.echo(f"{'':12}   {line}")
        missing += state == MISSING
    return missing


def _until_an_error(check: Findings) -> Findings:
    try:
        yield from check
    except NoAnswer:
        raise
    except RaftError as error:
        yield failed(error)
