"""How a command ends: its exit code, SIGTERM, and errors in words instead of a traceback."""

import atexit
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

import click

from components.core.config import flag
from components.core.errors import RaftError, disk_is_full, for_terminal
from components.core.redaction import guarded

USER_ERROR, OUR_ERROR = 2, 1
TERMINATED = 128 + signal.SIGTERM

# Libraries write too: each has an error of its own, and few say where.
NO_PLACE = ("Read-only file system", "No usable temporary directory")


def run(command: click.Command, arguments: list[str]) -> NoReturn:
    """Run a command and exit with 0, 2 (the user can fix it) or 1 (ours)."""
    # Left to itself, SIGTERM kills Python without running a single `finally`.
    signal.signal(signal.SIGTERM, _terminate)
    # Once Python is cleaning up, the work is done, and its code stands.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    # For the shell's completion click writes bytes, which tell of nothing but our own flags.
    with nullcontext() if "_RAFT_COMPLETE" in os.environ else guarded():
        _run(command, arguments)


def _run(command: click.Command, arguments: list[str]) -> NoReturn:
    try:
        command.main(args=arguments, prog_name="raft", standalone_mode=False)
    except SystemExit as stopped:
        if stopped.code != TERMINATED:
            raise
        # Train says by itself how far it has come.
        _leave("stopped by SIGTERM; give the same command again" * isinstance(stopped, _Terminated))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # the help
        sys.exit(USER_ERROR)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        _say(error.format_message(), f"{context.command_path} --help" if context else "")
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # which a library made this of
            _leave("stopped by SIGTERM; give the same command again")
        if "--debug" in arguments:
            _show_causes(error)
            traceback.print_exc()  # here, where secrets are taken out of it
        sys.exit(_explain(error, arguments))
    sys.exit(0)


def _show_causes(error: BaseException) -> None:
    """Let the traceback show what `raise ... from None` hides from a person."""
    while error.__context__ is not None and error.__cause__ is None:
        error.__suppress_context__ = False
        error = error.__context__


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
    elif disk_is_full(error) or any(word in str(error) for word in NO_PLACE):
        problem, code = f"{_output(arguments)}{error}", USER_ERROR
        hint = "Make room, or mount a folder that can be written, where --output and temporary "
        hint += "files (TMPDIR, in a container /tmp) lie."
    else:
        problem = f"{type(error).__name__}: {error}"
        hint, code = "This is a fault of raft; --debug shows the traceback.", OUR_ERROR
    _say(problem, hint)
    return code


def _say(problem: str, hint: str) -> None:
    click.echo(f"error: {for_terminal(problem)}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)


def _output(arguments: Sequence[str]) -> str:
    """Where a command was to write, for an error that names no place."""
    words = itertools.chain.from_iterable(argument.split("=", 1) for argument in arguments)
    for name, value in itertools.pairwise(words):
        if name == flag("output"):
            return f"{name} {value}: "
    return ""
