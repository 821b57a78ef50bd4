"""SIGTERM and the notice of a preemption as events, so that a training can save at a safe point."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from components.core.progress import say

STOPPED = 128 + signal.SIGTERM  # 143, the exit code of a process that SIGTERM has ended


METADATA_SERVER = "169.254.169.254"
"""Google's, on each node of GKE; GCE_METADATA_HOST names another, as for Google's libraries."""
PATIENCE = 60


class Events(NamedTuple):
    """What may come from outside during a training."""

    sigterm: threading.Event
    preemption: threading.Event


@contextmanager
def listening() -> Iterator[Events]:
    """Events: SIGTERM, instead of ending the process at once, and before it a preemption."""
    stop, preemption = Events(threading.Event(), threading.Event())
    default = METADATA_SERVER if os.environ.get("KUBERNETES_SERVICE_HOST") else ""
    if host := os.environ.get("GCE_METADATA_HOST") or default:
        threading.Thread(target=_watch, args=(host, preemption), daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield Events(stop, preemption)  # Python handles signals in the main thread only
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield Events(stop, preemption)
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop.is_set():
        say("  SIGTERM: stopped after training; the same command resumes there")
        sys.exit(STOPPED)


def _watch(host: str, preemption: threading.Event) -> None:
    """Set the event once the metadata server reports that this machine will be taken.

    Where there is no such server, or it does not report that, there is SIGTERM alone.
    """
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    opener, waiting = build_opener(ProxyHandler({})), ""
    with suppress(OSError):  # also what urllib raises
        while not preemption.wait(1):  # a server may not know how to wait for a change
            request = Request(url + waiting, headers={"Metadata-Flavor": "Google"})  # noqa: S310
            with opener.open(request, timeout=2 * PATIENCE) as answer:
                if answer.read().strip() == b"TRUE":
                    preemption.set()
            waiting = f"?wait_for_change=true&timeout_sec={PATIENCE}"
