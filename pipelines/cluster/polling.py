"""Looks at a Job or a run until it has ended."""

import time
from collections.abc import Callable

from components.core.errors import ClusterError, NotPermitted

SECONDS_WITHOUT_ANSWER = 300.0
"""What runs in a cluster continues without us, so a server that restarts is waited for."""


def poll(look: Callable[[], bool], seconds: float, *, answered: bool) -> None:
    """Look every so many seconds, until a look returns True.

    Raises:
        ClusterError: the server does not answer, unless it has answered a short while ago.
        NotPermitted: it answers, but not to this account.
    """
    last_answer = time.monotonic()
    while True:
        try:
            if look():
                return
            last_answer, answered = time.monotonic(), True
        except NotPermitted:
            raise
        except ClusterError:
            if not answered or time.monotonic() - last_answer > SECONDS_WITHOUT_ANSWER:
                raise
        time.sleep(seconds)
