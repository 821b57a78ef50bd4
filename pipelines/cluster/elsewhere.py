"""Checks of what a run needs outside the cluster: buckets, the teacher, the base model.

They are asked from this machine with its own credentials: the pods have theirs.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from components.core.errors import ClusterError
from components.core.storage import SCHEME, reachable

Check = Callable[[], str]
"""Returns what is there, or raises what is missing."""


class CannotTell(ClusterError):
    """A check has no answer: from here, or for this account."""


def checks_outside(values: Mapping[str, Any], pipeline_root: str) -> dict[str, Check]:
    """The checks that the parameters of a run ask for, by what they look for."""
    checks: dict[str, Check] = {}
    for name in ("documents", "questions", "base_model"):
        location = values.get(name, "")
        if location.startswith(SCHEME):
            checks[name] = partial(_location, location)
        elif name == "base_model" and location:
            checks[name] = partial(_model, location)
    if pipeline_root.startswith(SCHEME):
        checks["run"] = partial(_location, pipeline_root, write=True)
    if values.get("teacher") == "openai":
        checks["teacher"] = partial(_teacher, values["teacher_endpoint"], values["teacher_model"])
    return checks


def _location(location: str, write: bool = False) -> str:
    reachable(location, write=write)
    return f"{location} is {'writable' if write else 'readable'} from here"


def _teacher(endpoint: str, model: str) -> str:
    hint = "Check teacher_endpoint (most end in /v1), OPENAI_API_KEY and secret raft-teacher."
    answer = _ask("GET", f"{endpoint.rstrip('/')}/models", "OPENAI_API_KEY", hint)
    try:
        models = [entry["id"] for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        models = []
    if model not in models:
        listed = ", ".join(models[:5]) or "no models"
        raise ClusterError(f"{endpoint} has no model {model}; it lists {listed}", hint=hint)
    return f"{model} answers at {endpoint}"


def _model(model: str) -> str:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    hint = (
        "401: HF_TOKEN has no valid token (for the pods: the secret that train.yaml describes).\n"
        f"403: accept the licence at {hub}/{model}.\n404: there is no such model."
    )
    _ask("HEAD", f"{hub}/{model}/resolve/main/config.json", "HF_TOKEN", hint)
    return f"{model} may be fetched from {hub}"


def _ask(method: str, url: str, token: str, hint: str) -> Any:
    """The answer to a request, with the token of an environment variable if there is one."""
    import requests

    key = os.environ.get(token)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.request(method, url, headers=headers, timeout=20, allow_redirects=False)
    except OSError as error:  # the pods may be in a network where it answers
        raise CannotTell(f"{url} does not answer here ({type(error).__name__})") from error
    if not answer.ok:
        raise ClusterError(f"{url} answers {answer.status_code}", hint=hint)
    return answer
