"""The Kubernetes cluster that kubectl would talk to, by Kubernetes' own client.

Credentials stay in the kubeconfig and in the client.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted, first_line
from components.core.redaction import keep_secret

SECONDS_FOR_AN_ANSWER = 30
SECONDS_WITHOUT_ANSWER = 300.0
"""What runs in a cluster continues without us, so a server that restarts is waited for."""


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
    from urllib3.exceptions import HTTPError

    class Api(client.ApiClient):
        def call_api(self, *arguments: Any, **options: Any) -> Any:
            options["_request_timeout"] = options["_request_timeout"] or SECONDS_FOR_AN_ANSWER
            try:
                return super().call_api(*arguments, **options)
            except HTTPError as error:
                problem = f"the cluster at {settings.host} does not answer ({cause_of(error)})"
                raise NoAnswer(problem, hint="kubectl cluster-info tries the same.") from error
            except client.ApiException as error:
                message = message_of(error)
                if error.status == 404:
                    hint = "kubectl apply -k k8s/base -l app.kubernetes.io/component=setup"
                    raise NotThere(message, hint=hint) from error
                # Quotas and policies answer with 403, too, but name no account.
                if error.status == 401 or (error.status == 403 and 'User "' in message):
                    hint = "kubectl auth whoami shows the account; ask for the permission."
                    raise NotPermitted(message, hint=hint) from error
                quota = "kubectl -n NAMESPACE describe resourcequota,limitrange shows the limits."
                hint = quota if error.status == 403 else ""
                raise ClusterError(f"the cluster refuses: {message}", hint=hint) from error

    settings = client.Configuration()
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        config.load_kube_config(path, context or None, settings, persist_config=False)
    except (config.ConfigException, OSError, ValueError, TypeError) as error:
        problem = f"no usable kubeconfig at {path} (KUBECONFIG): {first_line(error)}"
        hint = "gcloud container clusters get-credentials CLUSTER --location LOCATION writes one."
        raise ClusterError(problem, hint=hint) from error
    guard(*settings.api_key.values(), settings.password)
    settings.retries = 1
    return client.CoreV1Api(Api(settings)), client.BatchV1Api(Api(settings))


def poll(look: Callable[[], Any], seconds: float) -> Any:
    """Look every so many seconds until there is something to return.

    Raises:
        ClusterError: the server knows no such object or not this account, or it has not given an
            answer for some minutes.
    """
    last_answer = time.monotonic()
    while True:
        try:
            if found := look():
                return found
            last_answer = time.monotonic()
        except ClusterError as error:
            waits = time.monotonic() - last_answer < SECONDS_WITHOUT_ANSWER
            if not waits or isinstance(error, (NotPermitted, NotThere)):
                raise
        time.sleep(seconds)


def guard(*credentials: str | None) -> None:
    """Keep a client's credentials out of what is printed, and its own reports of each retry."""
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for value in filter(None, credentials):
        keep_secret(str(value).removeprefix("Bearer "))


def cause_of(error: object) -> str:
    """Why there was no connection, without the connection that urllib3 describes before it."""
    return first_line(getattr(error, "reason", None) or error).rpartition(": ")[2]


def message_of(error: Any) -> str:
    """What the body of an ApiException, of Kubernetes' client or kfp's, says in one line."""
    try:
        body = json.loads(error.body)
        text = body.get("message") or body.get("error")
    except (TypeError, ValueError, AttributeError):
        text = ""
    return " ".join(str(text or error.reason).split())[:500]
