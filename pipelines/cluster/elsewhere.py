"""Checks of what a run needs outside the cluster: buckets, the teacher, the base model.

They are asked from this machine with its own credentials: the pods have theirs.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.core.errors import RaftError
from components.core.storage import SCHEME, reachable
from pipelines.cluster.findings import MISSING, OK, UNKNOWN, Findings, failed


def check_locations(values: Mapping[str, Any], pipeline_root: str) -> Findings:
    locations = {name: values.get(name, "") for name in ("documents", "questions", "base_model")}
    locations["run"] = pipeline_root or values.get("run", "")
    for name, value in locations.items():
        if not value or (name == "base_model" and not _is_path(value)):
            continue
        if not value.startswith(SCHEME):
            fix = f"gcloud storage cp --recursive {value} gs://BUCKET/{name}"
            yield MISSING, f"{name}: {value} is a path, which the pods do not see", fix
            continue
        try:
            reachable(value, write=name == "run")
            verb = "writable" if name == "run" else "readable"
            yield OK, f"{name}: {value} is {verb} from here", ""
        except RaftError as error:
            yield failed(error, f"{name}: ")


def _is_path(model: str) -> bool:
    return "://" in model or model.startswith(("/", ".", "~")) or Path(model).exists()


def _ask(method: str, url: str, token: str) -> Any:
    """A server's answer to a request, with a token unless that is ""."""
    import requests

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, url, headers=headers, timeout=20, allow_redirects=False)


def check_teacher(values: Mapping[str, Any]) -> Findings:
    if values.get("teacher") != "openai":
        return
    endpoint, model = values.get("teacher_endpoint", ""), values.get("teacher_model", "")
    teacher, url = f"teacher at {endpoint}", f"{endpoint.rstrip('/')}/models"
    fix = "Check teacher_endpoint; it ends in /v1 for most servers."
    if not endpoint or not model:
        yield MISSING, "teacher openai needs teacher_endpoint and teacher_model", ""
        return
    try:
        answer = _ask("GET", url, os.environ.get("OPENAI_API_KEY", ""))
        models = [entry["id"] for entry in answer.json()["data"]] if answer.ok else []
    except (ValueError, KeyError, TypeError):
        yield MISSING, f"{teacher} lists no models at {url}", fix
        return
    except OSError as error:  # as those of requests are
        # A service's name is known inside the cluster only.
        state = MISSING if "." in (urlsplit(endpoint).hostname or "") else UNKNOWN
        curl = f"kubectl run curl --rm -it --restart=Never --image=curlimages/curl -- {url}"
        yield state, f"{teacher} does not answer here ({type(error).__name__})", curl
        return
    if answer.status_code in (401, 403):
        fix = "export OPENAI_API_KEY=KEY here, and put the same key in the secret raft-teacher."
        yield MISSING, f"{teacher} refuses ({answer.status_code})", fix
    elif not answer.ok:
        yield MISSING, f"{teacher} answers {answer.status_code} at {url}", fix
    elif model not in models:
        fix = f"Set teacher_model to one of: {', '.join(models[:5])}"
        yield MISSING, f"{teacher} has no model {model}", fix
    else:
        yield OK, f"teacher {model} answers at {endpoint}", ""


def check_model(values: Mapping[str, Any]) -> Findings:
    model = values.get("base_model", "")
    if not model or _is_path(model):
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN", "")
    try:
        status = _ask("HEAD", f"{hub}/{model}/resolve/main/config.json", token).status_code
    except OSError as error:
        yield UNKNOWN, f"model {model}: {hub} is silent ({type(error).__name__})", ""
        return
    licence = (
        f"Accept the licence at {hub}/{model}, then put a token of that account in HF_TOKEN\n"
        "here, and for the pods in the secret that train.yaml describes."
    )
    refused = "the token in HF_TOKEN is not accepted" if token else "it is gated, or not there"
    problems = {
        401: (refused, licence),
        403: ("its licence is not accepted", licence),
        404: (f"not on {hub}", "Check base_model."),
    }
    if status < 400:
        yield OK, f"model {model} may be fetched from {hub}", ""
    elif status in problems:
        problem, fix = problems[status]
        yield MISSING, f"model {model}: {problem}", fix
    else:
        yield UNKNOWN, f"model {model}: {hub} answers {status}", ""
