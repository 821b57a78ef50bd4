"""Run a command until standard input ends: `python until_eof.py COMMAND...`.

Whoever starts this holds the other end of its standard input. When that process closes it, or ends
in whatever way (SIGKILL included), the command and all its children are stopped. Ends with the
command's exit code. Knows nothing but the standard library.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

SECONDS_TO_STOP = 10.0


def main() -> int:
    """Start the command in a session of its own, and stop that when standard input ends."""
    command = subprocess.Popen(  # noqa: S603 (what the stage says)
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True
    )

    def watch() -> None:
        while os.read(0, 4096):
            pass
        _signal(command.pid, signal.SIGTERM)
        until = time.monotonic() + SECONDS_TO_STOP
        while time.monotonic() < until and command.poll() is None:
            time.sleep(0.05)
        _signal(command.pid, signal.SIGKILL)

    # Only closing the pipe ends the command: a Ctrl-C reaches every process of the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    code = command.wait()
    _signal(command.pid, signal.SIGKILL)  # children that outlived it
    return code if code >= 0 else 128 - code


def _signal(session: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, number)


if __name__ == "__main__":
    sys.exit(main())
