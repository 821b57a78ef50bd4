"""How a command ends: its exit code, SIGTERM, and errors in words instead of a traceback."""

import atexit
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, requires
from typing import NoReturn

import click

from components.core.config import flag
from components.core.errors import RaftError, disk_is_full, for_terminal
from components.core.redaction import guarded
from pipelines.stages import COMMANDS, STAGES

OTHERS_RESUME = {
    "run": "the same command skips the stages that are finished and resumes the one that is not",
    "submit": "the run continues in the cluster: raft watch RUN follows it",
    "watch": "the run continues in the cluster",
}
"""What becomes of the work of commands that are no stages."""

OTHER_NAMES = {
    "bs4": "beautifulsoup4", "docx": "python-docx", "google": "google-cloud-storage",
    "kfp_server_api": "kfp",
}  # fmt: skip
"""Libraries whose package has another name than their module."""

USER_ERROR, OUR_ERROR = 2, 1
TERMINATED = 128 + signal.SIGTERM

# Libraries write too: each has an error of its own, and few name the place.
NO_PLACE = ("Read-only file system", "No usable temporary directory")


def execute(command: click.Command, arguments: list[str]) -> NoReturn:
    """Run a command and exit with 0, 2 (the user can fix it) or 1 (ours)."""
    # Left to itself, SIGTERM kills Python without running a single `finally`.
    signal.signal(signal.SIGTERM, _terminate)
    # Once Python is cleaning up, the work is done, and its code is kept.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    # For the shell's completion click writes bytes, which contain nothing but our own flags.
    with nullcontext() if "_RAFT_COMPLETE" in os.environ else guarded():
        _execute(command, arguments)


def _execute(command: click.Command, arguments: list[str]) -> NoReturn:
    try:
        command.main(args=arguments, prog_name="raft", standalone_mode=False)
    except SystemExit as stopped:
        if stopped.code != TERMINATED:
            raise
        # Train reports by itself how far it has come.
        _leave(_stopped("stopped by SIGTERM", arguments) * isinstance(stopped, _Terminated))
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
        click.echo(_stopped("interrupted", arguments), err=True)
        sys.exit(130)
    except Exception as error:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # which a library made this of
            _leave(_stopped("stopped by SIGTERM", arguments))
        if "--debug" in arguments:
            _show_causes(error)
            traceback.print_exc()  # here, where secrets are taken out of it
        sys.exit(_explain(error, arguments))
    sys.exit(0)


def _stopped(how: str, arguments: Sequence[str]) -> str:
    """How a command was stopped, and what the same command does when it is given again."""
    name = arguments[0] if arguments else ""
    resumes = COMMANDS[name].resumes if name in COMMANDS else OTHERS_RESUME.get(name, "")
    return f"{how}; {resumes or 'give the same command again'}"


def _extra(module: str, command: str) -> str:
    """The one extra of the package that a command needs for a module that is missing."""
    name = module.split(".", maxsplit=1)[0]
    if command in STAGES and name != "google":
        return command
    wanted = OTHER_NAMES.get(name, name).lower().replace("_", "-")
    with suppress(PackageNotFoundError):
        for line in requires("raft-pipelines") or ():
            library = re.match(r"([\w.-]+).*extra == .([\w-]+)", line)
            if library and library[1] == wanted:
                return library[2]
    return "all"


def _show_causes(error: BaseException) -> None:
    """Let the traceback show what `raise … from None` hides without --debug."""
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
        problem, code = f"{error.name} is not installed", USER_ERROR
        extra = _extra(error.name or "", arguments[0] if arguments else "")
        hint = f"pip install 'raft-pipelines[{extra}]'; in a checkout: pip install -e '.[{extra}]'"
    elif isinstance(error, PermissionError):
        problem, code = str(error), USER_ERROR
        hint = 'Give this user access to it; in docker, pass --user "$(id -u):$(id -g)".'
    elif disk_is_full(error) or any(word in str(error) for word in NO_PLACE):
        problem, code = f"{_output(arguments)}{error}", USER_ERROR
        hint = "Make room, or mount a folder that can be written, where --output and temporary "
        hint += "files (TMPDIR, in a container /tmp) are."
    else:
        problem = f"{type(error).__name__}: {error}"
        hint, code = "This is a bug in raft; --debug shows the traceback.", OUR_ERROR
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
