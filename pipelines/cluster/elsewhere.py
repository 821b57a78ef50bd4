"""Checks of what a run needs outside the cluster: buckets, the teacher, the base model.

They are asked from this machine with its own credentials: the pods have theirs.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from components.core.errors import AccessError, NotPermitted, RaftError
from components.core.storage import SCHEME, reachable

OK, MISSING, UNKNOWN = "ok", "missing", "cannot tell"

Finding = tuple[str, str, str]
"""OK, MISSING or UNKNOWN; the text; the command or advice that fixes it."""

Findings = Iterator[Finding]


def failed(error: RaftError, name: str = "") -> Finding:
    """The finding for an error; a missing permission here says nothing about the pods."""
    state = UNKNOWN if isinstance(error, (NotPermitted, AccessError)) else MISSING
    return state, f"{name}{error}", error.hint


def check_locations(values: Mapping[str, Any], pipeline_root: str) -> Findings:
    names = ("documents", "questions", "base_model")
    locations = {name: values.get(name, "") for name in names} | {"run": pipeline_root}
    for name, value in locations.items():
        if value.startswith(SCHEME):
            try:
                reachable(value, write=name == "run")
                verb = "writable" if name == "run" else "readable"
                yield OK, f"{name}: {value} is {verb} from here", ""
            except RaftError as error:
                yield failed(error, f"{name}: ")


def check_teacher(values: Mapping[str, Any]) -> Findings:
    if values.get("teacher") != "openai":
        return
    endpoint, model = values["teacher_endpoint"], values["teacher_model"]
    teacher, url = f"teacher at {endpoint}", f"{endpoint.rstrip('/')}/models"
    fix = (
        "Check teacher_endpoint; it ends in /v1 for most servers. Where it wants a key, export\n"
        "OPENAI_API_KEY=KEY here, and put the same key in the secret raft-teacher."
    )
    try:
        answer = _ask("GET", url, "OPENAI_API_KEY")
        models = [entry["id"] for entry in answer.json()["data"]] if answer.ok else []
    except (ValueError, KeyError, TypeError):
        yield MISSING, f"{teacher} lists no models at {url}", fix
    except OSError as error:  # as those of requests are
        # A service's name is known inside the cluster only.
        state = MISSING if "." in (urlsplit(endpoint).hostname or "") else UNKNOWN
        curl = f"kubectl run curl --rm -it --restart=Never --image=curlimages/curl -- {url}"
        yield state, f"{teacher} does not answer here ({type(error).__name__})", curl
    else:
        if not answer.ok:
            yield MISSING, f"{teacher} answers {answer.status_code} at {url}", fix
        elif model not in models:
            fix = f"Set teacher_model to one of: {', '.join(models[:5])}"
            yield MISSING, f"{teacher} has no model {model}", fix
        else:
            yield OK, f"teacher {model} answers at {endpoint}", ""


def check_model(values: Mapping[str, Any]) -> Findings:
    model = values.get("base_model", "")
    if not model or model.startswith(SCHEME):
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        answer = _ask("HEAD", f"{hub}/{model}/resolve/main/config.json", "HF_TOKEN")
    except OSError as error:
        yield UNKNOWN, f"model {model}: {hub} is silent ({type(error).__name__})", ""
        return
    problems = {
        401: "it is gated, and HF_TOKEN holds no token that is accepted",
        403: "its licence is not accepted",
        404: "not there",
    }
    fix = (
        f"Check base_model; accept the licence at {hub}/{model}, then put a token of that\n"
        "account in HF_TOKEN here, and for the pods in the secret that train.yaml describes."
    )
    status = answer.status_code
    if status < 400:
        yield OK, f"model {model} may be fetched from {hub}", ""
    elif status in problems:
        yield MISSING, f"model {model}: {problems[status]} ({hub} answers {status})", fix
    else:
        yield UNKNOWN, f"model {model}: {hub} answers {status}", ""


def _ask(method: str, url: str, token: str) -> Any:
    """A server's answer to a request, with the token of an environment variable if there is one."""
    import requests

    key = os.environ.get(token)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.request(method, url, headers=headers, timeout=20, allow_redirects=False)
