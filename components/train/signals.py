"""SIGTERM as an event, so that a training can stop at a safe point."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from components.core.progress import say

STOPPED = 128 + signal.SIGTERM  # 143, the exit code of a process that SIGTERM has ended


@contextmanager
def listening_for_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python handles signals in the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop.is_set():
        say("  SIGTERM: stopped after training; the same command resumes there")
        sys.exit(STOPPED)
