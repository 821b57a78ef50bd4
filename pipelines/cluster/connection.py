"""The Kubernetes cluster that kubectl would talk to, by Kubernetes' own client.

Credentials stay in the kubeconfig and in the client.
"""

import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, first_line
from components.core.redaction import keep_secret

SECONDS_FOR_AN_ANSWER = 30
RETRIES: dict[str, Any] = {"total": 14, "backoff_factor": 1, "backoff_max": 30}
"""What runs in a cluster continues without us, so a server that restarts is waited for: 5 min."""
SETUP = (
    "docs/gke.md sets up a cluster; namespace and account: kubectl apply -k k8s/base "
    "-l app.kubernetes.io/component=setup"
)


class NoAnswer(ClusterError):
    """There is no cluster, or it is silent."""


class NotThere(ClusterError):
    """The cluster has no such object."""


def connect(context: str = "") -> tuple[Any, Any]:
    """CoreV1Api and BatchV1Api of the kubeconfig's context; their calls raise a `ClusterError`.

    Raises:
        ClusterError: there is no usable kubeconfig.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        config.load_kube_config(path, context or None, settings, persist_config=False)
    except (config.ConfigException, OSError, ValueError, TypeError) as error:
        problem = f"no usable kubeconfig at {path} (KUBECONFIG): {first_line(error)}"
        raise ClusterError(problem, hint=SETUP) from error
    for value in filter(None, (*settings.api_key.values(), settings.password)):
        keep_secret(value.removeprefix("Bearer "))
    settings.retries = 1
    api = client.ApiClient(settings)
    explain_answers(api, f"the cluster at {settings.host}", client.ApiException, SETUP)
    return client.CoreV1Api(api), client.BatchV1Api(api)


def explain_answers(api: Any, server: str, refusal: type[Exception], hint: str) -> None:
    """Let all calls of a client, Kubernetes' or kfp's, be `explained`, and end after a while."""
    call = api.call_api

    def call_api(*arguments: Any, **options: Any) -> Any:
        options["_request_timeout"] = options.get("_request_timeout") or SECONDS_FOR_AN_ANSWER
        with explained(server, refusal, hint):
            return call(*arguments, **options)

    api.call_api = call_api


def outlast_restarts(api: Any) -> None:
    """Let a client, Kubernetes' or kfp's, wait for its server in the requests that follow."""
    from urllib3 import Retry

    statuses = (429, 500, 502, 503, 504)
    retry = Retry(**RETRIES, status_forcelist=statuses, raise_on_status=False)
    api.rest_client.pool_manager.connection_pool_kw["retries"] = retry


@contextmanager
def explained(server: str, refusal: type[Exception], hint: str) -> Iterator[None]:
    """Turn what a client, Kubernetes' or kfp's, raises into a `ClusterError`; mute its own words.

    `refusal` is the client's ApiException.
    """
    from urllib3.exceptions import HTTPError

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it reports each retry
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    except HTTPError as error:
        # Without the connection that urllib3 describes before the cause.
        cause = first_line(getattr(error, "reason", None) or error).rpartition(": ")[2]
        raise NoAnswer(f"{server} does not answer ({cause})", hint=hint) from error
    except refusal as error:
        message, status = _message_of(error), getattr(error, "status", 0)
        kind = {401: NotPermitted, 404: NotThere}.get(status, ClusterError)
        # Quotas and policies answer with 403, too, but name no account.
        if status == 403 and re.search("User [\"']", message):
            kind = NotPermitted
        # The error's own text has the response's headers, and with them cookies.
        raise kind(f"{server} answers {status}: {message}", hint=hint) from None
    except (ValueError, TypeError, AttributeError) as error:  # of a login page, for example
        problem = f"{server} answers, but not as its API does ({first_line(error)})"
        raise ClusterError(problem, hint=hint) from error


def _message_of(error: Any) -> str:
    """The message in the body of an ApiException, on one line."""
    try:
        body = json.loads(error.body)
        text = body.get("message") or body.get("error")
    except (TypeError, ValueError, AttributeError):
        text = ""
    return " ".join(str(text or error.reason).split())[:500]
